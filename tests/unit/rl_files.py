# SPDX-License-Identifier: Apache-2.0
"""A toy model and data set, and short runs on them."""

import numpy as np

from training.rl import toy
from training.rl.config import RlConfig
from training.rl.groups import Ticket
from training.rl.loop import make_roller
from training.rl.rewards import judge
from training.sft.report import read_log


def make_base(root):
    """A warmed-up toy checkpoint (just the format) and its questions."""
    data = toy.write_data(root / "data", 24, 1)
    return toy.warm_up(toy.write_model(root / "base", 0), data, 0, steps=60), data


def short(base, data, output, /, **sections) -> RlConfig:
    """Settings of a run of four iterations of four questions."""
    changes = {
        "optimizer": {"steps": 4, "batch": 4, "warm_up": 0},
        "grpo": {"group_size": 4, "kl_coefficient": 0.01},
        "run": {"save_every": 2},
    }
    for name, more in sections.items():
        changes[name] = changes.get(name, {}) | more
    return toy.settings(base, data, output, 0, **changes)


def rolled(config):
    """The roller at version 0, and the judged groups of the first three tickets with their tasks."""
    roller = make_roller(config)
    roller.version = 0
    tickets = [Ticket(0, place, 0) for place in range(3)]
    tasks = [roller.sampler.draw(ticket) for ticket in tickets]
    groups = [judge(roller.roll(ticket), task, config) for ticket, task in zip(tickets, tasks, strict=True)]
    return roller, list(zip(groups, tasks, strict=True))


def story(output):
    """What decides whether two runs are the same: every sampled token, and every loss, bit for bit."""
    told = [(entry["step"], entry["digest"], entry["attempts"]) for entry in read_log(output / "monitor")]
    return told, [(e["step"], e["loss"], e["grad_norm"], e["kl"]) for e in read_log(output)]


def close(a, b, most):
    """Whether two sequences differ by at most ``most`` anywhere."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max()) <= most
