# SPDX-License-Identifier: Apache-2.0
"""Questions for nano's second stage, from simulations that its first stage has not seen.

    python -m training.rl.nano     simulate, ask     -> build/nano/rl/data/{robot,physics,sense,none}
    python -m training.rl --config training/configs/rl_nano.yaml   -> build/nano/rl/run/model

The three data sets are the paper's families: embodied, intuitive physics and common sense.
Simulations have seeds of their own, from ``FIRST_SEED`` on; that no clip is one of fine-tuning's is checked
by the sha256 of their frames. Tasks that fine-tuning was not told of are not asked here either. ``none`` is a
held-out data set of multiple-choice questions, half of them without their right option, to be asked before
and after: ``python -m training.eval --bench build/nano/rl/data/none``.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cosmos_reason_node.types import QueryKind
from training.data.readers.jsonl import write_samples
from training.data.schema import Frames, Grid, Provenance, QuestionKind, Sample
from training.data.sim.generate import CLIPS, EPISODES, make, path_of
from training.data.sim.kinds import COMMON_SENSE, INTUITIVE_PHYSICS, kind_and_category
from training.data.sim.sample import SimSample
from training.eval.simulated import PERIOD_NS, Shown, Source, find_sources
from training.nano.source import HELD_OUT_TEXTS

from .tasks import with_none

WORK = Path("build/nano")
FIRST_SEED = 300_000  # of simulations; fine-tuning's lie far below
_KINDS = {
    QueryKind.COMPLETION: QuestionKind.TASK_COMPLETION,
    QueryKind.AFFORDANCE: QuestionKind.AFFORDANCE,
    QueryKind.NEXT_ACTION: QuestionKind.NEXT_ACTION,
}
_LENGTHS = (2, 8, 32)  # frames of robot windows
_DATA_SETS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("robot", EPISODES, ()),
    ("physics", CLIPS, INTUITIVE_PHYSICS),
    ("sense", CLIPS, COMMON_SENSE),
)


def simulate(root: Path, episodes: int, clips: int, processes: int) -> None:
    """Make what is missing of the second stage's simulations."""
    seeds = [(EPISODES, FIRST_SEED + i) for i in range(episodes)]
    seeds += [(CLIPS, FIRST_SEED + i) for i in range(clips)]
    jobs = [(root, *seed) for seed in seeds if not path_of(root, *seed).exists()]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for done, _ in enumerate(pool.imap_unordered(make, jobs, chunksize=4), 1):
            if done % 50 == 0 or done == len(jobs):
                print(f"simulated {done}/{len(jobs)}", flush=True)


def digests(directory: Path) -> dict[str, str]:
    """sha256 of the frames of each simulation in a folder, to its file."""
    found = {}
    for path in sorted(directory.glob("*.npz")):
        with np.load(path, allow_pickle=False) as archive:
            found[hashlib.sha256(archive["frames"].tobytes()).hexdigest()] = path.name
    return found


def check_disjoint(first: Path, second: Path) -> int:
    """How many simulations of ``second`` were compared with ``first``.

    Raises:
        ValueError: one is in both.
    """
    ours = digests(second)
    both = set(digests(first)) & set(ours)
    if both:
        raise ValueError(f"{ours[both.pop()]} of {second} is in {first} too: delete {second}")
    return len(ours)


def write_questions(
    source: Source,
    windows: int,
    directory: Path,
    split: str,
    *,
    groups: Sequence[str] = (),
    none: bool = False,
) -> int:
    """A data set of what can be asked of windows.

    Args:
        source: draws them.
        windows: how many; those about which nothing can be asked are left out.
        directory: of the data set; replaced.
        split: of all samples.
        groups: kinds of questions about clips to keep; all if empty.
        none: lettered questions only, with "none of the options" among the options.

    Returns:
        How many questions.
    """
    rng = np.random.default_rng([int.from_bytes(source.name.encode()[:8], "little"), none])
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    samples: list[Sample] = []
    for number, shown in enumerate(source.draw(windows, rng)):
        asked = [sample for sample in shown.samples if not groups or sample.group in groups]
        shown = dataclasses.replace(shown, samples=asked)
        made = list(_samples(shown, source.name, split, f"{number:05d}.npz"))
        if none:
            made = [with_none(sample, rng)[0] for sample in made if sample.options]
        if made:
            np.savez_compressed(partial / f"{number:05d}.npz", frames=shown.frames)
            samples += made
    write_samples(partial, samples)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    return len(samples)


def _samples(shown: Shown, source: str, split: str, path: str) -> Iterator[Sample]:
    stamps = tuple((shown.first + i) * PERIOD_NS + 1 for i in range(len(shown.frames)))
    media = (Frames((path,), stamps, grid=Grid(PERIOD_NS, shown.first)),)
    for number, asked in enumerate(shown.samples):
        query = asked.query
        if {query.task, query.action} & HELD_OUT_TEXTS:
            continue
        kind, category = _filed(asked)
        yield Sample(
            sample_id=f"{source}/{shown.name}/{number}",
            media=media,
            kind=kind,
            answer=asked.answer,
            provenance=Provenance(source, episode=shown.recording, made_by="training.data.sim"),
            split=split,
            task=query.task,
            action=query.action,
            question=query.question,
            options=query.options,
            yes_no=query.yes_no,
            category=category,
        )


def _filed(asked: SimSample) -> tuple[QuestionKind, str]:
    if asked.group:
        return kind_and_category(asked.group)
    return _KINDS[asked.query.kind], ""


def prepare(work: Path, episodes: int, clips: int, windows: int, processes: int) -> None:
    """All of the above; what exists is kept.

    Raises:
        FileNotFoundError: there are no simulations of the first stage to differ from and to ask about.
    """
    for needed in (work / EPISODES / "train", work / CLIPS / "train", work / CLIPS / "held_out"):
        if not any(needed.glob("*.npz")):
            raise FileNotFoundError(
                f"{needed} holds no simulations: the second stage follows the first, run `make nano` before "
                "(`python -m training.nano generate` makes them)"
            )
    root = work / "rl"
    simulate(root, episodes, clips, processes)
    for folder in (EPISODES, CLIPS):
        count = check_disjoint(work / folder / "train", root / folder / "train")
        print(f"{count} {folder}: none is among those of fine-tuning", flush=True)
    data = root / "data"
    for name, folder, groups in _DATA_SETS:
        if not (data / name).exists():
            sources = [s for length in _LENGTHS for s in find_sources([root / folder / "train"], length)]
            sources = sources if folder == EPISODES else sources[:1]  # clips have lengths of their own
            count = write_questions(Joined(sources), windows, data / name, "train", groups=groups)
            print(f"{name}: {count} questions about {windows} windows", flush=True)
    if not (data / "none").exists():
        (source,) = find_sources([work / CLIPS / "held_out"], 32)
        count = write_questions(source, windows // 4, data / "none", "held_out", none=True)
        print(f"none: {count} questions", flush=True)


class Joined:
    """Sources as one: equally many windows of each.

    Args:
        sources: at least one.
    """

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self.name = sources[0].name

    def draw(self, count: int, rng: np.random.Generator) -> Iterator[Shown]:
        """See Source."""
        for number, source in enumerate(self._sources):
            for shown in source.draw(count // len(self._sources), rng):
                yield dataclasses.replace(shown, name=f"{number}/{shown.name}")


def main() -> None:
    """Prepare."""
    parser = argparse.ArgumentParser(
        prog="python -m training.rl.nano",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--episodes", type=int, default=800)
    parser.add_argument("--clips", type=int, default=7000)
    parser.add_argument("--windows", type=int, default=8000, help="of each of the three data sets")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    try:
        prepare(options.work, options.episodes, options.clips, options.windows, options.processes)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
