# SPDX-License-Identifier: Apache-2.0
"""What a folder of exported graphs holds and what it is good for. Written by training.export; no torch.

FOLDER/manifest.json            this
       vision.onnx, .onnx.data  graphs and their weights, for any TensorRT and for ONNX Runtime
       decoder.onnx, .onnx.data
       embedding.safetensors    rows of the token embedding, read one at a time
       vision.engine, decoder.engine         built for one GPU generation by one TensorRT
       config.json, tokenizer.json, ...      of the checkpoint: the folder is a model directory by itself
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CosmosReasonError, ErrorCode
from ..models.spec import ModelSpec
from ..prompt import PROMPT_ID

FORMAT = 1
MANIFEST = "manifest.json"
EMBEDDING = "embedding.safetensors"
PARTS = ("vision", "decoder", "head")
# The decoder's key/value inputs and outputs of a layer.
CACHE_INPUTS = ("prefix_key", "prefix_value", "own_key", "own_value")
CACHE_OUTPUTS = ("new_key", "new_value")
PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8-wo", "int4-awq")
_CHUNK_BYTES = 1 << 22
_HASH_THREADS = 4


def onnx_name(part: str) -> str:
    """File of a graph; its weights are in the file of this name + ".data"."""
    return f"{part}.onnx"


def engine_name(part: str) -> str:
    """File of a built engine."""
    return f"{part}.engine"


def cache_name(name: str, layer: int) -> str:
    """A key/value input or output of a layer."""
    return f"{name}_{layer}"


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the graphs' axes, and the rotary embedding that their caller computes.

    Attributes:
        frame_height, frame_width: pixels of the only frame size that the vision graph takes.
        patch_rows: patches in a temporal patch; ``patch_dim``: values in a patch.
        patch_tokens: visual tokens of a temporal patch.
        max_patches: most temporal patches of one call.
        layers, key_heads, channels: of the key/value cache.
        hidden: width of the language model; ``vocabulary``: rows of its output.
        max_rows: most new rows of one call.
        cache_step: old rows are given in multiples of this, so that few shapes occur; unused ones are masked.
        max_prefix, max_own: most rows of the prefix and of branches, multiples of ``cache_step``.
        theta: base of the rotary embedding; ``sections``: its M-RoPE sections, in pairs of channels.
    """

    frame_height: int
    frame_width: int
    patch_rows: int
    patch_dim: int
    patch_tokens: int
    max_patches: int
    layers: int
    key_heads: int
    channels: int
    hidden: int
    vocabulary: int
    max_rows: int
    cache_step: int
    max_prefix: int
    max_own: int
    theta: float
    sections: tuple[int, ...]


@dataclass(frozen=True)
class Build:
    """What built the engines, and for what.

    Attributes:
        library: "tensorrt" or "tensorrt_rtx".
        version: of it; engines run with this version only.
        target: GPU generation, "sm89".
        system: operating system and processor, "linux-x86_64".
    """

    library: str
    version: str
    target: str
    system: str


@dataclass(frozen=True)
class FileEntry:
    """A file as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """See the module's text.

    Attributes:
        model_id, model_digest: of the checkpoint, see models.checkpoint.digest.
        prompt_id: conventions that the model is asked with.
        preprocessing: digest of how frames become patches.
        precision: of PRECISIONS.
        dtype: of activations, features and key/value cache: "float32", "float16", "bfloat16".
        opset: of the ONNX files.
        dimensions: of the graphs.
        quantisation: how weights were quantised, in words and numbers; empty for none.
        build: of the engines; None while there are none.
        files: by name; only whole files are listed.
    """

    model_id: str
    model_digest: str
    prompt_id: str
    preprocessing: str
    precision: str
    dtype: str
    opset: int
    dimensions: Dimensions
    quantisation: Mapping[str, Any] = field(default_factory=dict)
    build: Build | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT


def preprocessing_digest(spec: ModelSpec, frame_size: tuple[int, int]) -> str:
    """Changes with everything that stands between a frame and the vision graph's input."""
    facts = {"patches": dataclasses.asdict(spec.patches), "frame_size": list(frame_size)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write atomically; the content is sealed with its digest."""
    content = dataclasses.asdict(manifest)
    content["seal"] = _seal(content)
    partial = directory / f".{MANIFEST}.{os.getpid()}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(directory / MANIFEST)


def read_manifest(directory: Path) -> Manifest:
    """Read and check.

    Raises:
        CosmosReasonError: MODEL_NOT_FOUND or MODEL_INVALID, with what to do.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, this version reads {FORMAT}")
        if content.pop("seal", None) != _seal(content):
            raise ValueError("it was changed after it was written")
        dimensions = dict(content.pop("dimensions"))
        dimensions["sections"] = tuple(dimensions["sections"])
        build, files = content.pop("build"), content.pop("files")
        return Manifest(
            dimensions=Dimensions(**dimensions),
            build=Build(**build) if build else None,
            files={name: FileEntry(**entry) for name, entry in files.items()},
            **content,
        )
    except FileNotFoundError as error:
        raise CosmosReasonError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{path} does not exist: give the folder that python -m training.export has written",
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _misfit(f"{path}: {error}", "export again") from error


def check_model(manifest: Manifest, spec: ModelSpec) -> None:
    """See that graphs, this version of the project and the folder's own description belong together.

    Raises:
        CosmosReasonError: MODEL_INVALID, with what to build anew.
    """
    size = manifest.dimensions.frame_height, manifest.dimensions.frame_width
    if manifest.prompt_id != PROMPT_ID:
        raise _misfit(
            f"the graphs were made for prompts {manifest.prompt_id}, this version asks with {PROMPT_ID}",
            "export the checkpoint again with this version",
        )
    if manifest.preprocessing != preprocessing_digest(spec, size):
        raise _misfit(
            "preprocessor_config.json or config.json does not prepare frames as the vision graph expects",
            "copy the folder anew or export again",
        )


def check_files(directory: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """See that files are there and whole, byte for byte.

    Raises:
        CosmosReasonError: MODEL_INVALID, naming the file.
    """
    names = list(names)
    for name in names:
        entry, path = manifest.files.get(name), directory / name
        if entry is None:
            raise _misfit(f"{directory} holds no {name} that was finished", _command(manifest))
        if not path.is_file():
            raise _misfit(f"{path} is missing", "copy the folder anew")
        if path.stat().st_size != entry.bytes:
            raise _misfit(
                f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}: the copy is cut off",
                "copy the folder anew",
            )
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(lambda name: file_entry(directory / name).sha256, names))
    for name, digest in zip(names, digests, strict=True):
        if digest != manifest.files[name].sha256:
            raise _misfit(f"{directory / name} is not the file that was written", "copy the folder anew")


def check_build(manifest: Manifest, library: str, version: str, target: str, system: str) -> None:
    """See that the engines run here.

    Raises:
        CosmosReasonError: MODEL_INVALID, with the command that builds the right ones.
    """
    build = manifest.build
    here = Build(library, version, target, system)
    if build is None:
        raise _misfit("the folder holds graphs but no engines", _command(manifest, here))
    if build != here:
        wrong = [
            f"{name} {getattr(build, name)}, here it is {getattr(here, name)}"
            for name in ("target", "library", "version", "system")
            if getattr(build, name) != getattr(here, name)
        ]
        raise _misfit(f"the engines were built for {'; '.join(wrong)}", _command(manifest, here))


def file_entry(path: Path) -> FileEntry:
    """Length and digest of a file."""
    value, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value.update(chunk)
            size += len(chunk)
    return FileEntry(size, value.hexdigest())


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _command(manifest: Manifest, here: Build | None = None) -> str:
    target = here.target if here else manifest.build.target if manifest.build else "smXX"
    return (
        f"build them here: python -m training.export --build-only --out FOLDER --target {target} "
        f"--precision {manifest.precision}"
    )


def _misfit(what: str, remedy: str) -> CosmosReasonError:
    return CosmosReasonError(ErrorCode.MODEL_INVALID, f"{what}; {remedy}")
