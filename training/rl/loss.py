# SPDX-License-Identifier: Apache-2.0
"""The loss of a sampled token: clipped policy gradient, importance correction, reverse KL. A = tokens.

    ratio      p / p_old, clipped to [1 - low, 1 + high]; p_old: what the token was sampled with, or with
               ``importance_cap`` the trainer's weights at the iteration's start
    weight     min(p_old / p_sampled, cap), constant: the token came from older weights, or another kernel
    KL         weight * ratio * k3(p, p_reference): see below

k3 = q/p - log(q/p) - 1 is a good *estimate* of KL(p || q) where tokens come from p, but the mean of its own
derivative is that of KL(q || p), the other direction. The mean of (p / p_sampled) * k3 over tokens that were
sampled *is* KL(p || q), so its derivative, through the ratio as well, is the right one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_LOG = 20.0  # of a ratio; beyond, exp() has no meaning left


@dataclass(frozen=True)
class LossSettings:
    """The numbers of GrpoConfig that the loss needs."""

    clip_low: float
    clip_high: float
    importance_cap: float
    kl_coefficient: float


def token_losses(
    log_probs: Tensor,
    sampled: Tensor,
    advantages: Tensor,
    settings: LossSettings,
    *,
    proximal: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses to be averaged, and measures.

    Args:
        log_probs: (A,) of the tokens under the weights that are trained; carries gradients.
        sampled: (A,) those that they were sampled with.
        advantages: (A,) of the answers that they belong to.
        settings: see GrpoConfig.
        proximal: (A,) under the weights at the iteration's start; None: those are the present ones.
        reference: (A,) under the reference; None: no KL term.

    Returns:
        (A,) losses, and (A,) "kl", "clip_fraction", "importance".
    """
    own = log_probs.detach()
    capped = settings.importance_cap > 0
    old = (own if proximal is None else proximal) if capped else sampled
    ratio = (log_probs - old).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
    bounded = ratio.clamp(1.0 - settings.clip_low, 1.0 + settings.clip_high)
    gain = torch.minimum(ratio * advantages, bounded * advantages)
    importance = (old - sampled).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp()
    weight = importance.clamp(max=settings.importance_cap) if capped else torch.ones_like(own)
    losses = -weight * gain
    kl = torch.zeros_like(own)
    if reference is not None:
        apart = (reference - log_probs).clamp(-_LARGEST_LOG, _LARGEST_LOG)
        k3 = apart.exp() - apart - 1.0
        losses = losses + settings.kl_coefficient * weight * ratio * k3
        kl = k3.detach()
    measures = {
        "kl": kl,
        "clip_fraction": (ratio * advantages > bounded * advantages).float(),
        "importance": (own - sampled).clamp(-_LARGEST_LOG, _LARGEST_LOG).exp(),
    }
    return losses, measures
