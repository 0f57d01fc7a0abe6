# SPDX-License-Identifier: Apache-2.0
"""Mamba-2 layers whose state is the caller's: it can be kept, copied to branches, and gone on from.

transformers' modules hold the weights. Its own forward pass goes on from a state too, but only through its
cache, for rows of one length; here rows of a batch may differ in length, each from a state of its own.

Two traps. (1) transformers 5.x bounds the step size from below by ``time_step_min``, a constant meant for
initialisation, when it reads a prompt, and not when it writes; the published models were trained without
(``time_step_limit`` is 0 to infinity), and here that holds for every token. (2) Padding must not move the
state: its step size is set to 0, by which a state is multiplied with 1 and nothing is added.

Mamba-2: arXiv 2405.21060, whose chunked algorithm ``scan`` is. Axes: B rows, L tokens, D hidden size, F
channels of the convolution, W its width, H heads of C channels, N state size, G groups of heads that write
and read alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class State:
    """What a layer remembers of each row.

    Attributes:
        inputs: (B, F, W - 1), what the convolution saw last.
        memory: (B, H, C, N) float32.
    """

    inputs: Tensor
    memory: Tensor


def widths(mixer: Any) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Sizes of a row's state: (F, W - 1) and (H, C, N)."""
    shape = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
    return (mixer.conv_dim, mixer.conv_kernel_size - 1), shape


def mix(mixer: Any, hidden: Tensor, state: State, lengths: Tensor) -> tuple[Tensor, State]:
    """Take tokens through a layer.

    Args:
        mixer: transformers' NemotronHMamba2Mixer.
        hidden: (B, L, D), normalised; rows are padded at the end.
        state: before them; not changed.
        lengths: (B,) tokens of each row that are none of padding, at least 1.

    Returns:
        (B, L, D), and the state after each row's last token.
    """
    length = hidden.shape[1]
    sizes = [mixer.intermediate_size, mixer.conv_dim, mixer.num_heads]
    gate, mixed, step = mixer.in_proj(hidden).split(sizes, -1)
    seen = torch.cat((state.inputs.to(mixed.dtype), mixed.transpose(1, 2)), -1)  # (B, F, W - 1 + L)
    last = lengths[:, None] + torch.arange(state.inputs.shape[-1], device=hidden.device)
    inputs = seen.gather(2, last[:, None].expand(-1, seen.shape[1], -1))
    conv = mixer.conv1d
    mixed = mixer.act(F.conv1d(seen, conv.weight, conv.bias, groups=seen.shape[1])).transpose(1, 2)
    shared = mixer.n_groups * mixer.ssm_state_size
    values, write, read = mixed.split([mixer.intermediate_size, shared, shared], -1)
    step = F.softplus(step.float() + mixer.dt_bias.float()).clamp(*mixer.config.time_step_limit)
    padding = torch.arange(length, device=hidden.device) >= lengths[:, None]
    out, memory = scan(
        values.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        step.masked_fill(padding[..., None], 0.0),
        -torch.exp(mixer.A_log.float()),
        write.unflatten(-1, (mixer.n_groups, -1)),
        read.unflatten(-1, (mixer.n_groups, -1)),
        mixer.D.float(),
        state.memory,
        mixer.chunk_size,
    )
    out = mixer.norm(out.flatten(2).to(hidden.dtype), gate)
    return mixer.out_proj(out), State(inputs, memory)


def scan(
    values: Tensor,
    step: Tensor,
    decay: Tensor,
    write: Tensor,
    read: Tensor,
    skip: Tensor,
    memory: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The recurrence ``m = exp(step * decay) m + step * values (x) write``, ``out = m read + skip * values``.

    Args:
        values: (B, L, H, C).
        step: (B, L, H) float32, 0 for padding.
        decay: (H,) float32, negative.
        write: (B, L, G, N), B of the paper.
        read: (B, L, G, N), C of the paper.
        skip: (H,).
        memory: (B, H, C, N) float32, before the first token.
        chunk: tokens that are computed together.

    Returns:
        (B, L, H, C) float32, and the memory after the last token.
    """
    kernel = _kernel(values)
    if kernel is not None:  # mamba-ssm's; adds ``skip`` itself
        more = {"D": skip, "initial_states": memory, "return_final_states": True}
        out, memory = kernel(values, step, decay, write, read, chunk, **more)
        return out.float(), memory.float()
    values, write, read = values.float(), write.float(), read.float()
    if values.shape[1] == 1:
        return _token(values, step[:, 0], decay, write, read, skip, memory)
    groups = write.shape[2]
    weighed = (values * step[..., None]).unflatten(2, (groups, -1))  # (B, L, G, H/G, C)
    rates = (step * decay).unflatten(2, (groups, -1))
    memory = memory.unflatten(1, (groups, -1))
    parts = []
    for at in range(0, values.shape[1], chunk):
        own = slice(at, at + chunk)
        part, memory = _chunk(weighed[:, own], rates[:, own].cumsum(1), write[:, own], read[:, own], memory)
        parts.append(part)
    out = torch.cat(parts, 1).flatten(2, 3)
    return out + values * skip[:, None], memory.flatten(1, 2)


def _token(
    values: Tensor, step: Tensor, decay: Tensor, write: Tensor, read: Tensor, skip: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """``scan`` of one token of each row: the recurrence itself."""
    share = values.shape[2] // write.shape[2]
    write, read = (part[:, 0].repeat_interleave(share, 1) for part in (write, read))  # (B, H, N)
    value = values[:, 0]
    new = (value * step[..., None])[..., None] * write[:, :, None]
    memory = torch.addcmul(new, memory, (step * decay).exp()[..., None, None])
    out = torch.matmul(memory, read[..., None])[..., 0]
    return torch.addcmul(out, value, skip[:, None])[:, None], memory


def _chunk(
    weighed: Tensor, fallen: Tensor, write: Tensor, read: Tensor, memory: Tensor
) -> tuple[Tensor, Tensor]:
    """Some tokens at once. ``fallen`` (B, L, G, K): log of what is left of the memory before them."""
    after = fallen[:, -1:]
    left = fallen[:, :, None] - fallen[:, None]  # (B, L, S, G, K), from token S to token L
    later = torch.ones(left.shape[1:3], dtype=torch.bool, device=left.device).triu(1)
    left = left.masked_fill(later[..., None, None], -torch.inf).exp()
    scores = torch.einsum("blgn,bsgn->blsg", read, write)[..., None] * left
    out = torch.einsum("blsgk,bsgkc->blgkc", scores, weighed)
    out = out + torch.einsum("blgn,bgkcn->blgkc", read, memory) * fallen.exp()[..., None]
    kept = weighed * (after - fallen).exp()[..., None]
    memory = memory * after[:, 0].exp()[..., None, None]
    return out, memory + torch.einsum("bsgkc,bsgn->bgkcn", kept, write)


def _kernel(values: Tensor) -> Any:
    """mamba-ssm's scan on a GPU, where that package is installed; else None."""
    return _mamba_ssm() if values.is_cuda else None


@functools.cache  # Python does not remember that an import failed, and looks for the package anew each time
def _mamba_ssm() -> Any:
    """The scan of mamba-ssm; None where it is not installed."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return None
    return mamba_chunk_scan_combined
