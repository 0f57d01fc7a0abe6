# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of either family in memory."""

from __future__ import annotations

from pathlib import Path

from .qwen2_5_vl import LoadedModel
from .qwen2_5_vl import load as load_qwen
from .spec import read_model_spec


def load(model_dir: str | Path, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a checkpoint directory of Qwen2.5-VL or of a hybrid; arguments and errors as qwen2_5_vl.load."""
    if not read_model_spec(model_dir).hybrid:
        return load_qwen(model_dir, device, dtype)
    from .hybrid import load as load_hybrid  # imports transformers' classes

    return load_hybrid(model_dir, device, dtype)
