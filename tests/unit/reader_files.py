# SPDX-License-Identifier: Apache-2.0
"""Files in foreign layouts, and what their readers find wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

from cosmos_reason_node.vision.patchify import PatchSpec
from training.data.media import WindowSpec
from training.data.problems import DataError
from training.data.readers import open_data_set

SPEC = WindowSpec(250_000_000, 8, PatchSpec(), frame_size=(28, 28))


def write(path: Path, rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def problems(root: Path) -> list[tuple[int, str, str]]:
    try:
        data = open_data_set(root, strict=False)
    except DataError as error:
        return [(problem.row, problem.field, problem.message) for problem in error.problems]
    return [(problem.row, problem.field, problem.message) for problem in data.report.problems]
