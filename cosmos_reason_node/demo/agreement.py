# SPDX-License-Identifier: Apache-2.0
"""How often the answers are what really happened, where the recording knows it."""

from __future__ import annotations

from collections.abc import Sequence

from .session import Record, Session


def agreement(session: Session, records: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Query kind -> (right answers, answers judged) of the monitors.

    An answer is about its newest frame's moment. Moments without a label are not judged; errors are not
    answers; UNKNOWN is judged, and wrong.
    """
    counts: dict[str, tuple[int, int]] = {}
    for record in records:
        if record.source != "monitor" or record.failed:
            continue
        label = label_at(session, record.kind, (record.stamp_ns - session.first_stamp_ns) / 1e9)
        if label is not None:
            right, judged = counts.get(record.kind, (0, 0))
            counts[record.kind] = (right + (record.headline.lower() == label.lower()), judged + 1)
    return counts


def label_at(session: Session, kind: str, seconds: float) -> str | None:
    """What is true at a session time; None where the recording does not say."""
    for start_s, end_s, label in session.truth.get(kind, ()):
        if start_s <= seconds < end_s:
            return label
    return None
