# SPDX-License-Identifier: Apache-2.0
"""What really happens in an episode, as stretches of time: the demo draws it below the node's answers."""

from __future__ import annotations

from itertools import groupby

from .episode import CAMERA_FPS, STEPS_PER_FRAME, Episode
from .phase import Phase, completed, phase
from .questions import next_action
from .scenes import BY_NAME

# (from, until, label), seconds. Moments about which one could argue belong to no stretch (see phase.py).
Spans = list[tuple[float, float, str]]


def truth(episode: Episode, skill_index: int, lead_s: float = 0.0, tail_s: float = 0.0) -> dict[str, Spans]:
    """Right answers of the three queries over time: query kind -> stretches.

    Args:
        episode: with its states; frames are not needed.
        skill_index: which of the scene's skills is the task; the affordance is that of its act.
        lead_s: time before the first state in which nothing moves, seconds.
        tail_s: time after the last one, seconds.
    """
    scene = BY_NAME[episode.scene]
    skill = scene.skills[skill_index]
    completion: list[str | None] = []
    affordance: list[str | None] = []
    action: list[str | None] = []
    for openness, gap_m in zip(episode.openness.tolist(), episode.gap_m[:, skill_index], strict=True):
        done, now = completed(skill, openness), phase(skill, openness, gap_m)
        completion.append(None if done is None else "yes" if done else "no")
        affordance.append(None if now is None else "yes" if now is Phase.ACT else "no")
        action.append(None if now is None else next_action(scene, skill, now))
    labels = {"completion": completion, "affordance": affordance, "next_action": action}
    return {kind: _spans(values, lead_s, tail_s) for kind, values in labels.items()}


def _spans(labels: list[str | None], lead_s: float, tail_s: float) -> Spans:
    """Runs of equal labels; label ``i`` holds from state ``i`` to the next."""
    period_s = STEPS_PER_FRAME / CAMERA_FPS
    spans: Spans = []
    index = 0
    for label, run in groupby(labels):
        first, index = index, index + len(list(run))
        start_s = 0.0 if first == 0 else lead_s + first * period_s
        end_s = lead_s + index * period_s + (tail_s if index == len(labels) else 0.0)
        if label is not None:
            spans.append((round(start_s, 3), round(end_s, 3), label))
    return spans
