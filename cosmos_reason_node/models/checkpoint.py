# SPDX-License-Identifier: Apache-2.0
"""Files of a checkpoint directory: whether they are whole, and their digest. No torch.

Only safetensors weights are accepted; a pickle is never opened.
"""

from __future__ import annotations

import hashlib
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import CosmosReasonError, ErrorCode
from .spec import CONFIG, HYBRID_ARCHITECTURE, OWN, PREPROCESSOR, TOKENIZER, invalid, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_CHUNK_BYTES = 1 << 22
_HASH_THREADS = 4


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: the single file, or the shards that the index names.

    Raises:
        CosmosReasonError: MODEL_INVALID when there are none or two sets, or one of the index is missing.
    """
    if (directory / CONFIG).is_file() and read_json(directory / CONFIG).get("transformers_weights"):
        raise invalid(
            directory / CONFIG,
            f"its transformers_weights names another file: only {SINGLE} or the files of {INDEX} are loaded; "
            "remove the setting",
        )
    if (directory / INDEX).exists():
        names = read_json(directory / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise invalid(directory / INDEX, "it maps no weights to files")
        shards = sorted(set(map(str, names.values())))
        for name in shards:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise invalid(directory / INDEX, f"{name!r} is not the name of a safetensors file beside it")
        missing = [name for name in shards if not (directory / name).is_file()]
        if missing:
            raise invalid(
                directory,
                f"{len(missing)} of {len(shards)} weight files are missing: {', '.join(missing[:8])}",
            )
        if SINGLE not in shards and (directory / SINGLE).is_file():
            # transformers would load the one, the digest and the checks would be of the others
            raise invalid(
                directory,
                f"it holds two sets of weights, {SINGLE} and the {len(shards)} files of {INDEX}: delete the "
                "one that is not meant",
            )
        return [directory / name for name in shards]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise invalid(
            directory, "the weights are pickles, which are never loaded: convert them to safetensors"
        )
    raise invalid(directory, f"there is neither {SINGLE} nor {INDEX}")


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is as long as its header says.

    Raises:
        CosmosReasonError: MODEL_INVALID for a truncated or foreign file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + header_size + max(ends, default=0)
    except (struct.error, ValueError, TypeError, KeyError, AttributeError, IndexError, OSError) as error:
        raise invalid(path, f"not a whole safetensors file ({error})") from error
    if size != expected:
        raise invalid(path, f"it has {size} bytes, its header says {expected}: the copy is cut off")


def check_files(directory: Path) -> list[Path]:
    """Check that all files are there and whole, and are of a model that can be run; return the weight files.

    Raises:
        CosmosReasonError: MODEL_INVALID, naming the file.
    """
    config = read_json(directory / CONFIG)
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", "?") if isinstance(method, dict) else method
        raise CosmosReasonError(
            ErrorCode.MODEL_INVALID,
            f"the weights of {directory} are quantised ({method}), which the engine does not read: take the "
            "checkpoint in bfloat16 with quantize:=int8 or int4, or serve this one and use engine:=remote",
        )
    if HYBRID_ARCHITECTURE not in (config.get("architectures") or []):
        try:
            _check_attention(directory / CONFIG, config.get("text_config") or config)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
            raise invalid(directory / CONFIG, reason) from error
    if not (directory / TOKENIZER).is_file():
        raise invalid(directory / TOKENIZER, "the file is missing")
    weights = weight_files(directory)
    for path in weights:
        check_safetensors(path)
    return weights


def _check_attention(path: Path, text: dict[str, Any]) -> None:
    """Refuse positions and attention that decoder and graphs compute otherwise: answers would be wrong."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "mrope"):
        raise invalid(path, f"its rotary embeddings are scaled ({kind}), which is not supported")
    layers = text.get("layer_types") or ["full_attention"]
    if text.get("use_sliding_window") and (
        "sliding_attention" in layers
        or int(text.get("max_window_layers") or 0) < int(text["num_hidden_layers"])
    ):
        raise invalid(path, "its attention has a sliding window, which is not supported")
    heads = int(text["num_attention_heads"])
    channels = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
    sections = rope.get("mrope_section")
    if not isinstance(sections, list) or 2 * sum(sections) != channels:
        raise invalid(
            path, f"mrope_section must have three parts of together {channels // 2}, not {sections!r}"
        )


def digest(directory: Path) -> str:
    """sha256 (hex) over the names and whole contents of weights, config, preprocessor and tokenizer files.

    Whole files are hashed, not samples of them, so that equal digests mean equal models. Files are hashed
    side by side in threads (hashing releases the interpreter lock): about 10 s for the 16 GB of the 7B
    checkpoint, which loading hides; callers run it beside loading.
    """
    paths = [directory / name for name in (CONFIG, PREPROCESSOR, OWN, TOKENIZER, INDEX)]
    paths = [path for path in paths if path.is_file()] + weight_files(directory)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        digests = list(pool.map(_file_digest, paths))
    total = hashlib.sha256()
    for path, value in zip(paths, digests, strict=True):
        total.update(f"{path.name}\0{value}\n".encode())
    return total.hexdigest()


def _file_digest(path: Path) -> str:
    value = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value.update(chunk)
    return value.hexdigest()
