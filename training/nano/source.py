# SPDX-License-Identifier: Apache-2.0
"""What nano is trained on: draws from the simulated world, as batches of ``training.sft.loop``.

    Pairs     single temporal patches of episodes and clips, with the state that is true in them
    Windows   windows of episodes and of clips with questions, letters to be looked up in text, and Pairs

Everything follows from (seed, step, rank), so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_reason_node import prompt
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.types import Query, QueryKind
from cosmos_reason_node.vision.patchify import patchify
from training.data.sim import kinds
from training.data.sim.physics.clip import Clip
from training.data.sim.questions import questions
from training.data.sim.sample import SimSample
from training.data.sim.scenes import SCENES
from training.data.sim.windows import ClipStore, EpisodeStore
from training.sft.augment import Augmentation
from training.sft.rows import RowBatch, encode_answer, pack_rows

from .events import Events, events_of
from .lookup import Asked, conclusion, lookups
from .places import name_places, option_places, verdicts
from .probe import States, Things, states_of, things_of

# Training never hears of these tasks and sees no episode made for them; training.eval reports them apart.
HELD_OUT_TASKS = ("close the window", "open the door")
# Clips of a scene, relative to the other scenes: intuitive physics is asked about few of them.
SCENE_SHARES = {"room": 2.5, "hide": 2.5, "topple": 1.5, "spill": 1.5, "drop": 1.5}
VERDICT_WEIGHT = 16.0  # of an answer against a token of reasoning or format
THOUGHT_WEIGHT = 2.0  # of a token of reasoning: at 1 the things it spoke of were not those it was asked about
LOOKUP, REASONED = "lookup", "reasoned"
GROUPS = ("task_completion", "affordance", "next_action", *kinds.GROUPS, LOOKUP, REASONED)
_OF_QUERY = {
    QueryKind.COMPLETION: "task_completion",
    QueryKind.AFFORDANCE: "affordance",
    QueryKind.NEXT_ACTION: "next_action",
}
_CLOSING = {skill.task for scene in SCENES for skill in scene.skills if not skill.opens}
HELD_OUT_TEXTS = {
    text
    for scene in SCENES
    for skill in scene.skills
    if skill.task in HELD_OUT_TASKS
    for text in (skill.task, skill.act)
}
_TRIES = 20  # draws for a window about which something can be asked


@dataclass(frozen=True)
class DrawSettings:
    """How windows are drawn.

    Attributes:
        episodes, clips: windows of each a step, over all processes.
        lookups: of the windows' lettered questions, asked again without video to learn what letters are.
        pairs: single temporal patches for the probes; 0 where the tower is not trained.
        robot_share: share of those that are of episodes.
        scene_shares: how often moments of a scene are drawn, relative to 1 for those not named.
        lengths, length_shares: frames of robot windows and how often each is drawn.
        branches, clip_branches: most questions of a window of an episode and of a clip.
        asked: how often a clip is asked: each time of other things, as chance has it.
        one_sided: steps in which completion is asked of opening tasks only. A state that completes one task
            of a scene undoes the other: asked of both equally, state and answer do not correlate before the
            task's wording is taken into account, and the model stays at chance for long.
        think_share: share of questions that are answered with reasoning, too; at once all are.
        clip_gradient: share of a clip window's temporal patches that gradients flow through, drawn at random.
        no_video_share: share of steps without video: makes "the same model without video" a fair baseline.
        seed: of everything drawn.
    """

    episodes: int = 16
    clips: int = 16
    lookups: int = 0
    pairs: int = 16
    robot_share: float = 0.5
    scene_shares: Mapping[str, float] = field(default_factory=dict)
    lengths: tuple[int, ...] = (2, 8, 32)
    length_shares: tuple[float, ...] = (0.6, 0.2, 0.2)
    branches: int = 4
    clip_branches: int = 4
    asked: int = 1
    one_sided: int = 0
    think_share: float = 0.25
    clip_gradient: float = 0.5
    no_video_share: float = 0.04
    seed: int = 0

    def pair_counts(self, processes: int) -> tuple[int, int]:
        """Pairs of episodes and of clips that one of the processes draws."""
        count = self.pairs // processes
        robot = round(count * self.robot_share)
        return robot, count - robot


@dataclass(frozen=True)
class PairBatch:
    """Temporal patches; robot moments first, then moments of clips.

    Attributes:
        patches: (P, K', patch_dim), one row of K' patches a pair of frames.
        states, points: of the robot moments; see probe.py.
        things: of the others.
        weight: 1.
    """

    patches: Tensor
    states: States
    points: Tensor
    things: Things
    weight: float = 1.0

    @property
    def samples(self) -> int:
        """Pairs."""
        return len(self.patches)

    @property
    def size(self) -> int:
        """Patches."""
        return self.patches.shape[0] * self.patches.shape[1]

    def to(self, device: torch.device) -> PairBatch:
        """The same: nano is trained on the CPU."""
        return self


@dataclass(frozen=True)
class WindowBatch:
    """Windows with questions.

    Attributes:
        rows: packed; episodes first, then clips, then lookups.
        learn: (P,) bool, which temporal patches gradients flow through.
        states: of the last moments of the episodes' windows.
        events: of the clips' windows.
        branch: (V,) of each verdict token: which answer it belongs to.
        verdict: (V,) where it is among the answer tokens.
        group: (Q,) of each answer: index into GROUPS; those with reasoning are a group of their own, as they
            follow from it.
        lettered: (Q,) bool, whether its question has options.
        ends: (O, 2) row and column of the last token of each option of the windows' questions.
        letters: (O,) which of its question's options it is.
        fits: (O,) 1 for the right option, 0 for others.
        choices: (C, 3) of each letter that is answered: its row, the column that predicts it, and that of the
            last token of its option.
        names: (M, 2) row and column of the last token of each name in a question about a clip.
        shown: (S, 3) what a name is about: which name, mentions.LATEST or EARLIEST, and column.
        pairs: for the probes; nothing where the tower is not trained.
    """

    rows: RowBatch
    learn: Tensor
    states: States
    events: Events
    branch: Tensor
    verdict: Tensor
    group: Tensor
    lettered: Tensor
    ends: Tensor
    letters: Tensor
    fits: Tensor
    choices: Tensor
    names: Tensor
    shown: Tensor
    pairs: PairBatch | None

    @property
    def weight(self) -> float:
        """See loop.Batch."""
        return self.rows.weight

    @property
    def samples(self) -> int:
        """Questions."""
        return self.rows.samples

    @property
    def size(self) -> int:
        """Tokens."""
        return self.rows.size

    def to(self, device: torch.device) -> WindowBatch:
        """The same: nano is trained on the CPU."""
        return self


class World:
    """The training split in memory, and the model's way of seeing it.

    Args:
        episodes, clips: what to draw from.
        model: its preprocessor and tokenizer are used.
    """

    def __init__(self, episodes: EpisodeStore, clips: ClipStore, model: LoadedModel) -> None:
        self.episodes, self.clips = episodes, clips
        self.spec, self.tokenizer = model.spec, model.tokenizer
        side = self.spec.frame_size or (112, 112)
        self.visual_tokens = self.spec.patches.visual_tokens(
            self.spec.video_grid(2, *side, self.spec.fps).grid
        )

    def cut(self, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 frames to (T / 2, K', patch_dim) patches."""
        patches, grid = patchify(frames, self.spec.patches)
        return patches.reshape(grid[0], -1, patches.shape[-1])

    def pairs(self, settings: DrawSettings, processes: int, rng: np.random.Generator) -> PairBatch:
        """The moments of episodes and of clips that one of the processes draws."""
        robot, physics = settings.pair_counts(processes)
        patches, points, places, moments = [], [], [], []
        for _ in range(robot):
            drawn = self.episodes.draw(2, rng, settings.scene_shares)
            change = Augmentation(drawn.frames().shape[1:3], rng)
            patches.append(self.cut(change.frames(drawn.frames())))
            points.append(change.points(drawn.points()))
            places.append((drawn.episode, drawn.span.last))
        for _ in range(physics):
            clip, first = _moment(self.clips.draw(rng), rng)
            change = Augmentation(clip.frames.shape[1:3], rng, hue=False)
            shown = clip.frames[first : first + 2]
            puzzle = clip.variant == "puzzle"
            patches.append(self.cut(shown if puzzle else change.frames(shown)))
            moments.append((clip, first, None if puzzle else change.points))
        return PairBatch(
            torch.from_numpy(np.concatenate(patches)),
            states_of(places, HELD_OUT_TASKS),
            torch.tensor(np.stack(points), dtype=torch.float32),
            things_of(moments),
        )


def _moment(clip: Clip, rng: np.random.Generator) -> tuple[Clip, int]:
    """A pair of frames of a clip (a tile of a puzzle), by the first one."""
    shown, span = kinds.draw(clip, rng)
    return shown, span.first + 2 * int(rng.integers(span.length // 2))


@dataclass(frozen=True)
class _Window:
    """A window: its patches, its questions, the last moment of an episode's, or the clip as it is shown."""

    patches: np.ndarray
    samples: Sequence[SimSample]
    learn: np.ndarray
    place: Any = None
    happened: Any = None


class PairSource:
    """Batches of single temporal patches. Satisfies ``loop.BatchSource``.

    Args:
        world: to draw from.
        settings: how.
    """

    def __init__(self, world: World, settings: DrawSettings) -> None:
        self._world, self._settings = world, settings

    def batches(self, step: int, rank: int, world: int) -> Iterator[PairBatch]:
        """One batch."""
        rng = np.random.default_rng([self._settings.seed, step, rank, 1])
        yield self._world.pairs(self._settings, world, rng)

    def close(self) -> None:
        """Nothing to do."""


class WindowSource:
    """Batches of windows with questions. Satisfies ``loop.BatchSource``.

    Args:
        world: to draw from.
        settings: how.
    """

    def __init__(self, world: World, settings: DrawSettings) -> None:
        self._world, self._settings = world, settings

    def batches(self, step: int, rank: int, world: int) -> Iterator[WindowBatch]:
        """One batch; in a step, all processes' windows have video or not, and are about equally long."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, step, rank, 2])
        shared = np.random.default_rng([settings.seed, step, 3])  # or some would wait for the others
        video = shared.random() >= settings.no_video_share
        length = int(shared.choice(settings.lengths, p=settings.length_shares))
        windows = [self._episode(length, step, rng) for _ in range(settings.episodes // world)]
        windows += [self._clip(rng) for _ in range(settings.clips // world)]
        pairs = self._world.pairs(settings, world, rng) if settings.pairs else None
        yield self._pack(windows, video, world, rng, pairs)

    def close(self) -> None:
        """Nothing to do."""

    def _episode(self, length: int, step: int, rng: np.random.Generator) -> _Window:
        """The answer is about the last moment, so gradients flow through its pair of frames alone."""
        for _ in range(_TRIES):
            drawn = self._world.episodes.draw(length, rng, self._settings.scene_shares)
            # Held-out actions are no options either; another wrong one is drawn, or lettered questions about
            # the objects of held-out tasks would be rare.
            asked = questions(drawn.episode, drawn.span, rng, avoid=HELD_OUT_TEXTS)
            samples = [s for s in asked if not _mentions_held_out(s.query)]
            if step < self._settings.one_sided:
                samples = [s for s in samples if not _is_closing(s.query)]
            if samples:
                break
        frames = Augmentation(drawn.frames().shape[1:3], rng).frames(drawn.frames())
        learn = np.arange(length // 2) == length // 2 - 1
        order = [samples[i] for i in rng.permutation(len(samples))]
        order.sort(key=lambda sample: sample.query.kind is not QueryKind.COMPLETION)
        return _Window(
            self._world.cut(frames), order[: self._settings.branches], learn, (drawn.episode, drawn.span.last)
        )

    def _clip(self, rng: np.random.Generator) -> _Window:
        """Intuitive physics is asked first, then the others in random order."""
        for _ in range(_TRIES):
            clip, span = kinds.draw(self._world.clips.draw(rng), rng)
            samples = [s for _ in range(self._settings.asked) for s in kinds.questions_for(clip, span, rng)]
            samples = list({(s.query.question, bool(s.query.options)): s for s in samples}.values())
            if samples:
                break
        frames = clip.frames[span.first : span.last + 1]
        change = Augmentation(frames.shape[1:3], rng, hue=False)
        if clip.variant != "puzzle":
            frames = change.frames(frames)
        order = [samples[i] for i in rng.permutation(len(samples))]
        order.sort(key=lambda sample: sample.group not in kinds.INTUITIVE_PHYSICS)
        learn = rng.random(span.length // 2) < self._settings.clip_gradient
        learn[rng.integers(len(learn))] = True
        shown = self._world.cut(np.ascontiguousarray(frames))
        return _Window(
            shown, order[: self._settings.clip_branches], learn, happened=(clip, span, change.points)
        )

    def _pack(
        self,
        windows: list[_Window],
        video: bool,
        processes: int,
        rng: np.random.Generator,
        pairs: PairBatch | None,
    ) -> WindowBatch:
        world, spec, settings = self._world, self._world.spec, self._settings
        asked, groups = list[list[Asked]](), list[str]()
        for window in windows:
            asked.append([])
            for sample in window.samples:
                answers = _answers(world, sample, think=bool(rng.random() < settings.think_share))
                asked[-1] += answers
                groups += [sample.group or _OF_QUERY[sample.query.kind], REASONED][: len(answers)]
        side = spec.frame_size or (112, 112)
        grids = [[spec.video_grid(2 * len(w.patches), *side, spec.fps)] if video else [] for w in windows]
        patches = [w.patches.reshape(-1, w.patches.shape[-1]) for w in windows] if video else []
        lettered = [s.query for window in windows for s in window.samples if s.query.options]
        drill = lookups(lettered, settings.lookups // processes, world.tokenizer, VERDICT_WEIGHT, rng)
        branches = [[branch for _, _, branch in row] for row in asked + drill]
        rows = pack_rows(branches, grids + [[] for _ in drill], patches, world.tokenizer, spec)
        learn = np.concatenate([w.learn for w in windows]) if video else np.zeros(0, bool)
        places = [w.place for w in windows if w.place is not None]
        groups += [LOOKUP for row in drill for _ in row]
        prefixes = rows.prefixes.tolist()
        verdict, owner = verdicts([branch for row in branches for branch in row])
        options = option_places(world.tokenizer, asked + drill, prefixes, len(windows))
        shots = [(len(w.patches), w.happened) for w in windows] if video else []
        names = name_places(world.tokenizer, world.visual_tokens, shots, asked, prefixes)
        happened = [w.happened for w in windows if w.happened is not None]
        return WindowBatch(
            rows,
            torch.from_numpy(learn),
            states_of(places, HELD_OUT_TASKS),
            events_of(happened),
            owner,
            verdict,
            torch.tensor([GROUPS.index(group) for group in groups]),
            torch.tensor([bool(query.options) for row in asked + drill for query, _, _ in row]),
            *options,
            *names,
            pairs,
        )


def _mentions_held_out(query: Query) -> bool:
    return not HELD_OUT_TEXTS.isdisjoint((query.task, query.action, *query.options))


def _is_closing(query: Query) -> bool:
    return query.kind is QueryKind.COMPLETION and query.task in _CLOSING


def _answers(world: World, sample: SimSample, *, think: bool) -> list[Asked]:
    """The answer at once and, if wanted and there is one, the answer with reasoning."""
    query = sample.query
    direct = encode_answer(world.tokenizer, query, "", sample.answer, VERDICT_WEIGHT)
    # Whether to think is for whoever asks (the node's think_tokens) and nothing to be learned: else the model
    # would pass over thinking as often as it was trained to answer at once.
    first = direct.verdict[0]
    direct = replace(direct, weights=[0.0] * first + list(direct.weights[first:]))
    answers: list[Asked] = [(query, sample.answer, direct)]
    reasoning = reasoning_of(sample) if think else ""
    if reasoning:
        reasoned = encode_answer(world.tokenizer, query, reasoning, sample.answer, VERDICT_WEIGHT)
        weights = [max(weight, THOUGHT_WEIGHT) for weight in reasoned.weights]
        answers.append((query, sample.answer, replace(reasoned, question=[], weights=weights)))
    return answers


def reasoning_of(sample: SimSample) -> str:
    """The reasoning; of a lettered question it ends with the option's words, by which its letter is found."""
    query = sample.query
    if not (sample.reasoning and query.options):
        return sample.reasoning
    letters = [prompt.letter(index) for index in range(len(query.options))]
    return f"{sample.reasoning} {conclusion(query.options[letters.index(sample.answer)])}"
