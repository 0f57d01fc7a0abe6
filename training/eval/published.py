# SPDX-License-Identifier: Apache-2.0
"""Tables in the paper's layout: which item belongs to which column, and the published rows (accuracy, %).

Source: Cosmos-Reason1, arXiv 2503.15558. The average is the unweighted mean of a table's columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from training.data.schema import ONTOLOGY, QuestionKind

from .item import Item


@dataclass(frozen=True)
class Layout:
    """One of the paper's tables.

    Attributes:
        name: family of benchmarks.
        title: heading.
        columns: without the average.
        column_of: column of an item, "" = none of this table.
        rows: published: model -> values of the columns and, last, their average; None = not published.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    column_of: Callable[[Item], str]
    rows: dict[str, tuple[float | None, ...]]


# Begin of a subset's name in the released data sets ("bridgev2") -> its column.
EMBODIED_SUBSETS = {
    "bridge": "Bridge",
    "robovqa": "RoboVQA",
    "agibot": "AgiBot",
    "holoassist": "HoloAssist",
    "av": "AV",
    "robofail": "RoboFail",
}
PHYSICS_KINDS = {
    QuestionKind.ARROW_OF_TIME.value: "AoT",
    QuestionKind.SPATIAL_PUZZLE.value: "Puzzle",
    QuestionKind.OBJECT_PERMANENCE.value: "Obj. perm.",
}


def subset_of(source: str) -> str:
    """The embodied subset that a source's name begins with, or ""."""
    name = source.lower()
    return next((key for key in EMBODIED_SUBSETS if re.match(rf"{key}(v?\d|_|-|\b)", name)), "")


def _area(item: Item) -> str:
    if item.group in PHYSICS_KINDS:
        return ""
    return next((area.capitalize() for area, names in ONTOLOGY.items() if item.category in names), "")


def _embodied(item: Item) -> str:
    return EMBODIED_SUBSETS.get(subset_of(item.source), "")


LAYOUTS = (
    Layout(
        "common_sense",
        "Physical common sense",
        ("Space", "Time", "Physics"),
        _area,
        {
            "Gemini 2.0 Flash": (53.8, 50.0, 46.9, 50.2),
            "GPT-4o": (61.3, 54.7, 50.9, 55.6),
            "OpenAI o1": (63.8, 58.1, 58.0, 59.9),
            "Qwen2.5-VL-7B": (48.8, 56.4, 37.2, 47.4),
            "Nemotron-H-56B": (61.3, 68.1, 45.1, 58.2),
            "Cosmos-Reason1-7B (SFT)": (54.2, 58.7, 50.0, 54.3),
            "Cosmos-Reason1-7B + RL": (None, None, None, 56.2),
            "Cosmos-Reason1-56B (SFT)": (61.3, 65.5, 53.9, 60.2),
        },
    ),
    Layout(
        "embodied",
        "Embodied reasoning",
        ("Bridge", "RoboVQA", "AgiBot", "HoloAssist", "AV", "RoboFail"),
        _embodied,
        {
            "Gemini 2.0 Flash": (25.0, 78.2, 29.0, 44.0, 37.0, 67.0, 46.7),
            "GPT-4o": (42.0, 71.8, 32.0, 65.0, 46.0, 63.0, 53.3),
            "OpenAI o1": (42.0, 80.0, 44.0, 63.0, 37.0, 61.0, 54.5),
            "Qwen2.5-VL-7B": (38.0, 82.5, 40.4, 50.0, 36.0, 57.6, 50.8),
            "Nemotron-H-56B": (37.0, 77.2, 37.0, 65.0, 41.0, 64.0, 53.5),
            "Cosmos-Reason1-7B": (58.8, 83.8, 49.4, 63.0, 55.6, 60.0, 61.8),
            "Cosmos-Reason1-56B": (65.0, 80.0, 47.6, 57.8, 65.8, 66.2, 63.7),
            # Its published average, 65.7, is a seven-way mean with common sense (SFT on that basis: 60.7).
            "Cosmos-Reason1-7B + RL (average: of seven, with common sense)": (
                73.5,
                86.8,
                54.2,
                60.0,
                67.0,
                62.0,
                65.7,
            ),
        },
    ),
    Layout(
        "intuitive_physics",
        "Intuitive physics",
        ("AoT", "Puzzle", "Obj. perm."),
        lambda item: PHYSICS_KINDS.get(item.group, ""),
        {
            "random": (50.0, 25.0, 50.0, 41.7),
            "Gemini 2.0 Flash": (50.0, 31.0, 48.0, 43.0),
            "GPT-4o": (50.0, 77.0, 48.0, 58.3),
            "OpenAI o1": (51.0, 64.0, 49.0, 54.7),
            "Qwen2.5-VL-7B": (50.2, 27.2, 48.8, 42.1),
            "Cosmos-Reason1-7B (SFT)": (56.0, 85.4, 82.0, 74.5),
            "Cosmos-Reason1-7B + RL": (64.5, 94.0, 86.0, 81.5),
        },
    ),
)
