# SPDX-License-Identifier: Apache-2.0
"""What the batches of an engine work with, and how much work it was."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.decoder import Branches, Decoder
from ..models.fixed_step import FixedStep
from ..models.qwen2_5_vl import LoadedModel
from .drafts import Drafts
from .prefix import PrefixPool
from .vision_cache import VisionCache


@dataclass
class Counters:
    """Work done since the engine was made."""

    question_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0


@dataclass(eq=False)
class Machine:
    """What batches work with.

    Attributes:
        model: for embeddings.
        decoder: the language model.
        vision: features.
        prefixes: key/value caches of prefixes.
        masks: forbidden tokens on the device, by id() of the grammar's array.
        counters: of work.
        drafts: earlier answers to guess from; None: nothing is guessed.
        fixed: the language model at fixed shapes, to run ahead with; None: steps are waited for.
        most_spare: regions kept for the next batches, at most.
    """

    model: LoadedModel
    decoder: Decoder
    vision: VisionCache
    prefixes: PrefixPool
    masks: dict[int, Tensor]
    counters: Counters = field(default_factory=Counters)
    drafts: Drafts | None = None
    fixed: FixedStep | None = None
    most_spare: int = 0
    _spare: list[Branches] = field(default_factory=list)  # longest unused first

    def regions(self, count: int, capacity: int) -> Branches:
        """Regions for ``count`` branches of ``capacity`` tokens: kept ones that are large enough, or new."""
        fitting = [one for one in self._spare if one.regions >= count and one.capacity >= capacity]
        if not fitting:
            return self.decoder.new_branches(count, -(-capacity // 64) * 64)
        # Steps at fixed shapes attend to all of a region, so small ones are better.
        smallest = min(fitting, key=lambda one: one.capacity * one.regions)
        self._spare.remove(smallest)
        return smallest

    def give_back(self, regions: Branches) -> None:
        """Keep regions that no batch uses any more; the longest unused go where there are too many."""
        self._spare.append(regions)
        del self._spare[: max(0, len(self._spare) - self.most_spare)]

    def wait(self) -> None:
        """Let the device finish, so that times are true and a step is a step."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
