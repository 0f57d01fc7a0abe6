# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint directory says about itself, read without torch: the node needs it early.

``cosmos_reason.json`` is this project's own, optional file in a checkpoint directory; a directory without it
(the released Cosmos-Reason1-7B) gets the released inference settings: 32 frames at 4 fps, at most 448x448
pixels a frame.

    {"window_frames": 32, "fps": 4.0, "frame_height": 112, "frame_width": 112, "max_pixels": 12544,
     "confidence_temperature": 1.2, "temperature": {"completion": 1.3}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CosmosReasonError, ErrorCode
from ..types import QueryKind
from ..vision.patchify import CLIP_MEAN, CLIP_STD, PatchSpec
from ..vision.resize import DEFAULT_MAX_PIXELS, target_size
from .mrope import MropeTime, VideoGrid, prompt_positions

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
TOKENIZER = "tokenizer.json"
OWN = "cosmos_reason.json"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
HYBRID_ARCHITECTURE = "InternVLForConditionalGeneration"  # around a Nemotron-H language model
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_WINDOW_FRAMES = 768
_OWN_KEYS = {
    "window_frames",
    "fps",
    "frame_height",
    "frame_width",
    "max_pixels",
    "temperature",
    "confidence_temperature",
}


@dataclass(frozen=True)
class ModelSpec:
    """Facts of a checkpoint that callers build windows and prompts from.

    Attributes:
        model_id: name of the directory.
        patches: how frames are cut and scaled.
        window_frames: frames of a full window, even.
        fps: frames per second of the window's time grid.
        frame_size: fixed (height, width) of frames, or None: derived from the camera's with ``max_pixels``.
        max_pixels: most pixels of a frame.
        temperature: by query kind (lower-case name), the calibration that confidences are computed with.
        confidence_temperature: the same for kinds without one of their own; fitted by
            ``python -m training.eval calibrate``.
        hybrid: InternViT and Nemotron-H instead of Qwen2.5-VL (models/hybrid.py).
        video_token: id of the placeholder <|video_pad|>.
        tokens_per_second: of M-RoPE's time axis.
        max_position: positions the language model was made for.
    """

    model_id: str
    patches: PatchSpec
    window_frames: int
    fps: float
    frame_size: tuple[int, int] | None
    max_pixels: int
    video_token: int
    tokens_per_second: float
    max_position: int
    temperature: Mapping[str, float] = field(default_factory=dict)
    confidence_temperature: float = 1.0
    hybrid: bool = False

    def require_qwen(self) -> ModelSpec:
        """This; INVALID_REQUEST for a hybrid, from what takes Qwen2.5-VL alone."""
        if self.hybrid:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"{self.model_id} is a hybrid model (Nemotron-H), which engine torch and training take; "
                "export to graphs takes Qwen2.5-VL (docs/hybrid.md)",
            )
        return self

    def calibration(self, kind: QueryKind) -> float:
        """Temperature of the confidences of a kind of query."""
        return self.temperature.get(kind.name.lower(), self.confidence_temperature)

    def frame_size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the model sees of a camera image of this size."""
        return self.frame_size or target_size(height, width, self.max_pixels, self.patches.factor)

    def video_grid(self, frames: int, height: int, width: int, fps: float) -> VideoGrid:
        """Grid of a video of ``frames`` frames of height x width pixels, ``fps`` frames a second.

        The pace is that of the time grid (window.TimeGrid), whose ticks are whole nanoseconds, so that a
        window's own ``fps`` and the number that a data set states give the same positions.
        """
        period_ns = round(1e9 / fps)
        return VideoGrid(
            self.patches.grid(frames, height, width), self.patches.temporal_patch * period_ns / 1e9
        )

    def positions(
        self, tokens: list[int], videos: list[VideoGrid], mrope_time: MropeTime = "float"
    ) -> tuple[Any, int]:
        """``mrope.prompt_positions`` with this checkpoint's constants."""
        return prompt_positions(
            tokens,
            videos,
            video_token=self.video_token,
            merge=self.patches.merge,
            tokens_per_second=self.tokens_per_second,
            mrope_time=mrope_time,
        )


def read_model_spec(model_dir: str | Path) -> ModelSpec:
    """Read and check a checkpoint's description.

    Raises:
        CosmosReasonError: MODEL_NOT_FOUND (no such directory) or MODEL_INVALID, with the file and what to do.
    """
    directory = Path(model_dir).expanduser()
    if not directory.is_dir():
        raise CosmosReasonError(
            ErrorCode.MODEL_NOT_FOUND,
            f"there is no checkpoint directory {str(model_dir)!r}: give the path of a local directory in "
            "Hugging Face layout",
        )
    config = read_json(directory / CONFIG)
    hybrid = _is_hybrid(directory, config)
    preprocessor = read_json(directory / PREPROCESSOR) if (directory / PREPROCESSOR).exists() else {}
    own = read_json(directory / OWN) if (directory / OWN).exists() else {}
    try:
        spec = _build(directory.resolve().name, config, preprocessor, own, hybrid)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise invalid(directory, f"{CONFIG}, {PREPROCESSOR} or {OWN}: {reason}") from error
    return spec


def _is_hybrid(directory: Path, config: dict[str, Any]) -> bool:
    """Which of the two families it is; MODEL_INVALID when it is neither."""
    named = config.get("architectures") or [ARCHITECTURE]
    named = named if isinstance(named, list) else []
    if ARCHITECTURE in named and config.get("model_type") in ("qwen2_5_vl", None):
        return False
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    if HYBRID_ARCHITECTURE in named and inner == "nemotron_h":
        return True
    around = f" around {inner}" if HYBRID_ARCHITECTURE in named else ""
    raise invalid(
        directory / CONFIG,
        f"the architecture is {config.get('architectures') or config.get('model_type')}{around}, "
        f"expected {ARCHITECTURE}, or {HYBRID_ARCHITECTURE} around nemotron_h",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; CosmosReasonError(MODEL_INVALID) when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise invalid(path, "the file is missing") from error
    except (OSError, ValueError) as error:
        raise invalid(path, f"not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise invalid(path, "expected a JSON object")
    return value


def invalid(path: Path, reason: str) -> CosmosReasonError:
    """The error of a damaged checkpoint."""
    return CosmosReasonError(
        ErrorCode.MODEL_INVALID, f"{path}: {reason}; copy the checkpoint anew or choose another directory"
    )


def _build(
    model_id: str, config: dict[str, Any], preprocessor: dict[str, Any], own: dict[str, Any], hybrid: bool
) -> ModelSpec:
    vision = config["vision_config"]
    text = config.get("text_config") or config
    unknown = sorted(set(own) - _OWN_KEYS)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    if hybrid:  # frames are seen one by one
        side, sides = _square(vision, "patch_size"), [_square(vision, "image_size")] * 2
        temporal, merge, mean, std = 1, round(1 / config["downsample_ratio"]), IMAGENET_MEAN, IMAGENET_STD
        own = {"frame_height": sides[0], "frame_width": sides[1]} | own
    else:
        side = int(vision["patch_size"] if "patch_size" in vision else vision["spatial_patch_size"])
        temporal, merge = int(vision.get("temporal_patch_size", 2)), int(vision.get("spatial_merge_size", 2))
        mean, std = CLIP_MEAN, CLIP_STD
    patches = PatchSpec(
        patch=side,
        temporal_patch=temporal,
        merge=merge,
        mean=_channels(preprocessor.get("image_mean", mean)),
        std=_channels(preprocessor.get("image_std", std)),
    )
    if min(patches.patch, patches.temporal_patch, patches.merge) < 1:
        raise ValueError(
            "patch_size, temporal_patch_size and spatial_merge_size must be at least 1, not "
            f"{patches.patch}, {patches.temporal_patch} and {patches.merge}"
        )
    if not all(map(math.isfinite, (*patches.mean, *patches.std))) or min(patches.std) <= 0:
        raise ValueError(
            f"image_mean must be finite and image_std above 0, not {patches.mean} and {patches.std}"
        )
    spec = ModelSpec(
        model_id=model_id,
        patches=patches,
        window_frames=int(own.get("window_frames", 32)),
        fps=float(own.get("fps", 4.0)),
        frame_size=_frame_size(own, patches.factor),
        max_pixels=int(own.get("max_pixels", DEFAULT_MAX_PIXELS)),
        video_token=int(config["image_token_id" if hybrid else "video_token_id"]),
        tokens_per_second=float(vision.get("tokens_per_second", 4)),
        max_position=int(text["max_position_embeddings"]),
        temperature={str(k): float(v) for k, v in dict(own.get("temperature") or {}).items()},
        confidence_temperature=float(own.get("confidence_temperature", 1.0)),
        hybrid=hybrid,
    )
    if not 2 <= spec.window_frames <= MAX_WINDOW_FRAMES or spec.window_frames % patches.temporal_patch:
        raise ValueError(f"window_frames must be even, 2 to {MAX_WINDOW_FRAMES}, not {spec.window_frames}")
    if not (math.isfinite(spec.tokens_per_second) and spec.tokens_per_second >= 0):
        raise ValueError(f"tokens_per_second must be 0 or more, not {spec.tokens_per_second}")
    if spec.max_position < 1:
        raise ValueError(f"max_position_embeddings must be at least 1, not {spec.max_position}")
    if not 0.1 <= spec.fps <= 60:
        raise ValueError(f"fps must be between 0.1 and 60, not {spec.fps}")
    if spec.max_pixels < patches.factor**2:
        raise ValueError(f"max_pixels must be at least {patches.factor**2}, not {spec.max_pixels}")
    if not (math.isfinite(spec.confidence_temperature) and spec.confidence_temperature > 0):
        raise ValueError(f"confidence_temperature must be above 0, not {spec.confidence_temperature}")
    kinds = {kind.name.lower() for kind in QueryKind}
    for kind, temperature in spec.temperature.items():
        if kind not in kinds or not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(
                f"temperature of {kind!r} is {temperature}; kinds are {', '.join(sorted(kinds))}"
            )
    return spec


def _square(vision: dict[str, Any], name: str) -> int:
    """A side that may be given twice, for height and width."""
    value = vision[name]
    sides = {int(side) for side in (value if isinstance(value, list | tuple) else [value])}
    if len(sides) != 1:
        raise ValueError(f"{name} must be square, not {value}")
    return sides.pop()


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return (red, green, blue)


def _frame_size(own: dict[str, Any], factor: int) -> tuple[int, int] | None:
    sides = own.get("frame_height"), own.get("frame_width")
    if sides == (None, None):
        return None
    if None in sides:
        raise ValueError("frame_height and frame_width must be given together")
    height, width = (int(side) for side in sides)  # type: ignore[arg-type]
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(f"frame sides must be multiples of {factor}, not {height}x{width}")
    return height, width
