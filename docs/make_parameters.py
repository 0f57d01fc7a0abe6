# SPDX-License-Identifier: Apache-2.0
"""Write docs/parameters.md from the settings schema: ``python docs/make_parameters.py``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cosmos_reason_node.config import Config  # noqa: E402  (the source tree comes first)

HEAD = """# Parameters of the node

Made by `python docs/make_parameters.py` from `cosmos_reason_node/config.py`, the only schema; a test keeps
the two equal. *Live* parameters may change while the node is active, the others are read when it is
configured. A default of 0 for a setting of the window takes the checkpoint's own value.

| parameter | default | bounds | live | meaning |
|---|---|---|---|---|
"""


def cell(value: Any) -> str:
    """A value as a table cell."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f"'{item}'" for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)


def table() -> str:
    """The whole page."""
    rows = []
    for f in dataclasses.fields(Config):
        low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
        bounds = ", ".join(choices) if choices else "" if low is None else f"{low} to {high}"
        live = "yes" if f.metadata["live"] else ""
        rows.append(f"| `{f.name}` | `{cell(f.default)}` | {bounds} | {live} | {f.metadata['doc']} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "parameters.md").write_text(table(), encoding="utf-8")
