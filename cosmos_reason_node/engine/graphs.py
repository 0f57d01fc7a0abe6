# SPDX-License-Identifier: Apache-2.0
"""What runs exported graphs, behind one small interface, and ONNX Runtime as the one that runs anywhere.

    run(part, inputs, outputs)     part "vision", "decoder" or "head"; tensors by name

Who calls owns every buffer: inputs and outputs are tensors on the executor's device, read and written where
they lie. So TensorRT and ONNX Runtime see the same buffers, shapes and order of calls, and what a test finds
out about those with ONNX Runtime holds for TensorRT.

On a CUDA device ``run`` only enqueues, on torch's current stream. ``beside`` makes that a second stream, so
that frames are encoded while branches are decoded; ``join`` lets what follows see a result of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import CosmosReasonError, ErrorCode
from .manifest import PARTS, Manifest, onnx_name


class Executor(Protocol):
    """Runs the graphs of one export."""

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        ...

    @property
    def description(self) -> tuple[str, str]:
        """Names of engine and device for ModelInfo."""
        ...

    def run(self, part: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Compute ``outputs``, contiguous tensors of the right shapes, from ``inputs``.

        Raises:
            CosmosReasonError: ENGINE_FAILED or OUT_OF_MEMORY.
        """
        ...

    def beside(self) -> AbstractContextManager[Any]:
        """Within it, work goes beside what else is going on."""
        ...

    def join(self, result: Tensor) -> Tensor:
        """``result`` of work beside, for work that follows."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class OnnxExecutor:
    """ONNX Runtime on the CPU.

    Args:
        directory: of the export.
        manifest: its manifest; files are checked already.
        threads: of the CPU; 0: one.

    Raises:
        CosmosReasonError: NOT_AVAILABLE without ONNX Runtime; MODEL_INVALID for a graph that it cannot load.
    """

    def __init__(self, directory: Path, manifest: Manifest, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise CosmosReasonError(
                ErrorCode.NOT_AVAILABLE,
                f"engine onnx needs ONNX Runtime ({error}): pip install -r requirements/export.txt",
            ) from error
        if manifest.dtype == "bfloat16":
            raise CosmosReasonError(
                ErrorCode.NOT_AVAILABLE,
                "ONNX Runtime has no bfloat16 on the CPU: export with --precision fp32 or fp16",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Shapes change with every chunk: an arena would keep the largest of all.
        options.enable_cpu_mem_arena = False
        self._threads = options.intra_op_num_threads
        self._sessions: dict[str, Any] = {}
        for part in PARTS:
            try:
                self._sessions[part] = onnxruntime.InferenceSession(
                    str(directory / onnx_name(part)), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # ONNX Runtime's own classes derive from nothing closer
                raise CosmosReasonError(
                    ErrorCode.MODEL_INVALID,
                    f"{directory / onnx_name(part)} cannot be loaded ({error}); copy the folder anew or "
                    "export again",
                ) from error
        self._version = onnxruntime.__version__

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def description(self) -> tuple[str, str]:
        """Names for ModelInfo."""
        return "onnx", f"cpu (ONNX Runtime {self._version}, {self._threads} threads)"

    def run(self, part: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """See Executor."""
        session = self._sessions[part]
        binding = session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, "cpu", 0, _element(tensor), list(tensor.shape), _address(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, "cpu", 0, _element(tensor), list(tensor.shape), _address(tensor))
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise CosmosReasonError(ErrorCode.ENGINE_FAILED, f"ONNX Runtime, {part}: {error}") from error

    def beside(self) -> AbstractContextManager[Any]:
        """On the CPU one thing is done after another."""
        return contextlib.nullcontext()

    def join(self, result: Tensor) -> Tensor:
        """On the CPU it is there."""
        return result

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()


_ELEMENTS = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}


def _element(tensor: Tensor) -> Any:
    return _ELEMENTS[tensor.dtype]


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous(), "a buffer given to an executor lies in one piece"
    return tensor.data_ptr()
