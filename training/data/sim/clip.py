# SPDX-License-Identifier: Apache-2.0
"""The demo clip: one held-out episode as a camera would deliver it, an H.264 mp4 with a JSON beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .episode import CAMERA_FPS, Episode, run_episode, split_of
from .simulator import Simulator
from .truth import truth


@dataclass(frozen=True)
class ClipChoice:
    """Which episode becomes the clip.

    Attributes:
        seed: of the episode; a held-out one.
        scene, plan, skill: as in ``run_episode``.
        steps: length in control steps, that is frames at 20 fps.
        still_s: seconds that the first and the last picture stand still, before and after.
    """

    seed: int
    scene: str = "drawer"
    plan: str = "succeed"
    skill: int = 0
    steps: int = 210
    still_s: float = 1.5


def make_clip(choice: ClipChoice, path: Path, options: tuple[str, ...], action: str) -> Episode:
    """Render and write ``path`` and ``path`` with suffix .json.

    Args:
        choice: the episode.
        path: of the mp4.
        options: next-action choices that the demo offers.
        action: whose possibility the demo asks.

    Returns:
        The episode, without frames.
    """
    if split_of(choice.seed) != "held_out":
        raise ValueError(f"seed {choice.seed} is a training seed: the demo must show a held-out episode")
    images: list[np.ndarray] = []

    def look(_: int, simulator: Simulator) -> None:
        images.append(simulator.render().copy())

    episode = run_episode(
        choice.seed,
        scene_name=choice.scene,
        plan_name=choice.plan,
        skill_index=choice.skill,
        steps=choice.steps,
        on_step=look,
        sample=False,
    )
    still = round(choice.still_s * CAMERA_FPS)
    write_video(path, [images[0]] * still + images + [images[-1]] * still)
    description = {
        "task": episode.task,
        "action": action,
        "options": list(options),
        "fps": CAMERA_FPS,
        "seed": choice.seed,
        "scene": choice.scene,
        "plan": choice.plan,
        "truth": truth(episode, choice.skill, choice.still_s, choice.still_s),
        "made_by": f"python -m training.nano clip --seed {choice.seed}",
    }
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return episode


def write_video(path: Path, images: list[np.ndarray], quality: int = 20) -> None:
    """Encode (H, W, 3) uint8 images at the camera's rate; ``quality`` is x264's CRF, lower is better."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = images[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(CAMERA_FPS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(quality), "preset": "slow", "threads": "1"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
