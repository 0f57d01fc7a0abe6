# SPDX-License-Identifier: Apache-2.0
"""Training state on disk: written whole or not at all, safetensors and JSON only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_LATEST = "latest"


def save(directory: Path, step: int, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Replace the checkpoint in ``directory`` by the state after ``step``."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, module in modules.items():
        save_file(_unshared(module.state_dict()), partial / f"{name}.safetensors")
    moments, steps = {}, {}
    for index, state in optimizer.state_dict()["state"].items():
        moments[f"{index}.exp_avg"] = state["exp_avg"].contiguous()
        moments[f"{index}.exp_avg_sq"] = state["exp_avg_sq"].contiguous()
        steps[str(index)] = float(state["step"])
    save_file(moments, partial / "optimizer.safetensors")
    (partial / "state.json").write_text(
        json.dumps({"step": step, "optimizer_steps": steps}), encoding="utf-8"
    )
    latest, old = directory / _LATEST, directory / f"old-{os.getpid()}"
    if latest.exists():
        latest.rename(old)
    partial.rename(latest)
    shutil.rmtree(old, ignore_errors=True)


def resume(directory: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint into modules and optimizer; returns its step, 0 where there is none."""
    latest = directory / _LATEST
    if not latest.exists():
        kept = sorted(directory.glob("old-*"))  # killed between the two renames of ``save``
        if not kept:
            return 0
        latest = kept[-1]
    for name, module in modules.items():
        missing, unexpected = module.load_state_dict(load_file(latest / f"{name}.safetensors"), strict=False)
        tied = [key for key in missing if "lm_head" not in key]
        if tied or unexpected:
            raise ValueError(
                f"{latest} is of another architecture (missing {tied[:3]}, unexpected {unexpected[:3]}): "
                "choose another directory or delete it"
            )
    state = json.loads((latest / "state.json").read_text(encoding="utf-8"))
    moments = load_file(latest / "optimizer.safetensors")
    whole = optimizer.state_dict()
    whole["state"] = {
        int(index): {
            "step": torch.tensor(count),
            "exp_avg": moments[f"{index}.exp_avg"],
            "exp_avg_sq": moments[f"{index}.exp_avg_sq"],
        }
        for index, count in state["optimizer_steps"].items()
    }
    optimizer.load_state_dict(whole)
    return int(state["step"])


def _unshared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without second names of tied weights, which safetensors refuses."""
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.contiguous()
    return kept
