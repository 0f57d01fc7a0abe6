# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: greedy or nucleus sampling, and choices with their confidence. V = vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Sampling


def branch_generator(sampling: Sampling, branch: int) -> torch.Generator:
    """The random numbers of one branch: they do not depend on how branches take turns, nor on the device."""
    return torch.Generator().manual_seed((sampling.seed * 1_000_003 + branch) % 2**63)


def sample_token(
    logits: Tensor, forbidden: Tensor, sampling: Sampling, generator: torch.Generator
) -> tuple[int, float]:
    """Choose one token.

    Args:
        logits: (V,).
        forbidden: (V,) bool.
        sampling: temperature and nucleus.
        generator: of the branch, on the CPU.

    Returns:
        The token and its log probability under the model (temperature 1, forbidden tokens left out).
    """
    allowed = logits.float().masked_fill(forbidden, -torch.inf)
    log_probs = allowed.log_softmax(-1)
    if sampling.temperature <= 0:
        value, token = log_probs.max(-1)
        return int(token), float(value)
    tempered = (allowed / sampling.temperature).softmax(-1)
    token_index = _nucleus(tempered, sampling.top_p, generator)
    return token_index, float(log_probs[token_index])


def choose(
    logits: Tensor,
    groups: Sequence[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
    calibration: float = 1.0,
) -> tuple[int, float]:
    """Choose one group of tokens by its summed probability.

    Args:
        logits: (V,).
        groups: ids of each choice, not empty.
        sampling: temperature and nucleus.
        generator: of the branch, on the CPU.
        calibration: temperature of the confidence alone; it never changes which group wins.

    Returns:
        The choice and its probability among the groups.
    """
    scores = torch.stack([logits[list(group)].float().logsumexp(-1) for group in groups])
    confidences = (scores / calibration).softmax(-1)
    if sampling.temperature <= 0:
        value, index = confidences.max(-1)
        return int(index), float(value)
    index_sampled = _nucleus((scores / sampling.temperature).softmax(-1), sampling.top_p, generator)
    return index_sampled, float(confidences[index_sampled])


def _nucleus(probs: Tensor, top_p: float, generator: torch.Generator) -> int:
    """Sample by inverse distribution function from the smallest set whose mass reaches ``top_p``."""
    ordered, ids = probs.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    kept = int((cumulative - ordered < top_p).sum())
    point = float(torch.rand((), generator=generator)) * float(cumulative[kept - 1])
    position = int(torch.searchsorted(cumulative[:kept], point, right=True))
    return int(ids[min(position, kept - 1)])
