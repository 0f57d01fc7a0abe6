# SPDX-License-Identifier: Apache-2.0
"""What the simulator asks: a window of a recording and one question about it.

``training.data.schema`` has the record that all sources of training data share.
"""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_reason_node.types import Query


@dataclass(frozen=True)
class SimProvenance:
    """Where a sample comes from.

    Attributes:
        source: data source ("sim").
        split: "train" or "held_out".
        seed: of the episode.
        scene, plan: of the episode.
        embodiment: which robot.
    """

    source: str
    split: str
    seed: int
    scene: str
    plan: str
    embodiment: str = "sawyer"


@dataclass(frozen=True)
class Span:
    """The window that is asked about, on the episode's 4 fps time grid.

    Attributes:
        first: index of its first frame; even, as windows of the node start on pairs.
        length: number of frames, even.
    """

    first: int
    length: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.first % 2 or self.length < 2 or self.length % 2:
            raise ValueError(f"a window starts on an even frame and has an even length, got {self}")

    @property
    def last(self) -> int:
        """Index of the newest frame: the moment that is asked about."""
        return self.first + self.length - 1


@dataclass(frozen=True)
class SimSample:
    """One question about one window, with its answer.

    Attributes:
        span: the window.
        query: the question, as the node would ask it.
        answer: "yes", "no", an option's letter, or a phrase.
        reasoning: one or two short sentences that lead to the answer.
        provenance: where the video comes from.
        group: name under which it is scored ("arrow_of_time", "relationship"); "" for the node's own queries,
            whose kind says it.
    """

    span: Span
    query: Query
    answer: str
    reasoning: str
    provenance: SimProvenance
    group: str = ""
