# SPDX-License-Identifier: Apache-2.0
"""Curate videos into samples:   python -m training.data.curation --config FILE.

Exit codes: 0 all done; 1 nothing could be done (the message says why); 3 part of it is left for another run
(budget spent, an endpoint does not answer); 130 interrupted. Run it again to go on: no answer is paid twice.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

from .config import ConfigError, CurationConfig, load_config
from .endpoint import Endpoint, Meter, Purse
from .outcome import Books
from .pipeline import Pipeline, calls
from .report import make_report, table, write_data, write_report
from .selection import find_videos, select
from .store import Store, StoreError

DONE, FAILED, UNFINISHED, INTERRUPTED = 0, 1, 3, 130
_PROGRESS_S = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.curation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML; see training/configs/curation.yaml")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
        with Store(Path(config.output) / "curation.sqlite") as store:
            return asyncio.run(_curate(config, store))
    except (ConfigError, StoreError, OSError) as error:
        print(f"curation failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted; run it again to go on", file=sys.stderr)
        return INTERRUPTED
    return FAILED


async def _curate(config: CurationConfig, store: Store) -> int:
    """One run: select, ask, write down."""
    output = Path(config.output)
    books, meter = Books(), Meter()
    purse = Purse(config.budget, store)
    used = {call.endpoint for call in calls(config)}
    endpoints = {name: Endpoint(name, config.endpoints[name], store, purse, meter) for name in sorted(used)}
    try:
        paths = find_videos(config.videos, leave_out=output)
        selecting = _Progress("measured", len(paths))
        clips = await select(paths, config.select, store, books, selecting)
        curating = _Progress("curated", len(clips))
        pipeline = Pipeline(config, endpoints, books, curating)
        samples = await pipeline.run(clips)
    finally:
        for endpoint in endpoints.values():
            await endpoint.close()
    report = make_report(samples, books, meter, store, pipeline.blind_score, purse.exceeded)
    try:
        write_data(output, samples, clips, books.losses)
        write_report(output, report)
    except OSError as error:
        raise StoreError(
            f"{output} cannot be written ({error}): make room there and run it again; nothing is paid twice"
        ) from error
    print(table(report))
    print(f"written to {output}")
    return DONE if books.complete else UNFINISHED


class _Progress:
    """A line now and then."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._shown < _PROGRESS_S and done < self._total:
            return
        self._shown = now
        left_s = (now - self._started) / done * (self._total - done)
        print(f"{self._what} {done}/{self._total} videos, {left_s / 60:.1f} min left", flush=True)


if __name__ == "__main__":
    sys.exit(main())
