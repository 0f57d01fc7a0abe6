# SPDX-License-Identifier: Apache-2.0
"""One export on disk, part by part; started again it goes on where it was.

describe -> vision.onnx -> decoder.onnx, embedding -> head.onnx -> vision.engine -> ...
             each written whole, then listed in manifest.json with its digest
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from cosmos_reason_node.engine.manifest import (
    EMBEDDING,
    PARTS,
    FileEntry,
    Manifest,
    check_files,
    engine_name,
    file_entry,
    onnx_name,
    preprocessing_digest,
    read_manifest,
    write_manifest,
)
from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models.checkpoint import digest
from cosmos_reason_node.models.spec import CONFIG, OWN, PREPROCESSOR, TOKENIZER, read_json
from cosmos_reason_node.prompt import PROMPT_ID

from .plan import Plan, PlanError
from .quantise import Calibration, quantise

_DESCRIPTION = (CONFIG, PREPROCESSOR, TOKENIZER, "tokenizer_config.json", "generation_config.json")
Say = Callable[[str], None]


def export(plan: Plan, directory: Path, calibration: Calibration | None, say: Say) -> Manifest:
    """Write the graphs of a checkpoint.

    Args:
        plan: what to make.
        directory: of the export; what fits in it is kept.
        calibration: for precisions that need one.
        say: told what is being done.

    Returns:
        The manifest, with all files but engines.

    Raises:
        PlanError: not enough memory.
        CosmosReasonError: the checkpoint is damaged.
        OSError: a file cannot be written.
    """
    say("reading the checkpoint's digest")
    fresh = Manifest(
        model_id=plan.spec.model_id,
        model_digest=digest(plan.model),
        prompt_id=PROMPT_ID,
        preprocessing=preprocessing_digest(plan.spec, plan.frame_size),
        precision=plan.precision,
        dtype=plan.dtype,
        opset=plan.opset,
        dimensions=plan.dimensions,
        quantisation=calibration.facts(plan.precision) if calibration else {},
    )
    manifest = _resume(directory, fresh)
    missing = [part for part in PARTS if not _is_whole(directory, manifest, _files(part))]
    if missing:
        check_memory(plan.export_bytes, "writing the graphs")
        directory.mkdir(parents=True, exist_ok=True)
        manifest = _describe(plan, directory, manifest)
        manifest = _write_graphs(plan, directory, manifest, missing, calibration, say)
    elif not _is_whole(directory, manifest, _description(plan)):
        say("the graphs are there and whole, the checkpoint's description is written again")
        manifest = _describe(plan, directory, manifest)
    else:
        say("the graphs are there and whole")
    return manifest


def build_engines(plan_target: Any, directory: Path, manifest: Manifest, say: Say) -> Manifest:
    """Build the engines of an export that has its graphs.

    Args:
        plan_target: the Target to build for.
        directory: of the export.
        manifest: of it.
        say: told what is being done.

    Returns:
        The manifest, engines included.

    Raises:
        BuildError: they cannot be built here, or not at all.
        CosmosReasonError: a graph is missing or torn.
    """
    from .build import build, choose_library

    library = choose_library(plan_target)
    for part in PARTS:
        check_files(directory, manifest, [onnx_name(part), f"{onnx_name(part)}.data"])
    for part in PARTS:
        wanted = _expected(library, plan_target.name)
        if manifest.build == wanted and _is_whole(directory, manifest, [engine_name(part)]):
            say(f"{engine_name(part)} is there and whole")
            continue
        say(f"building {engine_name(part)} for {plan_target.name} with {library[1]} {library[0].__version__}")
        path, made = build(part, directory, manifest.dimensions, plan_target, library, _steps(say))
        files = dict(manifest.files)
        if manifest.build != made:  # engines of another build are void
            for other in PARTS:
                files.pop(engine_name(other), None)
        files[path.name] = file_entry(path)
        manifest = dataclasses.replace(manifest, build=made, files=files)
        write_manifest(directory, manifest)
        say(f"{path.name}: {path.stat().st_size / 1e6:,.1f} MB")
    return manifest


def check_memory(needed: float, what: str) -> None:
    """Refuse what cannot end well.

    Raises:
        PlanError: there is not that much memory free.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise PlanError(
            f"{what} takes about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: end other programs, "
            "add swap, or do it on a larger machine (the folder can be copied)"
        )


def _expected(library: tuple[Any, str], target: str) -> Any:
    from cosmos_reason_node.engine.manifest import Build
    from cosmos_reason_node.engine.tensorrt import this_system

    return Build(library[1], library[0].__version__, target, this_system())


def _resume(directory: Path, fresh: Manifest) -> Manifest:
    """The manifest that is there if it is of the same export, else ``fresh``."""
    try:
        old = read_manifest(directory)
    except CosmosReasonError:
        return fresh
    same = dataclasses.replace(old, files={}, build=None) == fresh
    return old if same else fresh


def _files(part: str) -> list[str]:
    names = [onnx_name(part), f"{onnx_name(part)}.data"]
    return [*names, EMBEDDING] if part == "decoder" else names


def _description(plan: Plan) -> list[str]:
    """Files that make the folder a model directory."""
    return [*(name for name in _DESCRIPTION if (plan.model / name).is_file()), OWN]


def _is_whole(directory: Path, manifest: Manifest, names: Iterable[str]) -> bool:
    try:
        check_files(directory, manifest, names)
    except CosmosReasonError:
        return False
    return True


def _describe(plan: Plan, directory: Path, manifest: Manifest) -> Manifest:
    """Make the folder a model directory: what the node reads of a checkpoint, with the frame size fixed."""
    files: dict[str, FileEntry] = dict(manifest.files)
    for name in _description(plan):
        if name != OWN:
            shutil.copyfile(plan.model / name, directory / name)
            files[name] = file_entry(directory / name)
    own = read_json(plan.model / OWN) if (plan.model / OWN).exists() else {}
    own |= {"window_frames": plan.spec.window_frames, "fps": plan.spec.fps}
    own |= {"frame_height": plan.dimensions.frame_height, "frame_width": plan.dimensions.frame_width}
    (directory / OWN).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    files[OWN] = file_entry(directory / OWN)
    manifest = dataclasses.replace(manifest, files=files)
    write_manifest(directory, manifest)
    return manifest


def _write_graphs(
    plan: Plan,
    directory: Path,
    manifest: Manifest,
    missing: list[str],
    calibration: Calibration | None,
    say: Say,
) -> Manifest:
    # Heavy imports wait until there is something to do.
    from safetensors.torch import save_file

    from cosmos_reason_node.models.qwen2_5_vl import load

    from .decoder import DecoderGraph, HeadGraph
    from .onnx import ATTENTION, write_decoder, write_head, write_vision
    from .vision import VisionGraph

    say("loading the checkpoint")
    if calibration:  # scales are found in float32, whatever the activations will be
        model = load(plan.model, "cpu", "float32")
        if "decoder" in missing:
            quantise(model, plan.precision, calibration, say)
        model.network.to(_torch_dtype(plan.dtype))
    else:
        model = load(plan.model, "cpu", plan.dtype)
    for part in missing:
        say(f"writing {onnx_name(part)}")
        if part == "vision":
            graph = VisionGraph(model, plan.frame_size, ATTENTION[plan.opset])
            sizes = plan.dimensions
            written = write_vision(graph, sizes.patch_rows, sizes.patch_dim, directory, plan.opset)
        elif part == "head":
            written = write_head(HeadGraph(model), directory, plan.opset)
        else:
            written = write_decoder(DecoderGraph(model, ATTENTION[plan.opset]), directory, plan.opset)
            table = model.network.model.language_model.embed_tokens.weight.detach().contiguous()
            partial = directory / f".{EMBEDDING}.partial"
            save_file({"weight": table}, partial)
            partial.replace(directory / EMBEDDING)
            written.append(directory / EMBEDDING)
        files = {**manifest.files, **{path.name: file_entry(path) for path in written}}
        manifest = dataclasses.replace(manifest, files=files, build=None)
        write_manifest(directory, manifest)
        say(f"{onnx_name(part)}: {sum(path.stat().st_size for path in written) / 1e6:,.1f} MB")
    return manifest


def _torch_dtype(name: str) -> Any:
    from cosmos_reason_node.models.qwen2_5_vl import DTYPES

    return DTYPES[name]


def _steps(say: Say) -> Callable[[str, float], None]:
    """Progress of a phase, a line every tenth of it at most."""
    told: dict[str, int] = {}

    def progress(step: str, share: float) -> None:
        tenth = int(share * 10)
        if told.get(step) != tenth:
            told[step] = tenth
            say(f"  {step} {share:4.0%}")

    return progress


__all__ = ["PlanError", "build_engines", "check_memory", "export"]
