# SPDX-License-Identifier: Apache-2.0
"""Supervised training: first the vision tower on single temporal patches, then the whole model on questions.

    train_vision     temporal patches -> tower -> probe loss
    train_answers    windows -> tower -> packed questions -> language model -> loss on answers
                     temporal patches -> tower -> probe loss, as before

Most of a window's cost is the tower. An answer is about its last moment, and temporal patches are
independent of each other in the tower, so only the last one of a window is differentiated: the gradient is
that of the answer loss through the newest pair of frames, at a third of the price.

Both are resumable at any step: data are drawn from (seed, step, rank), not from a running generator. Under
torch.distributed every process draws its own batch and gradients are averaged once a step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.types import QueryKind
from cosmos_reason_node.vision.patchify import patchify
from training.data.sample import Sample
from training.data.sim.questions import questions
from training.data.sim.scenes import SCENES

from . import checkpoint
from .augment import Augmentation
from .packing import Packed, encode_branch, pack
from .probe import StateProbes, states_of
from .windows import Drawn, EpisodeStore

_Loss = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]  # of step and its randomness
_CLOSING = {skill.task for scene in SCENES for skill in scene.skills if not skill.opens}


@dataclass(frozen=True)
class TrainSettings:
    """How to train. Counts are of optimizer steps and windows.

    Attributes:
        steps: length of the run.
        batch: windows (temporal patches in ``train_vision``) a step and process.
        peak_rate, final_rate: learning rate after the warm-up and at the end, cosine in between.
        tower_rate: learning rate of the vision tower, as a share of that of the rest.
        warm_up: steps of linear warm-up.
        weight_decay: of matrices; vectors have none.
        clip_norm: gradients are scaled to at most this norm.
        lengths, length_shares: frames of windows and how often each is drawn.
        branches: most questions asked of a window in a step; whether a task is complete comes first.
        one_sided: steps in which completion is asked of opening tasks only. A state that completes one task
            of a scene undoes the other: asked of both equally, state and answer do not correlate before the
            task's wording is taken into account, and the model stays at chance for long.
        think_share: share of targets with reasoning; the others answer at once.
        no_video_share: share of steps without video: makes "the same model without video" a fair baseline.
        probe_weight: of the probe loss in ``train_answers``.
        probe_patches: temporal patches for it, apart from the windows.
        bf16: autocast to bfloat16; pays only on processors that multiply in it.
        save_s: seconds between checkpoints.
        seed: of data and order.
    """

    steps: int
    batch: int = 16
    peak_rate: float = 1.5e-3
    final_rate: float = 1e-5
    tower_rate: float = 1.0
    warm_up: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    lengths: tuple[int, ...] = (2, 8, 32)
    length_shares: tuple[float, ...] = (0.55, 0.2, 0.25)
    branches: int = 3
    one_sided: int = 0
    think_share: float = 0.4
    no_video_share: float = 0.05
    probe_weight: float = 0.5
    probe_patches: int = 24
    bf16: bool = False
    save_s: float = 240.0
    seed: int = 0


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then cosine to the final rate."""
    if step < settings.warm_up:
        return settings.peak_rate * (step + 1) / settings.warm_up
    done = min(1.0, (step - settings.warm_up) / max(1, settings.steps - settings.warm_up))
    span = settings.peak_rate - settings.final_rate
    return settings.final_rate + span * 0.5 * (1.0 + math.cos(math.pi * done))


def make_probes(model: LoadedModel) -> StateProbes:
    """Probes that fit the model."""
    return StateProbes(model.network.lm_head.weight.shape[1])


def train_vision(
    model: LoadedModel, probe: StateProbes, store: EpisodeStore, settings: TrainSettings, directory: Path
) -> None:
    """Warm up the vision tower so that an object's state can be read off single temporal patches."""
    modules: dict[str, nn.Module] = {"visual": model.network.model.visual, "probe": probe}

    def loss_of(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return _probe_loss(model, probe, store, settings.batch, rng, settings)

    _run("vision", modules, settings, directory, loss_of)


def train_answers(
    model: LoadedModel, probe: StateProbes, store: EpisodeStore, settings: TrainSettings, directory: Path
) -> None:
    """Train the whole model on questions."""
    modules: dict[str, nn.Module] = {"network": model.network, "probe": probe}

    def loss_of(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        one_sided = step < settings.one_sided
        length = int(rng.choice(settings.lengths, p=settings.length_shares))
        drawn = [store.draw(length, rng) for _ in range(settings.batch)]
        if rng.random() < settings.no_video_share:
            packed = _pack(model, drawn, rng, settings, one_sided, video=False)
            loss, _, _ = _answer_loss(model, packed, None, settings)
            return loss, {"no_video": loss.item()}
        packed = _pack(model, drawn, rng, settings, one_sided, video=True)
        features = _window_features(model, drawn, rng, settings)
        loss, right, summary = _answer_loss(model, packed, features, settings)
        states = states_of([(d.episode, d.span.last) for d in drawn])
        window_loss, window_measures = probe.window(summary, states)
        probe_loss, measures = _probe_loss(model, probe, store, settings.probe_patches, rng, settings)
        probe_loss = probe_loss + window_loss
        measures |= {f"window_{name}": value for name, value in window_measures.items()}
        measures = {"answers": loss.item(), "right": right, **measures}
        return loss + settings.probe_weight * probe_loss, measures

    _run("answers", modules, settings, directory, loss_of)


def _autocast(settings: TrainSettings) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if settings.bf16 else contextlib.nullcontext()


def _probe_loss(
    model: LoadedModel,
    probe: StateProbes,
    store: EpisodeStore,
    count: int,
    rng: np.random.Generator,
    settings: TrainSettings,
) -> tuple[Tensor, dict[str, float]]:
    """Probe loss on ``count`` temporal patches, each of its own episode and moment."""
    drawn = [store.draw(2, rng) for _ in range(count)]
    patches, points = _patches(model, drawn, rng)
    features = _see(model, patches.flatten(0, 2), len(drawn), settings)
    return probe.patch(features, states_of([(d.episode, d.span.last) for d in drawn]), points)


def _patches(model: LoadedModel, drawn: list[Drawn], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Augmented windows of one length.

    Returns:
        (B, t, rows of a temporal patch, patch_dim) patches, and (B, 2, 2) where hand and handle appear in
        each window's newest frame.
    """
    rows, points = [], []
    for window in drawn:
        frames = window.frames()
        change = Augmentation(frames.shape[1:3], rng)
        patches, grid = patchify(change.frames(frames), model.spec.patches)
        rows.append(patches.reshape(grid[0], -1, patches.shape[-1]))
        points.append(change.points(window.points()))
    return torch.from_numpy(np.stack(rows)), torch.tensor(np.stack(points), dtype=torch.float32)


def _see(model: LoadedModel, patches: Tensor, count: int, settings: TrainSettings) -> Tensor:
    """(count, K, D) visual tokens of ``count`` temporal patches given as rows."""
    height, width = model.spec.frame_size or (112, 112)
    _, h, w = model.spec.patches.grid(2, height, width)
    with _autocast(settings):
        features = model.visual_features(patches, [(count, h, w)])
    return features.view(count, -1, features.shape[-1])


def _window_features(
    model: LoadedModel, drawn: list[Drawn], rng: np.random.Generator, settings: TrainSettings
) -> Tensor:
    """(N, D) visual tokens of all windows; gradients flow through each window's last temporal patch only."""
    patches, _ = _patches(model, drawn, rng)
    count, times = patches.shape[:2]
    newest = _see(model, patches[:, -1].flatten(0, 1), count, settings)
    if times == 1:
        return newest.flatten(0, 1)
    with torch.no_grad():
        older = _see(model, patches[:, :-1].flatten(0, 2), count * (times - 1), settings)
    older = older.view(count, times - 1, *older.shape[1:])
    return torch.cat([older, newest[:, None]], dim=1).flatten(0, 2)


def choose_questions(
    samples: list[Sample], most: int, one_sided: bool, rng: np.random.Generator
) -> list[Sample]:
    """Questions of a window for one step: see ``branches`` and ``one_sided`` of TrainSettings."""
    if one_sided:
        kept = [
            sample
            for sample in samples
            if sample.query.kind is not QueryKind.COMPLETION or sample.query.task not in _CLOSING
        ]
        samples = kept or samples
    order = [samples[i] for i in rng.permutation(len(samples))]
    order.sort(key=lambda sample: sample.query.kind is not QueryKind.COMPLETION)
    return order[:most]


def _pack(
    model: LoadedModel,
    drawn: list[Drawn],
    rng: np.random.Generator,
    settings: TrainSettings,
    one_sided: bool,
    *,
    video: bool,
) -> Packed:
    windows = []
    for window in drawn:
        chosen = choose_questions(
            questions(window.episode, window.span, rng), settings.branches, one_sided, rng
        )
        windows.append(
            [
                encode_branch(model.tokenizer, sample, think=bool(rng.random() < settings.think_share))
                for sample in chosen
            ]
        )
    count, height, width = drawn[0].frames().shape[:3]
    grid = model.spec.video_grid(count, height, width, model.spec.fps) if video else None
    return pack(windows, model.tokenizer, model.spec, grid)


def _answer_loss(
    model: LoadedModel, packed: Packed, features: Tensor | None, settings: TrainSettings
) -> tuple[Tensor, float, Tensor]:
    """Weighted cross-entropy, share of verdict tokens predicted right, (B, D) at <|vision_end|>."""
    with _autocast(settings):
        embedded = model.embed(packed.tokens, features)
        hidden = model.decode(embedded, packed.positions, attention_mask=packed.mask)
        logits = model.logits(hidden[packed.rows, packed.columns])
    each = F.cross_entropy(logits.float(), packed.labels, reduction="none")
    verdicts = packed.weights > 1.0
    right = (logits.argmax(-1) == packed.labels)[verdicts].float().mean().item()
    loss = (each * packed.weights).sum() / packed.weights.sum()
    return loss, right, hidden[:, packed.shared - 1]


def _groups(modules: dict[str, nn.Module], settings: TrainSettings) -> list[dict[str, object]]:
    unique = {
        id(p): (name, p) for module in modules.values() for name, p in module.named_parameters()
    }.values()
    return [
        {
            "params": [p for name, p in unique if ("visual." in name) == tower and (p.ndim >= 2) == matrix],
            "weight_decay": settings.weight_decay if matrix else 0.0,
            "rate": settings.tower_rate if tower else 1.0,
        }
        for tower in (False, True)
        for matrix in (True, False)
    ]


def _run(
    name: str, modules: dict[str, nn.Module], settings: TrainSettings, directory: Path, loss_of: _Loss
) -> None:
    optimizer = torch.optim.AdamW(_groups(modules, settings), lr=settings.peak_rate, betas=(0.9, 0.95))
    first = checkpoint.resume(directory, modules, optimizer)
    for module in modules.values():
        module.train()
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    meter = _Meter(name, first, settings, world)
    saved = time.monotonic()
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings) * group["rate"]
        loss, measures = loss_of(step, np.random.default_rng([settings.seed, step, rank]))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of step {step} is not finite: lower peak_rate or try bf16=False"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        if rank:
            continue
        meter.add(step, measures)
        last = step + 1 == settings.steps
        if last or time.monotonic() - saved > settings.save_s:
            checkpoint.save(directory, step + 1, modules, optimizer)
            saved = time.monotonic()
    for module in modules.values():
        module.eval()


def _average_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Make every process's gradients their mean. A step that leaves a parameter out counts as zero for it."""
    if world == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    start = 0
    for parameter in parameters:
        size = parameter.numel()
        parameter.grad = flat[start : start + size].view_as(parameter)
        start += size


class _Meter:
    """Prints means of the measures, throughput and remaining time."""

    def __init__(self, name: str, first: int, settings: TrainSettings, world: int, every: int = 20) -> None:
        self._name, self._first, self._settings, self._every = name, first, settings, every
        self._world = world
        self._started = time.monotonic()
        self._sums: dict[str, list[float]] = {}

    def add(self, step: int, measures: dict[str, float]) -> None:
        for key, value in measures.items():
            self._sums.setdefault(key, []).append(value)
        if (step + 1) % self._every and step + 1 != self._settings.steps:
            return
        seconds = (time.monotonic() - self._started) / (step + 1 - self._first)
        means = "  ".join(f"{key} {np.mean(values):.3f}" for key, values in self._sums.items())
        rate = self._settings.batch * self._world / seconds
        minutes = seconds * (self._settings.steps - step - 1) / 60
        done = f"{self._name} {step + 1}/{self._settings.steps}"
        print(f"{done}  {means}  {rate:.1f}/s  {minutes:.1f} min left", flush=True)
        self._sums.clear()
