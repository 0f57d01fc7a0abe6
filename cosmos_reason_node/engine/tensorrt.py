# SPDX-License-Identifier: Apache-2.0
"""TensorRT: one code for ``tensorrt`` (JetPack, data centre) and ``tensorrt_rtx`` (workstations).

The two differ in three places: the name of the module; where CUDA graphs come from (TensorRT-RTX captures
them itself, TensorRT's stream is captured here); and which one a GPU needs (``find_library``).

A part has one block of scratch memory, and an execution context for every set of shapes and buffers that is
replayed; the least used go first. The engine above gives few shapes and always the same buffers, so that a
decode step is two launches: decoder and head.

NOT EXECUTED without a GPU, and not yet on one: everything in ``TensorRtExecutor`` and ``_Context`` that runs
after ``require_cuda``. What is: ``find_library``, ``this_system``, ``load_engine`` of what is no engine,
the refusals. The buffers, shapes and calls that the executor is given are those that ONNX Runtime is given in
the tests.
"""

from __future__ import annotations

import importlib
import mmap
import os
import platform
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CosmosReasonError, ErrorCode
from .manifest import PARTS, Manifest, check_build, engine_name

# GPU generations that TensorRT-RTX builds for; the others (Jetson, data centre) need TensorRT itself.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
_MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_MAX_CONTEXTS = 48


def find_library(name: str) -> Any:
    """The Python module of "tensorrt" or "tensorrt_rtx".

    Raises:
        CosmosReasonError: NOT_AVAILABLE, with how to install it.
    """
    for module in _MODULES[name]:
        try:
            return importlib.import_module(module)
        except (ImportError, OSError):
            continue
    how = (
        "it is part of JetPack and of NVIDIA's container images (pip install tensorrt elsewhere)"
        if name == "tensorrt"
        else "pip install -r requirements/export.txt"
    )
    raise CosmosReasonError(ErrorCode.NOT_AVAILABLE, f"the Python module {name} is missing: {how}")


def this_system() -> str:
    """Operating system and processor: "linux-x86_64", "linux-aarch64"."""
    return f"{platform.system().lower()}-{platform.machine()}"


def gpu_target(device: torch.device) -> str:
    """GPU generation of a CUDA device: "sm89"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def load_engine(runtime: Any, path: Path, version: str) -> Any:
    """The engine in a file, deserialized by a TensorRT runtime.

    The file is mapped and not read: its pages can be dropped while the weights go to the GPU. A copy on the
    heap would hold the weights twice, and on a Jetson both in the same memory.

    Raises:
        CosmosReasonError: MODEL_INVALID with what to build.
    """
    engine = None
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size:  # nothing cannot be mapped
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as serialized:
                engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise CosmosReasonError(
            ErrorCode.MODEL_INVALID,
            f"TensorRT {version} cannot load {path} (its log says why): build it here with "
            "python -m training.export --build-only",
        )
    return engine


class TensorRtExecutor:
    """Runs the engines of an export on a CUDA device.

    Args:
        directory: of the export.
        manifest: its manifest; files are checked already.
        device: a CUDA device.

    Raises:
        CosmosReasonError: NOT_AVAILABLE (no CUDA, no TensorRT), MODEL_INVALID (built for something else) with
            what to build, OUT_OF_MEMORY.
    """

    def __init__(self, directory: Path, manifest: Manifest, device: torch.device) -> None:
        require_cuda(device)
        library = manifest.build.library if manifest.build else "tensorrt"
        self._trt = find_library(library)
        self._is_rtx = library == "tensorrt_rtx"
        check_build(manifest, library, self._trt.__version__, gpu_target(device), this_system())
        self._device = device
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._runtime = self._trt.Runtime(self._logger)
        self._stream = torch.cuda.Stream(device)
        self._second_stream = torch.cuda.Stream(device)
        self._engines: dict[str, Any] = {}
        self._scratch: dict[str, Tensor] = {}
        self._contexts: OrderedDict[tuple[Any, ...], _Context] = OrderedDict()
        for part in PARTS:
            engine = load_engine(self._runtime, directory / engine_name(part), self._trt.__version__)
            self._engines[part] = engine
            self._scratch[part] = torch.empty(
                max(1, engine.device_memory_size_v2), dtype=torch.uint8, device=device
            )

    @property
    def device(self) -> torch.device:
        """The CUDA device."""
        return self._device

    @property
    def description(self) -> tuple[str, str]:
        """Names for ModelInfo."""
        name = torch.cuda.get_device_name(self._device)
        library = "tensorrt_rtx" if self._is_rtx else "tensorrt"
        return "tensorrt", f"{self._device} ({name}, {library} {self._trt.__version__})"

    def run(self, part: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """See Executor."""
        tensors = {**inputs, **outputs}
        key = (part, *((t.data_ptr(), tuple(t.shape)) for t in tensors.values()))
        context = self._contexts.get(key)
        if context is None:
            context = _Context(self._engines[part], self._scratch[part], self._trt, self._is_rtx)
            for name, tensor in inputs.items():
                if not context.trt_context.set_input_shape(name, tuple(tensor.shape)):
                    raise CosmosReasonError(
                        ErrorCode.ENGINE_FAILED,
                        f"the engine {part} was not built for {name} of shape {tuple(tensor.shape)}",
                    )
            for name, tensor in tensors.items():
                context.trt_context.set_tensor_address(name, tensor.data_ptr())
            self._contexts[key] = context
            while len(self._contexts) > _MAX_CONTEXTS:
                torch.cuda.synchronize(self._device)  # it may be running
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(key)
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device) or context.replays:
            context.launch(current, part)
            return
        # On the default stream TensorRT would synchronise around every launch, and TensorRT-RTX could not
        # capture it.
        self._stream.wait_stream(current)
        context.launch(self._stream, part)
        current.wait_stream(self._stream)

    def beside(self) -> AbstractContextManager[Any]:
        """Within it the second stream is the current one."""
        return torch.cuda.stream(self._second_stream)

    def join(self, result: Tensor) -> Tensor:
        """Let the current stream wait for the second one."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._second_stream)
        result.record_stream(current)  # its memory is not given away before this stream is through with it
        return result

    def close(self) -> None:
        """Free everything on the device."""
        torch.cuda.synchronize(self._device)
        self._contexts.clear()
        self._engines.clear()
        self._scratch.clear()
        torch.cuda.empty_cache()


class _Context:
    """An execution context for one set of shapes and buffers: run once, captured, then replayed."""

    def __init__(self, engine: Any, scratch: Tensor, trt: Any, is_rtx: bool) -> None:
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if is_rtx:
            settings = engine.create_runtime_config()
            settings.set_execution_context_allocation_strategy(strategy)
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.trt_context = engine.create_execution_context(settings)
        else:
            self.trt_context = engine.create_execution_context(strategy)
        if self.trt_context is None:
            raise CosmosReasonError(
                ErrorCode.OUT_OF_MEMORY, "TensorRT cannot make an execution context: free GPU memory"
            )
        self.trt_context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        self._captures = not is_rtx  # TensorRT-RTX replays by itself
        self._launched = False
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def replays(self) -> bool:
        """Whether a graph captured here is replayed, on whichever stream."""
        return self._graph is not None

    def launch(self, stream: torch.cuda.Stream, part: str) -> None:
        """Enqueue one run."""
        if self._graph is not None:
            with torch.cuda.stream(stream):
                self._graph.replay()
            return
        if self._launched and self._captures:
            graph = torch.cuda.CUDAGraph()
            side = torch.cuda.Stream(stream.device)  # the default stream cannot be captured
            torch.cuda.synchronize(stream.device)
            with torch.cuda.graph(graph, stream=side):
                self._enqueue(side, part)
            self._graph = graph
            self.launch(stream, part)
            return
        self._enqueue(stream, part)
        self._launched = True

    def _enqueue(self, stream: torch.cuda.Stream, part: str) -> None:
        if not self.trt_context.execute_async_v3(stream.cuda_stream):
            raise CosmosReasonError(
                ErrorCode.ENGINE_FAILED, f"TensorRT failed in {part}; its log on standard error says why"
            )


def require_cuda(device: torch.device) -> None:
    """Refuse what is not a CUDA device of this machine; CosmosReasonError(NOT_AVAILABLE)."""
    if device.type != "cuda" or not torch.cuda.is_available():
        raise CosmosReasonError(
            ErrorCode.NOT_AVAILABLE,
            f"engine tensorrt needs a CUDA device and a torch that sees it, not {device}: take engine torch "
            "or onnx here",
        )
