# SPDX-License-Identifier: Apache-2.0
"""The simulated benchmark: held-out episodes and clips, and what training.data.sim asks about them.

A ``Source`` draws windows with their questions; another simulator is plugged in by giving one more. Windows
are drawn by a seed of the benchmark's own, so the same files give the same questions.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.types import Frame, QueryKind, Window
from cosmos_reason_node.vision.resize import resize
from training.data.schema import CATEGORIES, QuestionKind
from training.data.sim import kinds
from training.data.sim.physics.clip import load_clip
from training.data.sim.questions import questions
from training.data.sim.sample import SimSample
from training.data.sim.windows import EpisodeStore

from .item import Benchmark, Item, Stimulus

PERIOD_NS = 250_000_000  # 4 frames per second
_SEED = 12345
_TRIES = 20  # draws for a window about which something can be asked
_WINDOWS_A_SHARE = 4  # a kind's share of questions is the number of windows by this
_GROUPS = {
    QueryKind.COMPLETION: QuestionKind.TASK_COMPLETION,
    QueryKind.AFFORDANCE: QuestionKind.AFFORDANCE,
    QueryKind.NEXT_ACTION: QuestionKind.NEXT_ACTION,
}


@dataclass(frozen=True)
class Shown:
    """A window and what is asked about it.

    Attributes:
        name: unique in its source: which frames of which recording.
        recording: items of one are not independent.
        frames: (T, H, W, 3) uint8 RGB, T even, at 4 frames per second.
        first: tick of the first frame, even.
        samples: at least one.
    """

    name: str
    recording: str
    frames: np.ndarray
    first: int
    samples: Sequence[SimSample]


class Source(Protocol):
    """Draws windows."""

    @property
    def name(self) -> str:
        """Source under which items are scored."""
        ...

    def draw(self, count: int, rng: np.random.Generator) -> Iterator[Shown]:
        """``count`` windows with questions, or fewer where nothing can be asked of more."""
        ...


class RobotEpisodes:
    """Windows of robot episodes, uniform over scene, skill and phase, with the node's three questions.

    Args:
        directory: of episodes of one split.
        frames: of a window, even.
    """

    name = "sim_robot"

    def __init__(self, directory: Path, frames: int) -> None:
        self._store = EpisodeStore(directory)
        self._frames = frames

    def draw(self, count: int, rng: np.random.Generator) -> Iterator[Shown]:
        """See Source."""
        for number in range(count):
            for _ in range(_TRIES):
                drawn = self._store.draw(self._frames, rng)
                asked = questions(drawn.episode, drawn.span, rng)
                if asked:
                    seed, span = drawn.episode.seed, drawn.span
                    # A view, not a copy: the store holds the frames anyway.
                    yield Shown(
                        f"{seed}/{span.first}+{span.length}/{number}",
                        str(seed),
                        drawn.frames(),
                        span.first,
                        asked,
                    )
                    break


class PhysicsClips:
    """Windows of table-top physics clips, balanced over kinds: intuitive physics and common sense.

    Args:
        directory: of clips of one split.
    """

    name = "sim_physics"

    def __init__(self, directory: Path) -> None:
        self._paths = sorted(directory.glob("clip*.npz"))

    def draw(self, count: int, rng: np.random.Generator) -> Iterator[Shown]:
        """See Source. Clips are taken in turn, in random order.

        Windows about nothing but kinds that have their share of questions are passed over, so that rare
        kinds get theirs.
        """
        order = rng.permutation(len(self._paths))
        asked_of: collections.Counter[str] = collections.Counter()
        share = max(1, count // _WINDOWS_A_SHARE)
        made = 0
        for number in range(count * _TRIES):
            clip = load_clip(self._paths[order[number % len(order)]])
            shown, span = kinds.draw(clip, rng)
            asked = kinds.questions_for(shown, span, rng)
            groups = {sample.group for sample in asked}
            if not any(asked_of[group] < share for group in groups):
                continue
            asked_of.update(sample.group for sample in asked)
            made += 1
            name = f"{clip.seed}/{shown.variant}/{span.first}+{span.length}/{made}"
            frames = shown.frames[span.first : span.last + 1].copy()
            yield Shown(name, str(clip.seed), frames, span.first, asked)
            if made == count:
                return


def find_sources(directories: Sequence[Path], frames: int) -> list[Source]:
    """The sources that directories hold, by the names of their files.

    Raises:
        FileNotFoundError: one of them holds neither episodes nor clips.
    """
    sources: list[Source] = []
    for directory in directories:
        clips = any(directory.glob("clip*.npz"))
        episodes = any(path for path in directory.glob("*.npz") if not path.name.startswith("clip"))
        if clips:
            sources.append(PhysicsClips(directory))
        if episodes:
            sources.append(RobotEpisodes(directory, frames))
        if not clips and not episodes:
            raise FileNotFoundError(
                f"there are no episodes or clips (*.npz) in {directory}: run `python -m training.nano "
                "generate` first (with --validation N --validation-clips M for a validation split), or name "
                "the folders with --data"
            )
    return sources


def simulated(sources: Sequence[Source], windows: int, model: ModelSpec, seed: int = _SEED) -> Benchmark:
    """The benchmark.

    Args:
        sources: where windows come from.
        windows: how many of each source.
        model: that is to see them.
        seed: of the draws.
    """
    stimuli = []
    for source in sources:
        rng = np.random.default_rng([seed, int.from_bytes(source.name.encode()[:8], "little")])
        stimuli += [_stimulus(source.name, shown, model) for shown in source.draw(windows, rng)]
    return Benchmark("sim", tuple(stimuli))


def _stimulus(source: str, shown: Shown, model: ModelSpec) -> Stimulus:
    key = f"{source}/{shown.name}"
    items = []
    for index, sample in enumerate(shown.samples):
        group = sample.group or _GROUPS.get(sample.query.kind, QuestionKind.OTHER).value
        named = {kind.value for kind in QuestionKind}
        origin = sample.provenance
        items.append(
            Item(
                item_id=f"{key}/{index}",
                stimulus=f"{key}@{hashlib.sha256(shown.frames.tobytes()).hexdigest()[:8]}",
                query=dataclasses.replace(sample.query, think_tokens=-1),
                answer=sample.answer,
                group=group,
                source=source,
                cluster=f"{source}/{shown.recording}",
                category=group if group in CATEGORIES and group not in named else "",
                tasks=tuple(
                    dict.fromkeys(
                        name for name in (origin.scene, sample.query.task, sample.query.action) if name
                    )
                ),
            )
        )
    return Stimulus(items[0].stimulus, tuple(items), partial(make_windows, shown.frames, shown.first, model))


def make_windows(frames: np.ndarray, first: int, model: ModelSpec) -> tuple[Window, ...]:
    """Frames as the node would hand them to an engine.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        first: tick of the first one.
        model: whose frame size they get.
    """
    size = model.frame_size_for(*frames.shape[1:3])
    made = tuple(
        Frame("sim", (first + i) * PERIOD_NS + 1, first + i, resize(image, size))
        for i, image in enumerate(frames)
    )
    return (Window("sim", made, first, PERIOD_NS, 0, len(made)),)
