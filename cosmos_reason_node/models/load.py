# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of either family in memory."""

from __future__ import annotations

from pathlib import Path

from . import qwen2_5_vl
from .qwen2_5_vl import LoadedModel
from .spec import read_model_spec


def load(model_dir: str | Path, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a checkpoint directory of Qwen2.5-VL or of a hybrid; arguments and errors as qwen2_5_vl.load."""
    if not read_model_spec(model_dir).hybrid:
        return qwen2_5_vl.load(model_dir, device, dtype)
    from . import hybrid  # imports transformers' classes

    return hybrid.load(model_dir, device, dtype)
