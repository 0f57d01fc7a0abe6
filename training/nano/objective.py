# SPDX-License-Identifier: Apache-2.0
"""What nano is trained for, as modules for ``training.sft.loop``: batch to sums of losses and of measures.

    PairObjective      temporal patches -> tower -> probes
    AnswerObjective    windows -> tower -> packed questions -> language model -> answers, probes
                       temporal patches -> tower -> probes, as before

Temporal patches that need no gradient are encoded without one; rows of like length are computed together.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from training.sft.rows import RowBatch

from .events import EventProbe
from .probe import PatchProbe, StateProbe, ThingProbe
from .source import GROUPS, PairBatch, WindowBatch

PROBE_WEIGHT = 0.5
OPTION_WEIGHT = 1.0
# What is put together in one layer can be looked up in the next: first what the window shows, then which
# option that fits, then the answer.
_SUMMARY_LAYER, _OPTION_LAYER = 1, 2
_OF_WINDOWS = tuple(
    f"window_{name}"
    for name in ("probe", "openness_error", "placed", "tiles_right", "time_right", "gone_found", "place_loss")
)
_ROWS = 4  # computed together; windows differ in length, and padding costs as much as tokens


class Probes(nn.Module):
    """The places where truth is read off.

    ``patch``, ``thing``: a temporal patch's visual tokens, of an episode and of a clip. ``window``,
    ``events``: the language model at <|vision_end|>, which teaches it to find the newest moment of an
    episode's window, and what happened in a clip's, before any question is asked. ``option``: the language
    model at the end of each option: is it right? An answer's letter can then be looked up there; from letters
    alone it does not learn to compare options to the video.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patch = PatchProbe(hidden)
        self.thing = ThingProbe(hidden)
        self.window = StateProbe(hidden)
        self.events = EventProbe(hidden)
        self.option = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 1))


class PairObjective(nn.Module):
    """The tower and its probes.

    Args:
        model: nano.
        probes: read-outs.
    """

    def __init__(self, model: LoadedModel, probes: Probes) -> None:
        super().__init__()
        self.visual, self.patch, self.thing = model.network.model.visual, probes.patch, probes.thing
        self._model = model

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (of weight 1) and measures."""
        loss, measures = pair_loss(self._model, self.patch, self.thing, batch)
        return loss, {name: torch.tensor(value) for name, value in measures.items()}


def pair_loss(
    model: LoadedModel, patch: PatchProbe, thing: ThingProbe, batch: PairBatch
) -> tuple[Tensor, dict[str, float]]:
    """Mean probe loss on temporal patches, and measures."""
    features = see(model, batch.patches)
    robot = len(batch.points)
    loss, measures = patch(features[:robot], batch.states, batch.points)
    thing_loss, found = thing(features[robot:], batch.things)
    return loss + thing_loss, measures | found


def see(model: LoadedModel, patches: Tensor) -> Tensor:
    """(P, K, D) visual tokens of (P, K', patch_dim) temporal patches."""
    height, width = model.spec.frame_size or (112, 112)
    _, h, w = model.spec.patches.grid(2, height, width)
    return model.visual_features(patches.flatten(0, 1), [(len(patches), h, w)]).view(
        len(patches), -1, model.network.config.text_config.hidden_size
    )


class AnswerObjective(nn.Module):
    """The whole model and the probes.

    Args:
        model: nano.
        probes: read-outs.
    """

    def __init__(self, model: LoadedModel, probes: Probes) -> None:
        super().__init__()
        self.network: nn.Module = model.network
        self.probes = probes
        self._model = model
        self._kept: dict[int, Tensor] = {}
        for layer in (_SUMMARY_LAYER, _OPTION_LAYER):
            keep = functools.partial(self._keep, layer)
            model.network.model.language_model.layers[layer].register_forward_hook(keep)

    def _keep(
        self, layer: int, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> None:
        self._kept[layer] = output if isinstance(output, Tensor) else output[0]

    def forward(self, batch: WindowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of weighted losses, and sums of measures."""
        model, rows = self._model, batch.rows
        features = self._features(batch) if rows.grids else None
        hidden, seen, judging = self._decode(rows, model.embed(rows.tokens, features))
        logits = model.logits(hidden[rows.rows, rows.columns])
        each = F.cross_entropy(logits.float(), rows.labels, reduction="none")
        loss = (each * rows.weights).sum()
        flags = self.probes.option(judging[batch.ends[:, 0], batch.ends[:, 1]].float())[:, 0]
        option_loss = F.binary_cross_entropy_with_logits(flags, batch.fits, reduction="sum") / max(
            len(flags), 1
        )
        probe_loss, measures = pair_loss(model, self.probes.patch, self.probes.thing, batch.pairs)
        if features is not None:
            robot = len(batch.states.scene)
            summary = seen[torch.arange(len(rows.prefixes)), rows.prefixes - 1]
            window_loss, found = self.probes.window(summary[:robot], batch.states)
            event_loss, happened = self.probes.events(summary[robot:], batch.events)
            probe_loss = probe_loss + window_loss + event_loss
            measures |= {f"window_{name}": value for name, value in (found | happened).items()}
        else:
            # Averaging gradients over processes wants one of every parameter, and sums want the same names.
            unused = (*self.probes.window.parameters(), *self.probes.events.parameters())
            probe_loss = probe_loss + 0.0 * sum(p.sum() for p in unused)
            measures |= dict.fromkeys(_OF_WINDOWS, 0.0)
        scale = rows.weight  # the loop divides by it
        loss = loss + scale * (OPTION_WEIGHT * option_loss + PROBE_WEIGHT * probe_loss)
        sums = {name: torch.tensor(value * scale) for name, value in measures.items()}
        return loss, sums | {"option_loss": option_loss.detach() * scale} | _right(batch, logits)

    def _decode(self, rows: RowBatch, embedded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) hidden states of the last layer, of the summary and of the options; padding is zero."""
        states = tuple(torch.zeros_like(embedded) for _ in range(3))
        for group in rows.lengths.argsort().split(_ROWS):
            end = int(rows.lengths[group].max())
            last = self._model.decode(
                embedded[group, :end],
                rows.positions[:, group, :end],
                attention_mask=rows.mask[group, :, :end, :end],
            )
            parts = last, self._kept.pop(_SUMMARY_LAYER), self._kept.pop(_OPTION_LAYER)
            for whole, part in zip(states, parts, strict=True):
                whole[group, :end] = part
        return states[0], states[1], states[2]

    def _features(self, batch: WindowBatch) -> Tensor:
        """(N, D) visual tokens of all windows."""
        patches = batch.rows.patches.view(len(batch.learn), -1, batch.rows.patches.shape[-1])
        learnt = see(self._model, patches[batch.learn])
        if bool(batch.learn.all()):
            return learnt.flatten(0, 1)
        with torch.no_grad():
            other = see(self._model, patches[~batch.learn])
        order = torch.empty(len(patches), dtype=torch.long)
        order[torch.cat([batch.learn.nonzero()[:, 0], (~batch.learn).nonzero()[:, 0]])] = torch.arange(
            len(patches)
        )
        return torch.cat([learnt, other])[order].flatten(0, 1)


@torch.no_grad()
def _right(batch: WindowBatch, logits: Tensor) -> dict[str, Tensor]:
    """Questions, and those whose answer is predicted right, by group; lettered ones apart."""
    tokens = (logits.argmax(-1) == batch.rows.labels)[batch.verdict].float()
    right = torch.ones(len(batch.group)).scatter_reduce(0, batch.branch, tokens, "amin")
    sums = {}
    for lettered in (False, True):
        for number, name in enumerate(GROUPS):
            chosen = (batch.group == number) & (batch.lettered == lettered)
            key = f"{name}{'_letters' if lettered else ''}"
            sums[f"{key}/right"], sums[f"{key}/asked"] = right[chosen].sum(), chosen.sum()
    return sums
