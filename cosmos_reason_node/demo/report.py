# SPDX-License-Identifier: Apache-2.0
"""The picture report of a session: one HTML file without external requests.

    python -m cosmos_reason_node.demo.report build/demo    # writes build/demo/report.html again

Everything a model or a user wrote is escaped, and the page's content policy runs no script but its own.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from .album import Album
from .markup import Markup, element, join, json_block
from .parts import asked_by_hand, header, health, latency, player, script_data
from .rows import decision_list
from .session import Record, Session, load
from .timeline import Axis

REPORT_FILE = "report.html"


def build(session: Session, records: Sequence[Record], frames: Mapping[int, bytes]) -> str:
    """The whole page.

    Args:
        session: what was watched, with which machine.
        records: all decisions, in any order.
        frames: JPEG files by capture stamp, ns.
    """
    records = sorted(
        records, key=lambda record: (record.stamp_ns or record.published_ns, record.published_ns)
    )
    album = Album(frames, records)
    axis = _axis(session, records)
    script = _asset("report.js")
    body = join(
        album.definitions(),
        header(session, records),
        element(
            "main",
            player(session, records, album, axis),
            asked_by_hand(records, album, axis),
            latency(records, axis),
            decision_list(records, album, axis, session),
            health(session, records),
        ),
        element(
            "footer", "Made by cosmos_reason from decisions.jsonl. Times are capture times of the camera."
        ),
        json_block("session-data", script_data(session, records, album, axis)),
        element("script", Markup(script)),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"cosmos_reason: {session.task or session.source}"),
        element("style", Markup(_asset("report.css"))),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def write(directory: Path) -> Path:
    """Build the report of a session's directory.

    Raises:
        FileNotFoundError, ValueError: see ``session.load``.
    """
    path = directory / REPORT_FILE
    path.write_text(build(*load(directory)), encoding="utf-8")
    return path


def _axis(session: Session, records: Sequence[Record]) -> Axis:
    stamps = [record.stamp_ns for record in records if record.stamp_ns]
    zero_ns = session.first_stamp_ns or min(stamps, default=0)
    longest = max((stamp - zero_ns for stamp in stamps), default=0) / 1e9
    return Axis(zero_ns, max(longest, session.duration_s, 0.1))


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cosmos_reason_node.demo.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, help="a session's directory, e.g. build/demo")
    try:
        print(write(parser.parse_args().directory))
    except (FileNotFoundError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
