# SPDX-License-Identifier: Apache-2.0
"""What an export is to make, worked out from the checkpoint's description alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cosmos_reason_node.engine.manifest import PRECISIONS, Dimensions
from cosmos_reason_node.models.spec import CONFIG, ModelSpec, read_json

from .targets import TARGETS, Target

# Activations by precision; quantised weights are unpacked to it.
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
CACHE_STEP, MAX_ROWS, MAX_OWN, MAX_PATCHES = 64, 512, 2048, 16
OPSETS = (18, 21, 23)
_LEAST_OPSET = {"int8-wo": 21, "int4-awq": 21, "fp8": 21}
_CAMERAS = 2  # whose full windows fit into a prefix
_TEXT_ROOM = 256  # of a prefix, for what is not video
_CAMERA_SIZE = (480, 640)  # assumed for a model without a frame size of its own
_BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8-wo": 1.0, "int4-awq": 0.53}
_WORKING_BYTES = 1.5e9  # Python, torch, parser and builder with nothing loaded


class PlanError(Exception):
    """What was asked for cannot be exported; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """One export.

    Attributes:
        model: checkpoint directory.
        spec: its description.
        target: GPU generation.
        precision: of PRECISIONS.
        opset: of the ONNX files.
        dimensions: of the graphs.
        parameters: of vision tower and decoder together.
        tower: of them, those of the vision tower.
    """

    model: Path
    spec: ModelSpec
    target: Target
    precision: str
    opset: int
    dimensions: Dimensions
    parameters: int
    tower: int

    @property
    def dtype(self) -> str:
        """Of activations, features and cache."""
        return DTYPES.get(self.precision, "float16")

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.dimensions.frame_height, self.dimensions.frame_width

    @property
    def export_bytes(self) -> float:
        """Memory that writing the graphs takes: the weights once, and the largest tensor on its way out.

        Precisions that are calibrated measure in float32.
        """
        each = 2.0 if self.precision in ("fp16", "bf16") else 4.0
        largest = self.dimensions.vocabulary * self.dimensions.hidden
        return self.parameters * each + 2 * largest * each + _WORKING_BYTES

    @property
    def build_bytes(self) -> float:
        """Memory that building takes: the decoder's weights as parsed, as chosen, and as they are written."""
        return build_bytes((self.parameters - self.tower) * _BYTES[self.precision])

    @property
    def device_bytes(self) -> float:
        """GPU memory of weights and one key/value cache."""
        sizes = self.dimensions
        each = 4.0 if self.dtype == "float32" else 2.0
        cache = (
            2 * sizes.layers * sizes.key_heads * sizes.channels * (sizes.max_prefix + sizes.max_own) * each
        )
        quantised = self.parameters - self.tower
        return quantised * _BYTES[self.precision] + self.tower * each + cache


def build_bytes(weights: float) -> float:
    """Memory that building takes for a decoder with so many bytes of weights."""
    return 3 * weights + _WORKING_BYTES


def make_plan(
    model: Path,
    spec: ModelSpec,
    target: str,
    precision: str,
    *,
    opset: int = 0,
    frame_size: tuple[int, int] | None = None,
    max_tokens: int = 0,
) -> Plan:
    """Work out an export.

    Args:
        model: checkpoint directory, whose files are whole.
        spec: its description.
        target: name of a GPU generation.
        precision: of PRECISIONS.
        opset: of the ONNX files; 0: the target's usual one.
        frame_size: (height, width); None: the model's, or what it makes of a 640x480 camera.
        max_tokens: of system text and videos; 0: full windows of two cameras.

    Raises:
        PlanError: with what to change.
    """
    if precision not in PRECISIONS:
        raise PlanError(f"--precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if target not in TARGETS:
        raise PlanError(f"--target must be one of {', '.join(TARGETS)}, not {target!r}")
    chosen = TARGETS[target]
    if precision not in chosen.precisions:
        raise PlanError(
            f"{target} ({chosen.boards}) does not compute {precision}: take {', '.join(chosen.precisions)}"
        )
    config = read_json(model / CONFIG)
    vision, text = config["vision_config"], config.get("text_config") or config
    if frame_size is None:
        frame_size = spec.frame_size_for(*_CAMERA_SIZE)
    try:
        _, h, w = spec.patches.grid(spec.patches.temporal_patch, *frame_size)
    except ValueError as error:
        raise PlanError(f"--frame-size: {error}") from error
    heads = int(text["num_attention_heads"])
    hidden, vocabulary = int(text["hidden_size"]), int(text.get("vocab_size") or config["vocab_size"])
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    tokens = h * w // spec.patches.merge**2
    windows = spec.window_frames // spec.patches.temporal_patch * tokens
    wanted = max_tokens or min(_CAMERAS * windows + _TEXT_ROOM, spec.max_position)
    least_tokens = min(windows + _TEXT_ROOM, spec.max_position)
    if wanted < least_tokens:
        raise PlanError(f"--max-tokens {wanted}: a full window and its text have {least_tokens}")
    if wanted > spec.max_position:
        raise PlanError(f"--max-tokens {wanted}: the model knows {spec.max_position} positions")
    if opset not in (0, *OPSETS):
        raise PlanError(f"--opset must be one of {', '.join(map(str, OPSETS))}, not {opset}")
    least = _LEAST_OPSET.get(precision, OPSETS[0])
    if 0 < opset < least:
        raise PlanError(f"--opset {opset} has no {precision} weights: take {least} or more")
    dimensions = Dimensions(
        frame_height=frame_size[0],
        frame_width=frame_size[1],
        patch_rows=h * w,
        patch_dim=spec.patches.patch_dim,
        patch_tokens=tokens,
        max_patches=MAX_PATCHES,
        layers=int(text["num_hidden_layers"]),
        key_heads=int(text["num_key_value_heads"]),
        channels=int(text.get("head_dim") or hidden // heads),
        hidden=hidden,
        vocabulary=vocabulary,
        max_rows=MAX_ROWS,
        cache_step=CACHE_STEP,
        max_prefix=math.ceil(wanted / CACHE_STEP) * CACHE_STEP,
        max_own=MAX_OWN,
        theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1e6),
        sections=tuple(int(size) for size in rope["mrope_section"]),
    )
    whole, tower = count_parameters(vision, text, vocabulary, spec.patches.patch_dim, spec.patches.merge)
    return Plan(model, spec, chosen, precision, opset or max(chosen.opset, least), dimensions, whole, tower)


def count_parameters(
    vision: dict, text: dict, vocabulary: int, patch_dim: int, merge: int
) -> tuple[int, int]:
    """Parameters of a checkpoint (embedding and output apart even where they are tied), and its tower's."""
    wide, deep = int(vision["hidden_size"]), int(vision["depth"])
    inner, joined = int(vision.get("intermediate_size", 4 * wide)), wide * merge**2
    out = int(vision.get("out_hidden_size", text["hidden_size"]))
    tower = patch_dim * wide + deep * (4 * wide * wide + 3 * wide * inner) + joined * (joined + out)
    hidden, layers = int(text["hidden_size"]), int(text["num_hidden_layers"])
    keys = hidden * int(text["num_key_value_heads"]) // int(text["num_attention_heads"])
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * int(text["intermediate_size"])
    return tower + layers * layer + 2 * vocabulary * hidden, tower


def describe(plan: Plan) -> list[str]:
    """What is to be made, for people."""
    sizes = plan.dimensions
    return [
        f"{plan.spec.model_id}: {plan.parameters / 1e6:,.0f} M parameters, {plan.precision}, for "
        f"{plan.target.name} ({plan.target.boards}), opset {plan.opset}",
        f"frames of {sizes.frame_height}x{sizes.frame_width}, {sizes.patch_tokens} visual tokens a temporal "
        f"patch, up to {sizes.max_prefix} tokens before the questions",
        f"memory: about {plan.export_bytes / 1e9:.1f} GB to write the graphs, "
        f"{plan.build_bytes / 1e9:.1f} GB to build engines, {plan.device_bytes / 1e9:.1f} GB on the GPU with "
        "one cache",
    ]
