# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens: greedy or nucleus sampling, and choices with their confidence.

B = rows, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Sampling


def branch_generator(sampling: Sampling, branch: int) -> torch.Generator:
    """The random numbers of one branch: they do not depend on how branches take turns, nor on the device."""
    return torch.Generator().manual_seed((sampling.seed * 1_000_003 + branch) % 2**63)


def draw(sampling: Sampling, generator: torch.Generator) -> float:
    """The random number in [0, 1) that decides a row's next token; greedy ones need none."""
    return float(torch.rand((), generator=generator)) if sampling.temperature > 0 else 0.0


def sample_tokens(
    logits: Tensor, forbidden: Tensor, samplings: Sequence[Sampling], points: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Choose the next token of every row, without waiting for the device.

    Args:
        logits: (B, V).
        forbidden: (B, V) or (V,) bool.
        samplings: of each row.
        points: of each row, see ``draw``.

    Returns:
        (B,) tokens and (B,) log probabilities under the model (temperature 1, forbidden tokens left out);
        a row of logits that are not finite has a log probability that is not finite.
    """
    allowed = logits.float().masked_fill(forbidden, -torch.inf)
    log_probs = allowed.log_softmax(-1)
    best, tokens = log_probs.max(-1)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    if not warm:
        return tokens, best

    def there(values: Sequence[float] | Sequence[int]) -> Tensor:
        # Pinned memory, or the copy would wait for the device.
        return torch.tensor(values, pin_memory=logits.is_cuda).to(logits.device, non_blocking=True)

    # Each row by its own way, or what it says would depend on whom it shares a step with.
    for cut in (False, True):
        chosen = [row for row in warm if (samplings[row].top_p < 1) == cut]
        if not chosen:
            continue
        rows, at = there(chosen), there([points[row] for row in chosen])[:, None]
        probs = (allowed[rows] / there([samplings[row].temperature for row in chosen])[:, None]).softmax(-1)
        if cut:
            drawn = _nucleus(probs, there([samplings[row].top_p for row in chosen])[:, None], at)
        else:
            drawn = _invert(probs, at)
        tokens = tokens.index_copy(0, rows, drawn)
    return tokens, log_probs.gather(1, tokens[:, None])[:, 0]


def choose(
    logits: Tensor,
    groups: Sequence[Sequence[int]],
    sampling: Sampling,
    point: float,
    calibration: float = 1.0,
) -> tuple[int, list[float]]:
    """Choose one group of tokens by its summed probability.

    Args:
        logits: (V,).
        groups: ids of each choice, not empty.
        sampling: temperature and nucleus.
        point: see ``draw``.
        calibration: temperature of the probabilities alone; it never changes which group wins.

    Returns:
        The choice, and the probability of each group among the groups.
    """
    scores = torch.stack([logits[list(group)].float().logsumexp(-1) for group in groups])
    probabilities = (scores / calibration).softmax(-1).tolist()
    if sampling.temperature <= 0:
        return max(range(len(groups)), key=probabilities.__getitem__), probabilities
    tempered = (scores / sampling.temperature).softmax(-1)[None]
    top_p, at = (torch.tensor([[x]], device=logits.device) for x in (sampling.top_p, point))
    return int(_nucleus(tempered, top_p, at)), probabilities


def _invert(probs: Tensor, points: Tensor) -> Tensor:
    """Sample by inverse distribution function from all tokens, in the vocabulary's order: nothing is sorted.

    Args:
        probs: (B, V).
        points: (B, 1) in [0, 1).

    Returns:
        (B,) ids.
    """
    cumulative = probs.cumsum(-1)
    position = (cumulative <= points * cumulative[:, -1:]).sum(-1, keepdim=True)
    # A point next to 1 can be rounded up to the whole mass.
    return torch.where(position < probs.shape[-1], position, probs.argmax(-1, keepdim=True))[:, 0]


def _nucleus(probs: Tensor, top_p: Tensor, points: Tensor) -> Tensor:
    """Sample by inverse distribution function from the smallest set whose mass reaches ``top_p``.

    Args:
        probs: (B, V).
        top_p: (B, 1).
        points: (B, 1) in [0, 1).

    Returns:
        (B,) ids.
    """
    ordered, ids = probs.sort(descending=True, stable=True)
    cumulative = ordered.cumsum(-1)
    last = (cumulative - ordered < top_p).sum(-1, keepdim=True).clamp(min=1) - 1
    reached = points * cumulative.gather(1, last)
    position = torch.minimum((cumulative <= reached).sum(-1, keepdim=True), last)
    return ids.gather(1, position)[:, 0]
