# SPDX-License-Identifier: Apache-2.0
"""From a spec to a tested engine."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
from pathlib import Path

import numpy as np

from .. import decision, prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.checkpoint import check_files
from ..models.mrope import MROPE_TIMES
from ..models.spec import ModelSpec, read_model_spec
from ..types import Frame, Query, QueryKind, Window
from .base import Done, Engine, Failed, Request
from .manifest import check_model, read_manifest
from .spec import EngineSpec

KINDS = ("torch", "tensorrt", "onnx", "remote")
_log = logging.getLogger(__name__)
# Pairs of a camera kept beyond a window: those that arrive while one is being answered.
_PAIRS_AHEAD = 4
_CAMERA_SIZE = (480, 640)  # assumed by the warm-up of a model without a fixed frame size


def check_model_dir(directory: Path, kind: str, spec: ModelSpec) -> None:
    """See that a model directory holds what an engine of this kind loads.

    Raises:
        CosmosReasonError: MODEL_INVALID or MODEL_NOT_FOUND, with what to do.
    """
    if spec.hybrid and kind not in ("torch", "remote"):
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"{directory} is a hybrid model, which is not exported to graphs: take engine torch or remote",
        )
    if kind in ("tensorrt", "onnx"):
        check_model(read_manifest(directory), spec)
    elif kind == "torch":
        check_files(directory)


def load_engine(spec: EngineSpec) -> Engine:
    """Load and test the engine that ``spec`` asks for.

    Raises:
        CosmosReasonError: with what to do.
    """
    try:
        return _load_in_memory(spec)
    except Exception as error:  # also what a library raises: a driver that is too old for TensorRT
        if not spec.fallback_dir or spec.kind == "torch":
            raise
        _log.warning("engine %s: %s. Falling back to torch on %s", spec.kind, error, spec.fallback_dir)
    # Outside of the handler: the error's frames hold the engine that failed, and its memory.
    gc.collect()
    return _load_in_memory(dataclasses.replace(spec, kind="torch", model_dir=spec.fallback_dir))


def _load_in_memory(spec: EngineSpec) -> Engine:
    """``_load``; want of memory is told apart from other faults, because it may pass."""
    try:
        return _load(spec)
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise CosmosReasonError(
                ErrorCode.OUT_OF_MEMORY,
                f"there is too little free memory for {spec.model_dir} on device {spec.device}: {error}",
            ) from error
        raise


def _load(spec: EngineSpec) -> Engine:
    if spec.kind not in KINDS:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"engine must be one of {', '.join(KINDS)}, not {spec.kind!r}"
        )
    # What can be wrong with the directory is said before the seconds that importing torch takes.
    model_spec = read_model_spec(spec.model_dir)
    directory = Path(spec.model_dir).expanduser()
    check_model_dir(directory, spec.kind, model_spec)
    if spec.mrope_time not in MROPE_TIMES:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"mrope_time must be of {', '.join(MROPE_TIMES)}, not {spec.mrope_time!r}",
        )
    if spec.kind == "remote":
        from .remote import RemoteEngine

        return RemoteEngine(spec, model_spec)  # its first request is its self-test: a server may be down now
    import torch

    from ..models import qwen2_5_vl
    from .torch import TorchEngine

    if spec.kind != "onnx" and torch.cuda.is_available():
        device = qwen2_5_vl.choose_device(spec.device)
        if device.type == "cuda" and device.index is not None:
            # Streams, events, captured graphs and TensorRT belong to the current device.
            torch.cuda.set_device(device)
    torch.set_num_threads(spec.threads or max(1, len(os.sched_getaffinity(0)) - 1))
    engine: TorchEngine
    if spec.kind == "torch":
        from ..models.load import load
        from ..models.quantize import quantize

        model = load(spec.model_dir, spec.device, spec.dtype)
        quantize(model.network, spec.quantize)
        engine = TorchEngine(
            model,
            mrope_time=spec.mrope_time,
            min_confidence=spec.min_confidence,
            default_think_tokens=spec.default_think_tokens,
            max_prompt_tokens=spec.max_prompt_tokens,
            kept_pairs=(spec.window_frames or model_spec.window_frames) // model_spec.patches.temporal_patch
            + _PAIRS_AHEAD,
            refresh_every=spec.refresh_every,
        )
    else:
        from .graph_engine import load_graph_engine

        engine = load_graph_engine(spec, directory, model_spec)
    frames = model_spec.window_frames if spec.warm_up else model_spec.patches.temporal_patch
    height, width = model_spec.frame_size_for(*_CAMERA_SIZE)
    _self_test(engine, black_window(frames, height, width, model_spec.fps))
    engine.forget()  # no camera has that name: its keys and values would be held for nothing
    return engine


def _self_test(engine: Engine, window: Window) -> None:
    """Ask something: it must be answered, and the answer must parse. Also warms caches and kernels up."""
    query = Query(QueryKind.COMPLETION, task="self-test", think_tokens=2)
    for event in engine.answer(Request("self-test", (window,), (query,))):
        if isinstance(event, Failed):
            raise CosmosReasonError(
                event.error_code, f"the model does not pass its self-test: {event.error_msg}"
            )
        if isinstance(event, Done):
            text = prompt.target(event.answer.reasoning, event.answer.answer)
            decision.parse_output(text, query)
            return
    raise CosmosReasonError(ErrorCode.ENGINE_FAILED, "the model does not answer its self-test")


def black_window(frames: int, height: int, width: int, fps: float) -> Window:
    """A window of black frames, for self-tests and benchmarks."""
    period = round(1e9 / fps)
    image = np.zeros((height, width, 3), np.uint8)
    return Window(
        camera="self-test",
        frames=tuple(Frame("self-test", (i + 1) * period, i, image) for i in range(frames)),
        first_tick=0,
        period_ns=period,
        held=0,
        asked=frames,
    )
