# SPDX-License-Identifier: Apache-2.0
"""How efficient a cluster would be: a discrete-event simulation of the loops, fed by measured phase times.

    python -m training.rl.simulate --json benchmarks/results/rl_simulation.json --plot docs/rl_scaling.png

    synchronous   all GPUs generate the batch, wait for its longest answer, then all train, then all load
    asynchronous  some GPUs generate, the others train; tickets, throttling and publication as in books.py

The simulated cluster is asked the same as the real books: iteration n consists of its own tickets, which are
given out while n <= version + max_staleness. What is measured goes in (``Phases``): lengths of answers,
seconds a token and a prompt, of training an answer, of a publication. What it leaves out: failures, slow
networks beyond the measured publication, and batches of a size that no longer fills a GPU.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

_STEPS = 12
_WARM = 3  # first steps, which fill the pipeline, are not counted


@dataclass(frozen=True)
class Phases:
    """Measured times of one GPU (or CPU core), seconds.

    Attributes:
        prompt_s: to encode a question with its video.
        token_s: to write one token of all answers of a group at once.
        train_s: to train on one answer.
        load_s: to take new weights; publish_s: to write them.
        median_tokens, sigma: of the log-normal lengths of answers; max_tokens cuts them.
    """

    prompt_s: float
    token_s: float
    train_s: float
    load_s: float
    publish_s: float
    median_tokens: float
    sigma: float
    max_tokens: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise ValueError(f"{name}: {value!r} is no number from 0 on; correct it")

    def group_s(self, group_size: int, rng: np.random.Generator) -> float:
        """Seconds of one group: until its longest answer ends."""
        lengths = self.median_tokens * np.exp(self.sigma * rng.standard_normal(group_size))
        return self.prompt_s + self.token_s * float(np.minimum(lengths, self.max_tokens).max())


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        gpus: all of them.
        train_share: of the GPUs that train, asynchronously.
        questions, group_size: of an iteration.
        slots: groups that a GPU writes at a time; a rollout worker writes one.
        max_staleness: as in RolloutConfig.
        train_efficiency: speed-up of training per doubling of its GPUs, 1 = ideal.
    """

    gpus: int
    train_share: float = 0.25
    questions: int = 128
    group_size: int = 9
    slots: int = 1
    max_staleness: int = 1
    train_efficiency: float = 0.95

    def train_s(self, phases: Phases, gpus: int) -> float:
        """Seconds of an optimizer step on so many GPUs."""
        alone = phases.train_s * self.questions * self.group_size
        return alone / gpus / self.train_efficiency ** np.log2(max(1, gpus))


def synchronous(phases: Phases, cluster: Cluster, seed: int = 0) -> float:
    """Seconds of an iteration with all GPUs doing the same."""
    rng = np.random.default_rng(seed)
    times = []
    for _ in range(_STEPS):
        jobs = [phases.group_s(cluster.group_size, rng) for _ in range(cluster.questions)]
        rolled = _makespan(jobs, cluster.gpus * cluster.slots)
        times.append(rolled + cluster.train_s(phases, cluster.gpus) + phases.publish_s + phases.load_s)
    return float(np.mean(times[_WARM:]))


def asynchronous(phases: Phases, cluster: Cluster, seed: int = 0) -> dict[str, float]:
    """Seconds of an iteration with GPUs divided; shares of time that the two parts wait."""
    rng = np.random.default_rng(seed)
    trainers = min(cluster.gpus - 1, max(1, round(cluster.gpus * cluster.train_share)))
    lanes = (cluster.gpus - trainers) * cluster.slots
    train_s = cluster.train_s(phases, trainers)
    total = _STEPS * cluster.questions
    events: list[
        tuple[float, int, int]
    ] = []  # when, kind (0: a group is ready, 1: a step is done), iteration
    free, issued, version = lanes, 0, 0
    missing = [cluster.questions] * _STEPS
    training_since, busy_train, busy_lanes, now = -1.0, 0.0, 0.0, 0.0
    finished: list[float] = []
    fresh = [0] * (_STEPS + 1)  # lanes that have loaded a version

    while version < _STEPS:
        bound = min(total, (version + cluster.max_staleness + 1) * cluster.questions)
        while free and issued < bound:
            loading = phases.load_s if fresh[version] < lanes else 0.0
            fresh[version] += 1
            seconds = loading + phases.group_s(cluster.group_size, rng)
            heapq.heappush(events, (now + seconds, 0, issued // cluster.questions))
            busy_lanes += seconds
            issued, free = issued + 1, free - 1
        if training_since < 0 and missing[version] == 0:
            training_since = now
            heapq.heappush(events, (now + train_s + phases.publish_s, 1, version))
            busy_train += train_s + phases.publish_s
        now, kind, iteration = heapq.heappop(events)
        if kind == 0:
            missing[iteration] -= 1
            free += 1
        else:
            finished.append(now)
            training_since, version = -1.0, version + 1
    seconds = (finished[-1] - finished[_WARM - 1]) / (_STEPS - _WARM)
    return {
        "seconds": seconds,
        "trainer_idle": 1 - busy_train / finished[-1],
        "rollout_idle": max(0.0, 1 - busy_lanes / lanes / finished[-1]),
        "train_gpus": trainers,
    }


def compare(phases: Phases, cluster: Cluster) -> dict[str, Any]:
    """Synchronous against asynchronous with the best division of GPUs."""
    sync = synchronous(phases, cluster)
    shares = sorted({round(n / 16 * cluster.gpus) / cluster.gpus for n in range(1, 13)} - {0.0, 1.0})
    tried = [(asynchronous(phases, replace(cluster, train_share=s)), s) for s in shares or [0.5]]
    best, share = min(tried, key=lambda item: item[0]["seconds"])
    return {
        "gpus": cluster.gpus,
        "synchronous_s": sync,
        "asynchronous_s": best["seconds"],
        "speed_up": sync / best["seconds"],
        "train_share": share,
        "trainer_idle": best["trainer_idle"],
        "rollout_idle": best["rollout_idle"],
    }


def _makespan(jobs: Sequence[float], lanes: int) -> float:
    """Seconds until all are done, each taken by the lane that is free first."""
    ends = [0.0] * min(lanes, len(jobs))
    for seconds in jobs:
        heapq.heappush(ends, heapq.heappop(ends) + seconds)
    return max(ends)


# Of the 7B model on one H100, none of them measured: from operation counts and memory bandwidth; lengths as
# published for reasoning models.
ESTIMATED_7B = Phases(
    prompt_s=0.35,
    token_s=0.012,
    train_s=0.55,
    load_s=4.0,
    publish_s=8.0,
    median_tokens=700,
    sigma=0.8,
    max_tokens=6144,
)
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)


def scaling(phases: Phases, *, grow: bool) -> list[dict[str, Any]]:
    """Predictions from 8 to 1,024 GPUs; with ``grow`` the batch grows with the cluster (128 on 32 GPUs)."""
    return [compare(phases, Cluster(gpus, questions=max(32, 4 * gpus) if grow else 128)) for gpus in GPUS]


def plot(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Speed-up over the number of GPUs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, rows in results.items():
        axes.plot([row["gpus"] for row in rows], [row["speed_up"] for row in rows], "o-", label=name)
    axes.axhline(1.6, color="0.6", linestyle="--", linewidth=1, label="the paper's 160 %")
    axes.set_xscale("log", base=2)
    axes.set_xticks(GPUS, [str(n) for n in GPUS])
    axes.set_xlabel("GPUs")
    axes.set_ylabel("asynchronous against colocated synchronous, times")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with path.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def main() -> None:
    """Predict and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m training.rl.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--phases", type=Path, help="JSON of measured phases; default: estimates of the 7B model"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    try:
        phases = Phases(**json.loads(options.phases.read_text())) if options.phases else ESTIMATED_7B
    except (OSError, ValueError, TypeError) as error:  # TypeError: a field is missing, or unknown
        parser.error(f"--phases {options.phases}: {error}; give {', '.join(asdict(ESTIMATED_7B))}")
    results = {
        "batch grows with the cluster": scaling(phases, grow=True),
        "batch of 128 questions": scaling(phases, grow=False),
    }
    for name, rows in results.items():
        print(name)
        for row in rows:
            print("  " + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if options.json:
        told = {"phases": asdict(phases), "predictions": results}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
