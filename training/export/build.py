# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs to TensorRT engines: for another GPU by TensorRT-RTX, for this one by what is installed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cosmos_reason_node.engine.manifest import (
    CACHE_INPUTS,
    CACHE_OUTPUTS,
    Build,
    Dimensions,
    cache_name,
    engine_name,
    onnx_name,
)
from cosmos_reason_node.engine.tensorrt import find_library, gpu_target, this_system
from cosmos_reason_node.errors import CosmosReasonError

from .targets import Target

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # least, most frequent, greatest


class BuildError(Exception):
    """An engine cannot be built; the message says what to do."""


def profile(part: str, sizes: Dimensions) -> dict[str, Range]:
    """Shapes of a graph's inputs.

    The decoder's most frequent call is a decode step of three branches behind the prefix of a full window.
    """
    if part == "vision":
        rows, values = sizes.patch_rows, sizes.patch_dim
        return {"pixels": ((1, rows, values), (1, rows, values), (sizes.max_patches, rows, values))}
    new = (1, min(4, sizes.max_rows), sizes.max_rows)

    def over(counts: tuple[int, int, int], *rest: int) -> Range:
        least, usual, greatest = ((count, *rest) for count in counts)
        return least, usual, greatest

    if part == "head":
        return {"hidden": over(new, sizes.hidden)}
    step = sizes.cache_step
    prefix = (step, max(step, sizes.max_prefix // 2 // step * step), sizes.max_prefix)
    own = (step, max(step, sizes.max_own // 4 // step * step), sizes.max_own)
    masks = [(r, p + o + r) for r, p, o in zip(new, prefix, own, strict=True)]
    ranges = {
        "embeds": over(new, sizes.hidden),
        "cos": over(new, sizes.channels),
        "sin": over(new, sizes.channels),
        "mask": (masks[0], masks[1], masks[2]),
    }
    for layer in range(sizes.layers):
        for name in CACHE_INPUTS:
            old = prefix if name.startswith("prefix") else own
            ranges[cache_name(name, layer)] = over(old, sizes.key_heads, sizes.channels)
    return ranges


def outputs(part: str, sizes: Dimensions) -> dict[str, Shape]:
    """Shapes of a graph's outputs, -1 where they vary."""
    if part == "vision":
        return {"features": (-1, sizes.patch_tokens, sizes.hidden)}
    if part == "head":
        return {"logits": (-1, sizes.vocabulary)}
    rows = (-1, sizes.key_heads, sizes.channels)
    caches = {cache_name(name, layer): rows for layer in range(sizes.layers) for name in CACHE_OUTPUTS}
    return {"hidden": (-1, sizes.hidden), **caches}


def check_interface(trt: Any, network: Any, part: str, sizes: Dimensions) -> None:
    """See that a parsed graph takes and gives what the runtime will give and take.

    Raises:
        BuildError: it is the graph of another model, or of another version of this project.
    """
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    given = [network.get_output(i) for i in range(network.num_outputs)]
    fixed = {name: greatest for name, (_, _, greatest) in profile(part, sizes).items()}
    wanted = {**fixed, **outputs(part, sizes)}
    found = {tensor.name: tuple(tensor.shape) for tensor in (*inputs, *given)}
    wrong = set(found) ^ set(wanted)
    wrong |= {
        name
        for name in set(found) & set(wanted)
        if len(found[name]) != len(wanted[name])
        or any(
            size not in (-1, want) for size, want in zip(found[name], wanted[name], strict=True) if want != -1
        )
    }
    if wrong:
        raise BuildError(
            f"{onnx_name(part)} is not the graph that the manifest describes ({', '.join(sorted(wrong)[:4])} "
            "differ): export again"
        )


def choose_library(target: Target) -> tuple[Any, str]:
    """Module and name of what builds for ``target`` on this machine.

    Raises:
        BuildError: nothing does; with the command for the machine that has the GPU.
    """
    if target.name == _gpu_here():
        for name in ("tensorrt", "tensorrt_rtx"):
            if name == "tensorrt" or target.builds_anywhere:
                try:
                    return find_library(name), name
                except CosmosReasonError:
                    continue
    if not target.builds_anywhere:
        raise BuildError(
            f"engines for {target.name} ({target.boards}) are built by TensorRT on such a board, not here: "
            "copy the folder there"
        )
    try:
        return find_library("tensorrt_rtx"), "tensorrt_rtx"
    except CosmosReasonError as error:
        raise BuildError(error.message) from error


def build(
    part: str,
    directory: Path,
    sizes: Dimensions,
    target: Target,
    library: tuple[Any, str],
    progress: Callable[[str, float], None] = lambda step, share: None,
) -> tuple[Path, Build]:
    """Build the engine of one graph; it appears whole or not at all.

    Args:
        part: "vision" or "decoder".
        directory: holds its ONNX files and gets the engine.
        sizes: bounds of its shapes.
        target: GPU generation.
        library: from ``choose_library``.
        progress: told what is being done, and which share of it is.

    Raises:
        BuildError: the graph is not parsed, or no engine comes out.
        KeyboardInterrupt: asked to stop; nothing is left behind.
    """
    trt, name = library
    source, path = directory / onnx_name(part), directory / engine_name(part)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        reasons = "; ".join(str(parser.get_error(i).desc()) for i in range(min(3, parser.num_errors)))
        raise BuildError(f"{name} {trt.__version__} cannot parse {source}: {reasons}")
    check_interface(trt, network, part, sizes)
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for tensor, (least, usual, greatest) in profile(part, sizes).items():
        shapes.set_shape(tensor, least, usual, greatest)
    config.add_optimization_profile(shapes)
    if name == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.name.upper()), 0)
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)  # scratch memory is the runtime's own
    config.progress_monitor = _monitor(trt, progress)
    _allow_unfused_attention(trt, network)
    started = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if config.progress_monitor.stopped:
            raise KeyboardInterrupt
        raise BuildError(
            f"{name} {trt.__version__} builds no engine of {source}: {logger.last or 'it says nothing'}. "
            "Free memory, or another --precision or --opset"
        )
    progress(f"{part}: built in {time.monotonic() - started:.0f} s", 1.0)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(plan)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path, Build(name, trt.__version__, target.name, this_system())


def _gpu_here() -> str:
    """GPU generation of this machine, "" without one."""
    return gpu_target(torch.device("cuda")) if torch.cuda.is_available() else ""


def _allow_unfused_attention(trt: Any, network: Any) -> None:
    """Let attention fall apart into products where no fused kernel takes it (float32, odd head sizes)."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if getattr(layer.type, "name", "") == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer  # the bindings hand out the base class
            layer.attention.decomposable = True


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the last error, passes warnings on."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.last = message
                print(f"tensorrt: {message}", file=sys.stderr)

    return Logger()


def _monitor(trt: Any, progress: Callable[[str, float], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Tells of TensorRT's outermost phases; Ctrl-C ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._steps[name] = max(1, steps)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if name in self._steps:
                    progress(name, (step + 1) / self._steps[name])
            except KeyboardInterrupt:
                self.stopped = True
            return not self.stopped

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()
