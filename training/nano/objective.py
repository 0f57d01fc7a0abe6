# SPDX-License-Identifier: Apache-2.0
"""What nano is trained for, as modules for ``training.sft.loop``: batch to sums of losses and of measures.

    PairObjective      temporal patches -> tower -> probes
    AnswerObjective    windows -> tower -> packed questions -> language model -> answers, probes, pointers
                       temporal patches -> tower -> probes, as before (unless the tower is frozen)

Temporal patches that need no gradient are encoded without one; rows of like length are computed together.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from training.export.attention import rotate
from training.sft.rows import RowBatch

from .events import EventProbe
from .probe import PatchProbe, StateProbe, ThingProbe
from .source import GROUPS, PairBatch, WindowBatch

PROBE_WEIGHT = 0.5
OPTION_WEIGHT = 1.0
POINTER_WEIGHT = 16.0  # of a letter's pointer against a token of reasoning or format
MOST_LETTERS = 8  # of options that are told apart
# What is put together in one layer can be looked up in the next: first what the window shows, then which
# option that fits, then the answer.
_SUMMARY_LAYER, _OPTION_LAYER = 1, 2
_POINTING_LAYER, _POINTING_HEAD = 3, 0
_FINDING_LAYER, _FINDING_HEADS = 1, (3, 4)  # by mentions.LATEST, EARLIEST
_OF_WINDOWS = tuple(
    f"window_{name}"
    for name in ("probe", "openness_error", "placed", "tiles_right", "time_right", "gone_found", "place_loss")
)
_KEPT = (_FINDING_LAYER - 1, _SUMMARY_LAYER, _OPTION_LAYER)  # layers of which the output is used
_ROWS = 4  # computed together; windows differ in length, and padding costs as much as tokens


class Probes(nn.Module):
    """The places where truth is read off.

    ``patch``, ``thing``: a temporal patch's visual tokens, of an episode and of a clip. ``window``,
    ``events``: the language model at <|vision_end|>, which teaches it to find the newest moment of an
    episode's window, and what happened in a clip's, before any question is asked. ``option``: the language
    model at the end of each option: is it right? An answer's letter can then be looked up there; from letters
    alone it does not learn to compare options to the video. ``letter``: which letter does that option have?

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
        self.letter = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, MOST_LETTERS))


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
        self._frozen = False
        self._kept: dict[int, Tensor] = {}
        for layer in _KEPT:
            keep = functools.partial(self._keep, layer)
            model.network.model.language_model.layers[layer].register_forward_hook(keep)

    def freeze_tower(self, frozen: bool) -> None:
        """Leave the tower and its probes as they are (batches then need no pairs), or train them again."""
        self._frozen = frozen
        for part in (self._model.network.model.visual, self.probes.patch, self.probes.thing):
            part.requires_grad_(not frozen)

    def _keep(
        self, layer: int, _module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]
    ) -> None:
        self._kept[layer] = output if isinstance(output, Tensor) else output[0]

    def forward(self, batch: WindowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of weighted losses, and sums of measures."""
        model, rows = self._model, batch.rows
        features = self._features(batch) if rows.grids else None
        hidden, early, seen, judging = self._decode(rows, model.embed(rows.tokens, features))
        logits = model.logits(hidden[rows.rows, rows.columns])
        each = F.cross_entropy(logits.float(), rows.labels, reduction="none")
        loss = (each * rows.weights).sum()
        option_loss = self._option_loss(batch, seen, judging)
        pointer_loss, pointed = self._pointer_loss(batch, judging)
        probe_loss, measures = torch.zeros(()), dict[str, float]()
        if batch.pairs is not None:
            probe_loss, measures = pair_loss(model, self.probes.patch, self.probes.thing, batch.pairs)
        if features is not None:
            robot, clips = len(batch.states.scene), len(batch.events.whole)
            summary = seen[torch.arange(len(rows.prefixes)), rows.prefixes - 1]
            window_loss, found = self.probes.window(summary[:robot], batch.states)
            event_loss, happened = self.probes.events(summary[robot : robot + clips], batch.events)
            probe_loss = probe_loss + window_loss + event_loss
            measures |= {f"window_{name}": value for name, value in (found | happened).items()}
        else:
            # Averaging gradients over processes wants one of every parameter, and sums want the same names.
            unused = (*self.probes.window.parameters(), *self.probes.events.parameters())
            probe_loss = probe_loss + 0.0 * sum(p.sum() for p in unused)
            measures |= dict.fromkeys(_OF_WINDOWS, 0.0)
        scale = rows.weight  # the loop divides by it
        finding_loss, found_right = self._finding_loss(batch, early)
        loss = loss + POINTER_WEIGHT * pointer_loss
        loss = loss + scale * (OPTION_WEIGHT * option_loss + PROBE_WEIGHT * probe_loss + finding_loss)
        sums = {name: torch.tensor(value * scale) for name, value in measures.items()}
        sums |= {
            "option_loss": option_loss.detach() * scale,
            "pointed": pointed * scale,
            "found": found_right * scale,
        }
        return loss, sums | _right(batch, logits)

    def _option_loss(self, batch: WindowBatch, seen: Tensor, judging: Tensor) -> Tensor:
        """At the end of each option: is it right, and what is its letter?"""
        rows, columns = batch.ends.unbind(1)
        flags = self.probes.option(judging[rows, columns].float())[:, 0]
        loss = F.binary_cross_entropy_with_logits(flags, batch.fits, reduction="sum")
        named = self.probes.letter(seen[rows, columns].float())
        loss = loss + F.cross_entropy(named, batch.letters.clamp(max=MOST_LETTERS - 1), reduction="sum")
        return loss / max(len(flags), 1)

    def _pointer_loss(self, batch: WindowBatch, judging: Tensor) -> tuple[Tensor, Tensor]:
        """One head of the last layer shall look at the option whose letter comes next, at its end.

        From letters alone a model this small does not learn to compare words, or a video, to its options: for
        hours it says the letter that is right most often. Told where to look, it learns that in minutes.

        Returns:
            Sum over choices of -log of that head's attention there, and the share in which it is the most.
        """
        rows, columns, ends = batch.choices.unbind(1)
        scores = self._scores(_POINTING_LAYER, _POINTING_HEAD, judging, batch, rows, columns)
        right = (scores.argmax(-1) == ends).float().mean() if len(ends) else torch.zeros(())
        return F.cross_entropy(scores, ends, reduction="sum"), right

    def _finding_loss(self, batch: WindowBatch, early: Tensor) -> tuple[Tensor, Tensor]:
        """Two heads of the second layer shall look, from a name, at what it names: now, and when first seen.

        Returns:
            Mean over names of -log of the attention there, and the share in which the most is there.
        """
        rows, columns = batch.names.unbind(1)
        loss, right = torch.zeros(()), torch.zeros(())
        if not len(rows):
            return loss, right
        for when, head in enumerate(_FINDING_HEADS):
            name, _, column = batch.shown[batch.shown[:, 1] == when].unbind(1)
            target = torch.zeros(len(rows), early.shape[1], dtype=torch.bool)
            target[name, column] = True
            known = target.any(-1)
            scores = self._scores(_FINDING_LAYER, head, early, batch, rows, columns)[known]
            there = scores.masked_fill(~target[known], -torch.inf).logsumexp(-1)
            loss = loss + (scores.logsumexp(-1) - there).mean()
            right = right + target[known].gather(1, scores.argmax(-1, keepdim=True)).float().mean() / 2
        return loss, right

    def _scores(
        self, index: int, head: int, states: Tensor, batch: WindowBatch, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """(A, L) scores of a head of a layer, given (B, L, D) ``states``, from A places."""
        language = self._model.network.model.language_model
        layer = language.layers[index]
        channels = layer.self_attn.head_dim
        normed = layer.input_layernorm(states)
        query = layer.self_attn.q_proj(normed[rows, columns]).unflatten(-1, (-1, channels))
        key = layer.self_attn.k_proj(normed).unflatten(-1, (-1, channels))
        shared = query.shape[1] // key.shape[2]
        cos, sin = language.rotary_emb(normed, batch.rows.positions)
        query = rotate(query[:, head], cos[rows, columns], sin[rows, columns])
        key = rotate(key[:, :, head // shared], cos, sin)
        scores = torch.einsum("ad,ald->al", query, key[rows]) / math.sqrt(channels)
        return scores.masked_fill(~batch.rows.mask[rows, 0, columns], -torch.inf)

    def _decode(self, rows: RowBatch, embedded: Tensor) -> list[Tensor]:
        """(B, L, D) hidden states of the last layer and of those in ``_KEPT``; padding is zero."""
        states = [torch.zeros_like(embedded) for _ in range(1 + len(_KEPT))]
        for group in rows.lengths.argsort().split(_ROWS):
            end = int(rows.lengths[group].max())
            last = self._model.decode(
                embedded[group, :end],
                rows.positions[:, group, :end],
                attention_mask=rows.mask[group, :, :end, :end],
            )
            parts = last, *(self._kept.pop(layer) for layer in _KEPT)
            for whole, part in zip(states, parts, strict=True):
                whole[group, :end] = part
        return states

    def _features(self, batch: WindowBatch) -> Tensor:
        """(N, D) visual tokens of all windows."""
        patches = batch.rows.patches.view(len(batch.learn), -1, batch.rows.patches.shape[-1])
        if self._frozen:
            with torch.no_grad():
                return see(self._model, patches).flatten(0, 1)
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
