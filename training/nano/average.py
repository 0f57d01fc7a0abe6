# SPDX-License-Identifier: Apache-2.0
"""The mean of the weights of several checkpoints that training made of the same one.

Runs from one beginning end in weights whose mean is often better than each (Wortsman et al., "Model soups",
2022): what they have learned in common stays, what is each one's noise is halved.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cosmos_reason_node.models.checkpoint import SINGLE, check_files
from cosmos_reason_node.models.spec import CONFIG, OWN, PREPROCESSOR, TOKENIZER
from training.sft.store import NOT_WRITTEN, StoreError, replacing

_ONE = (CONFIG, OWN, PREPROCESSOR, TOKENIZER)  # the same in all
_BESIDE = ("generation_config.json", "tokenizer_config.json")


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Write the mean of checkpoints, with the first one's description.

    Args:
        checkpoints: directories, two or more, of one architecture and tokenizer; weights in one file.
        out: directory to write; one that is there is replaced once the new one is whole.

    Raises:
        CosmosReasonError: one is not there or damaged.
        ValueError: they are not of one beginning.
        StoreError: it cannot be written.
    """
    first = checkpoints[0]
    if len(checkpoints) < 2 or out.resolve() in [one.resolve() for one in checkpoints]:
        raise ValueError("name two checkpoints or more, and another folder for --out")
    for one in checkpoints:
        if [path.name for path in check_files(one)] != [SINGLE]:
            raise ValueError(f"{one} has its weights in several files, which are not averaged")
        for name in _ONE:
            if _content(one / name) != _content(first / name):
                raise ValueError(
                    f"{one / name} is not that of {first}: only runs from one beginning are averaged"
                )
    total = load_file(first / SINGLE)
    types = {name: tensor.dtype for name, tensor in total.items()}
    total = {name: tensor.double() for name, tensor in total.items()}
    for one in checkpoints[1:]:
        weights = load_file(one / SINGLE)
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in total.items()
        }:
            raise ValueError(f"{one / SINGLE} holds other tensors than that of {first}")
        for name, tensor in weights.items():
            total[name] += tensor
    mean: dict[str, torch.Tensor] = {
        name: (tensor / len(checkpoints)).to(types[name]) for name, tensor in total.items()
    }
    try:
        with replacing(out) as partial:
            for name in (*_ONE, *_BESIDE):
                if (first / name).is_file():
                    shutil.copyfile(first / name, partial / name)
            save_file(mean, partial / SINGLE, metadata={"format": "pt"})
            (partial / SINGLE).chmod(0o644)  # written for its owner alone
    except NOT_WRITTEN as error:
        raise StoreError(f"{out} cannot be written ({error}): make room there and start it again") from error


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
