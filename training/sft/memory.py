# SPDX-License-Identifier: Apache-2.0
"""How much memory a run needs on each device, estimated from the architecture before any weight is loaded.

Activations are counted tensor by tensor as transformers' Qwen2.5-VL saves them for the backward pass; a test
compares the estimate with torch's own accounting of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from cosmos_reason_node.models import parts
from cosmos_reason_node.models.spec import read_model_spec

from .config import ConfigError, SftConfig
from .data import Row
from .parallel import Context

_RESERVE = 0.9  # share of the free memory that a run may plan with; the rest is fragmentation and kernels


@dataclass(frozen=True)
class PassSize:
    """Bounds of the largest forward pass on one device.

    Attributes:
        tokens: rows x longest row.
        length: of the longest row.
        patches: rows of the vision tower.
        answers: tokens that logits are computed for.
    """

    tokens: int
    length: int
    patches: int
    answers: int


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        total: of the network.
        trained: that require gradients.
        largest_block: of the largest decoder layer or vision block.
        outside: of no block: embeddings, head, merger.
    """

    total: int
    trained: int
    largest_block: int
    outside: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device.

    Attributes:
        weights: parameters, copies in another type and gathered shards included.
        gradients, moments: of the trained ones.
        activations: kept for the backward pass.
        logits: with their gradient.
    """

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.activations + self.logits

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(value)}" for name, value in vars(self).items())
        return f"{_size(self.total)} on each device: {parts}"


def largest_pass(rows: Sequence[Row], max_tokens: int, batch: int, merge: int) -> PassSize:
    """Bounds over all passes that can be made of ``rows`` with ``batch`` rows a step and device."""
    length = max(row.length for row in rows)
    tokens = max(length, min(max_tokens, batch * length))
    patches = max(row.visual / row.length for row in rows) * tokens * merge**2
    answers = max(row.answers / row.length for row in rows) * tokens
    return PassSize(tokens, length, round(patches), round(answers))


def count_parameters(model_dir: Path, config: SftConfig) -> Parameters:
    """Counts of a checkpoint's architecture, from its config.json; nothing is allocated."""
    from transformers import AutoConfig

    from .lora import add_adapters

    kind = parts.network_class(hybrid=read_model_spec(model_dir).hybrid)
    with torch.device("meta"):
        architecture = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        network: Any = kind._from_config(architecture)
        if config.model.lora:
            add_adapters(network, config.model.lora, 0)
    if not config.model.train_vision:
        for part in parts.tower(network):
            part.requires_grad_(False)
    sizes = [sum(p.numel() for p in block.parameters()) for block in parts.blocks(network)]
    total = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Parameters(total, trained, max(sizes), total - sum(sizes))


def estimate(
    architecture: dict[str, Any], count: Parameters, size: PassSize, config: SftConfig, world: int
) -> Estimate:
    """What one of ``world`` devices has to hold.

    Args:
        architecture: config.json.
        count: of its parameters.
        size: of the largest pass.
        config: of the run.
        world: processes, one a device.
    """
    held = 2 if config.model.weights == "bfloat16" else 4
    compute = 2 if config.model.compute == "bfloat16" else 4
    trained_bytes = 4 if config.model.lora else held
    if world == 1:
        # Autocast keeps a cast copy of every weight until the pass ends.
        weights = count.total * (held + (compute if compute != held else 0))
    else:
        gathered = 2 * count.largest_block + count.outside
        weights = count.total * held // world + gathered * compute
    gradients = count.trained * trained_bytes // world
    if world > 1 and not config.model.lora:
        gradients += (count.largest_block + count.outside) * (compute + 4)  # before they are shared out
    return Estimate(
        weights=weights,
        gradients=gradients,
        moments=2 * count.trained * trained_bytes // world,
        activations=_activations(architecture, size, config, held, compute, world),
        logits=size.answers * _text(architecture)["vocab_size"] * (compute + 12),
    )


def _activations(
    architecture: dict[str, Any], size: PassSize, config: SftConfig, held: int, compute: int, world: int
) -> int:
    """Tensors that autograd keeps. ``stream`` is the type of the residual stream, in bytes."""
    text, vision = _text(architecture), architecture["vision_config"]
    if text.get("model_type") == "nemotron_h":
        return _hybrid_activations(text, vision, size, config)
    stream = held if world == 1 else compute
    cast = compute if stream != compute else 0  # each product casts its own input
    wide, narrow = text["hidden_size"], _key_width(text)
    # stream twice, norms in float32 twice, product inputs, q (rotated in two parts), k and v, spread over
    # heads, attended, gated feed-forward
    decoder = 2 * stream * wide + 2 * 4 * wide + (5 * cast or 2 * compute) * wide
    decoder += compute * (3 * wide + 4 * narrow + 2 * wide + 2 * wide + 4 * text["intermediate_size"])
    decoder += compute * size.length  # the mask as numbers
    side = vision["hidden_size"]
    tower = 2 * stream * side + 2 * 4 * side + (3 * cast or 2 * compute) * side
    tower += 16 * side + compute * 7 * side + compute * 4 * vision["intermediate_size"]
    if config.model.lora:
        # Frozen matrices keep no inputs; adapters keep them cast, and dropout's mask.
        mask = 2 if config.model.lora.dropout else 0
        inner = text["intermediate_size"]
        decoder += (
            (compute + mask) * (6 * wide + inner)
            - compute * (wide + inner)
            - (5 * cast or 2 * compute) * wide
        )
        tower += (compute + mask) * (4 * side + vision["intermediate_size"])
    layers, blocks = text["num_hidden_layers"], vision["depth"]
    patches = size.patches if _vision_learns(config) else 0
    if config.model.checkpointing:
        kept = size.tokens * stream * wide * layers + patches * stream * side * blocks
        return kept + max(size.tokens * decoder, size.patches * tower)
    return size.tokens * decoder * layers + max(patches * tower * blocks, size.patches * tower)


def _hybrid_activations(
    text: dict[str, Any], vision: dict[str, Any], size: PassSize, config: SftConfig
) -> int:
    """The same of a hybrid, whose branches are rows of their own; all counted as float32.

    Recurrent layers are counted as plain torch computes them, every head with its own copy of what its group
    writes and reads, and a matrix a chunk; mamba-ssm's kernels keep a small part of that.
    """
    wide, heads, inner = text["hidden_size"], text["mamba_num_heads"], text["mamba_head_dim"]
    state, groups, chunk = text["ssm_state_size"], text["n_groups"], text["chunk_size"]
    attended = text["head_dim"] * (3 * text["num_attention_heads"] + 4 * text["num_key_value_heads"])
    layers = {
        "linear_attention": heads * (7 * state + 8 * chunk + 14 * inner) + 6 * groups * state,
        "full_attention": attended + size.length,
        "mlp": 3 * text["intermediate_size"],
    }
    counts = {kind: text["layers_block_type"].count(kind) for kind in layers}
    each = {kind: 4 * (values + 4 * wide) for kind, values in layers.items()}
    side = vision["hidden_size"]
    tower, depth = 4 * (12 * side + 3 * vision["intermediate_size"]), vision["num_hidden_layers"]
    patches = size.patches if _vision_learns(config) else 0
    if config.model.checkpointing:
        kept = 4 * (size.tokens * wide * sum(counts.values()) + patches * side * depth)
        return kept + max(size.tokens * max(each.values()), size.patches * tower)
    decoder = size.tokens * sum(each[kind] * counts[kind] for kind in layers)
    return decoder + max(patches * tower * depth, size.patches * tower)


def _vision_learns(config: SftConfig) -> bool:
    lora = config.model.lora
    return config.model.train_vision and (lora is None or lora.vision)


class Sized(Protocol):
    """An estimate; its text lists the parts."""

    @property
    def total(self) -> int:
        """Bytes."""
        ...


@dataclass(frozen=True)
class Fit:
    """An estimate beside what there is.

    Attributes:
        line: says both.
        device: it fits the device.
        host: what is loaded fits the host's memory.
        spare: bytes that the host has for each process.
    """

    line: str
    device: bool
    host: bool
    spare: int


def fit(estimated: Sized, host: int, context: Context) -> Fit:
    """Compare with what the device and the host have.

    Args:
        estimated: for one device.
        host: bytes that each process needs in the host's memory while it loads.
        context: this process.
    """
    spare = psutil.virtual_memory().available // context.per_host
    cuda = context.device.type == "cuda"
    free = torch.cuda.mem_get_info(context.device)[0] if cuda else spare
    where = f"{context.device} has" if cuda else f"each of {context.per_host} processes has"
    return Fit(
        f"memory estimate: {estimated}; {where} {_size(free)} free",
        device=estimated.total <= _RESERVE * free,
        host=not cuda or host <= _RESERVE * spare,
        spare=spare,
    )


def check(estimated: Estimate, host: int, config: SftConfig, context: Context) -> str:
    """Compare with what there is.

    Args:
        estimated: for one device.
        host: bytes that each process needs in the host's memory while it loads.
        config: of the run.
        context: this process.

    Returns:
        A line to print.

    Raises:
        ConfigError: it does not fit, with what to change; not with ``run.check_memory`` off.
    """
    found = fit(estimated, host, context)
    if not config.run.check_memory:
        return found.line
    if not found.device:
        raise ConfigError(
            f"{found.line}. {_advice(estimated, config)}, or run.check_memory: false to try anyway"
        )
    if not found.host:
        raise ConfigError(
            f"each of {context.per_host} processes loads {_size(host)} into the host's memory, which has "
            f"{_size(found.spare)} for each: start fewer processes on this machine, take model.weights "
            "bfloat16 with lora, or run.check_memory: false to try anyway"
        )
    return found.line


def _advice(estimated: Estimate, config: SftConfig) -> str:
    advice = []
    if estimated.activations + estimated.logits > estimated.total // 4:
        if not config.model.checkpointing:
            advice.append("set model.checkpointing: true")
        advice.append(f"lower data.max_tokens (now {config.data.max_tokens})")
    if config.model.lora is None:
        advice.append("train adapters (model.lora)")
    elif config.model.weights == "float32":
        advice.append("set model.weights: bfloat16")
    advice.append(f"share the model among more GPUs (run.processes, now {config.run.processes})")
    return "To fit: " + ", or ".join(advice)


def _text(architecture: dict[str, Any]) -> dict[str, Any]:
    return architecture.get("text_config") or architecture


def _key_width(text: dict[str, Any]) -> int:
    return text["hidden_size"] * text["num_key_value_heads"] // text["num_attention_heads"]


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
