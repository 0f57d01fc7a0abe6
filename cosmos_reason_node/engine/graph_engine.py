# SPDX-License-Identifier: Apache-2.0
"""The engine on exported graphs, TensorRT's or ONNX Runtime's.

Scheduling, caches and grammar are those of the engine on torch, which this is: features by frame pair,
prefixes kept from one request to the next, branches advanced together. What differs is below them: which
decoder runs, and where its keys and values lie (``graph_model``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.mrope import MropeTime
from ..models.qwen2_5_vl import parse_device
from ..models.spec import ModelSpec
from ..types import ModelInfo, Window
from ..vision.patchify import patchify
from .base import Request
from .batch import Batch
from .grammar import Vocabulary
from .graph_model import GraphDecoder, GraphModel
from .graphs import Executor, OnnxExecutor
from .manifest import PARTS, Manifest, check_files, check_model, engine_name, onnx_name, read_manifest
from .prefix import PrefixPool
from .run import FORCED_TOKENS
from .spec import EngineSpec
from .torch import TorchEngine
from .vision_cache import Pair, VisionCache

_KEPT_PREFIXES = 2


def load_graph_engine(spec: EngineSpec, directory: Path, model: ModelSpec) -> GraphEngine:
    """The engine on the folder of an export, with TensorRT or ONNX Runtime ("onnx").

    Raises:
        CosmosReasonError: the folder is damaged, or does not fit this machine, with what to do.
    """
    manifest = read_manifest(directory)
    check_model(manifest, model)
    device = parse_device(
        ("cpu" if spec.kind == "onnx" else "cuda") if spec.device == "auto" else spec.device
    )
    described = [name for name in manifest.files if not name.endswith((".onnx", ".onnx.data", ".engine"))]
    executor: Executor
    if spec.kind == "onnx":
        if device.type != "cpu":
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, f"engine onnx runs on the CPU, not on {spec.device}: set device"
            )
        graphs = [onnx_name(part) for part in PARTS]
        check_files(directory, manifest, [*described, *graphs, *(f"{name}.data" for name in graphs)])
        executor = OnnxExecutor(directory, manifest, spec.threads)
    else:
        from .tensorrt import TensorRtExecutor, require_cuda

        require_cuda(device)
        check_files(directory, manifest, [*described, *(engine_name(part) for part in PARTS)])
        executor = TensorRtExecutor(directory, manifest, device)
    pairs = (spec.window_frames or model.window_frames) // model.patches.temporal_patch
    mrope_time: Any = spec.mrope_time
    return GraphEngine(
        directory,
        manifest,
        model,
        executor,
        mrope_time=mrope_time,
        min_confidence=spec.min_confidence,
        default_think_tokens=spec.default_think_tokens,
        max_prompt_tokens=spec.max_prompt_tokens,
        kept_pairs=2 * pairs,
    )


class _Features(VisionCache):
    """Encodes beside other work; whoever asks for a pair's features waits for them, on the device.

    Attributes:
        joins: false while frames are only observed: nothing follows that needs them now.
    """

    def __init__(self, executor: Executor, model: GraphModel, pairs: int) -> None:
        patches = model.spec.patches

        def encode(frames: np.ndarray) -> torch.Tensor:
            return model.encode(torch.from_numpy(patchify(frames, patches)[0]))

        super().__init__(encode, patches.temporal_patch, pairs)
        self._executor = executor
        self.joins = True

    def encode(self, pair: Pair) -> torch.Tensor:
        """See VisionCache.encode."""
        features = super().encode(pair)
        return self._executor.join(features) if self.joins else features


class GraphEngine(TorchEngine):
    """Answers requests with exported graphs.

    Args:
        directory: of the export.
        manifest: its manifest, which fits this machine and these files.
        spec: its description.
        executor: runs its graphs; closed with this.
        mrope_time, min_confidence, default_think_tokens, max_prompt_tokens, kept_pairs: see TorchEngine.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        spec: ModelSpec,
        executor: Executor,
        *,
        mrope_time: MropeTime = "float",
        min_confidence: float,
        default_think_tokens: int = 0,
        max_prompt_tokens: int = 0,
        kept_pairs: int = 0,
    ) -> None:
        sizes = manifest.dimensions
        model: Any = GraphModel(directory, manifest, spec, executor)
        decoder: Any = GraphDecoder(manifest, executor)
        self._frame_size = sizes.frame_height, sizes.frame_width
        self._executor: Executor | None = executor
        self._features = _Features(executor, model, kept_pairs)
        self._set_up(
            model,
            decoder,
            self._features,
            PrefixPool(decoder, _KEPT_PREFIXES if kept_pairs else 0),
            Vocabulary(model.tokenizer, sizes.vocabulary),
            min(spec.max_position - FORCED_TOKENS, sizes.max_prefix),
            sizes.max_own,
            mrope_time=mrope_time,
            min_confidence=min_confidence,
            default_think_tokens=default_think_tokens,
            max_prompt_tokens=max_prompt_tokens,
            kept_pairs=kept_pairs,
            drafts=True,
            fixed=None,
        )
        engine, device = executor.description
        self._info = ModelInfo(
            model_id=manifest.model_id,
            digest=manifest.model_digest,
            prompt_id=prompt.PROMPT_ID,
            engine=engine,
            device=device,
            dtype=manifest.precision,
        )

    def observe(self, window: Window) -> None:
        """See TorchEngine.observe; on a GPU, frames are encoded while branches are decoded."""
        if any(frame.image.shape[:2] != self._frame_size for frame in window.frames):
            return  # what is wrong with them is for the requests to say
        self._features.joins = False
        try:
            super().observe(window)
        finally:
            self._features.joins = True

    def batch(self, request: Request) -> Batch:
        """See TorchEngine.batch; refuses frames of a size that the graphs do not take."""
        for window in request.windows:
            self._check_size(window)
        return super().batch(request)

    def close(self) -> None:
        """Free everything."""
        super().close()
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _check_size(self, window: Window) -> None:
        for frame in window.frames[:1]:  # whether the others are alike is looked at with everything else
            if frame.image.shape[:2] != self._frame_size:
                height, width = self._frame_size
                raise CosmosReasonError(
                    ErrorCode.BAD_IMAGE,
                    f"frames are {frame.image.shape[0]}x{frame.image.shape[1]}, the graphs take only "
                    f"{height}x{width}: set frame_height and frame_width, or export with --frame-size",
                )
