# SPDX-License-Identifier: Apache-2.0
"""The memory estimates of reinforcement learning against torch's own accounting, and what they refuse."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_reason_node.models.spec import read_json
from tests.unit.sft_files import make_data, make_model
from tests.unit.test_sft_memory import SEVEN_BILLION, peak_of
from training.rl import memory
from training.rl.config import ConfigError, load_config, make_config
from training.rl.groups import Group, Judgement, Sampled, Ticket
from training.rl.loop import make_roller, make_sampler, run_inline
from training.rl.policy import RowPacker
from training.rl.run import prepare
from training.sft.data import plan
from training.sft.loop import make_optimizer
from training.sft.memory import Parameters, PassSize, count_parameters
from training.sft.parallel import Context

torch.set_num_threads(1)
ALONE = Context(0, 1, 1, torch.device("cpu"))
FACTOR = 1.35  # as in fine-tuning's test
GROUP, TOKENS = 6, 64
CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("memory")
    return make_model(root / "base"), make_data(root / "data", windows=4, frames=(32, 16))


def settings(files, output, **sections):
    value = {
        "model": {"path": str(files[0]), "compute": "float32", "checkpointing": False},
        "data": {"sources": [{"path": str(files[1])}], "max_tokens": 4096},
        "run": {"output": str(output), "device": "cpu", "threads": 1},
        "grpo": {"group_size": GROUP},
        "rollout": {"max_tokens": TOKENS, "max_staleness": 0},
        "optimizer": {"steps": 2, "batch": 4},
    }
    for name, changes in sections.items():
        value[name] = value[name] | changes
    return make_config(value)


def full_groups(config, sampler, length):
    """Judged groups of answers of ``length`` tokens, with their questions."""
    for place in range(config.questions):
        task = sampler.draw(Ticket(0, place, 0))
        tokens = tuple(np.random.default_rng(place).integers(5, 200, length).tolist())
        answer = Sampled("x", tokens, (-1.0,) * length, (0,) * length, True)
        judged = tuple(Judgement(1.0, i % 2, 1.0 + i % 2) for i in range(GROUP))
        yield Group(Ticket(0, place, 0), task.source, (answer,) * GROUP, judged), task


@pytest.mark.parametrize(
    ("model", "kl"),
    [
        ({}, 0.0),
        ({}, 0.01),
        ({"train_vision": False}, 0.01),
        ({"compute": "bfloat16", "checkpointing": True}, 0.01),
    ],
    ids=["no-reference", "reference", "frozen-tower", "bfloat16-checkpointing"],
)
def test_the_trainers_estimate_is_near_the_measured_peak(files, tmp_path, model, kl):
    config = settings(files, tmp_path / "run", model=model, grpo={"kl_coefficient": kl})
    loaded, objective = prepare(config, files[0], ALONE)
    sampler = make_sampler(config)
    packer = RowPacker(loaded, config, sampler.window)
    pairs = [pair for pair in full_groups(config, sampler, TOKENS) if pair[1].sample.media]
    rows = [row for group, task in pairs for row in packer.rows(group, task)]
    batch = packer.batch(rows[:2])
    count = count_parameters(files[0], memory.fine_tuning(config))
    size = PassSize(batch.size, batch.rows.tokens.shape[1], len(batch.rows.patches), len(batch.rows.labels))
    estimated = memory.estimate_trainer(read_json(files[0] / "config.json"), count, size, config)
    optimizer = make_optimizer(objective, config.optimizer, ALONE.device)
    objective.train()

    def step():
        objective(batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()

    networks = [objective, *(reference for reference in objective._reference if reference is not None)]
    parameters = itertools.chain(*(network.parameters() for network in networks))
    weights = sum(p.numel() * p.element_size() for p in parameters)
    measured = weights + peak_of(lambda: (step(), step()))
    print(
        f"estimated {estimated}; measured {measured / 2**20:.0f} MiB, ratio {estimated.total / measured:.2f}"
    )
    assert measured / 1.1 < estimated.total < measured * FACTOR
    assert bool(estimated.reference) is bool(kl)


@pytest.mark.parametrize(("group", "together"), [(2, 1), (16, 1), (64, 1), (64, 4)])
def test_the_engines_estimate_is_near_the_measured_peak(files, tmp_path, group, together):
    rollout = {"max_tokens": 8, "together": together}
    config = settings(files, tmp_path / "run", rollout=rollout, grpo={"group_size": group})
    sampler = make_sampler(config)
    roller = make_roller(config, sampler)
    roller.version = 0
    count = count_parameters(files[0], memory.fine_tuning(config))
    question = memory.longest_question(config, sampler)
    estimated = memory.estimate_engine(read_json(files[0] / "config.json"), count, question, config, 2)
    tickets = [Ticket(0, place, 0) for place in range(20)]
    tickets.sort(key=lambda ticket: sum(len(m.stamps_ns) for m in sampler.draw(ticket).sample.media))
    longest = tickets[-together:]
    weights = sum(p.numel() * p.element_size() for p in roller._model.network.parameters())
    roller.roll_round(longest)  # what is made once is made
    measured = weights + peak_of(lambda: roller.roll_round(longest))
    print(
        f"estimated {estimated}; measured {measured / 2**20:.0f} MiB, ratio {estimated.total / measured:.2f}"
    )
    assert measured / 1.1 < estimated.total < measured * FACTOR


@pytest.mark.parametrize("max_tokens", [64, 1500, 100_000])
def test_no_pass_is_larger_than_the_bound(files, tmp_path, max_tokens):
    config = settings(files, tmp_path / "run", data={"max_tokens": max_tokens})
    sampler = make_sampler(config)
    loaded = make_roller(config, sampler)._model
    packer = RowPacker(loaded, config, sampler.window)
    question = memory.longest_question(config, sampler)
    bound = memory.largest_pass(config, question, loaded.spec.patches.merge)
    for length in (1, TOKENS // 2, TOKENS):
        groups = full_groups(config, sampler, length)
        rows = [row for group, task in groups for row in packer.rows(group, task)]
        for made in plan(rows, max_tokens, 1):
            batch = packer.batch(made).rows
            assert batch.size <= bound.tokens
            assert batch.tokens.shape[1] <= bound.length
            assert len(batch.patches) <= bound.patches
            assert len(batch.labels) <= bound.answers


def test_a_run_says_what_it_needs_and_does_not_start_where_it_does_not_fit(
    files, tmp_path, monkeypatch, capsys
):
    config = settings(files, tmp_path / "run")
    sampler = make_sampler(config)
    question = memory.longest_question(config, sampler)
    lines = memory.check_memory(config, question)
    assert "of a rollout worker" in lines[0]
    for part in ("weights", "gradients", "moments", "activations", "logits", "reference", "engines"):
        assert part in lines[1]

    class Little:
        available = 1 << 20

    monkeypatch.setattr("training.sft.memory.psutil.virtual_memory", Little)
    with pytest.raises(
        ConfigError, match=r"1 MiB free.*To fit: .*kl_coefficient: 0.*run.check_memory: false"
    ):
        run_inline(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    anyway = dataclasses.replace(config, run=dataclasses.replace(config.run, check_memory=False))
    assert memory.check_memory(anyway, question) == [
        line.replace(line[line.index("; each of") :], "; each of 1 processes has 1 MiB free")
        if "; each of" in line
        else line
        for line in lines
    ]


def test_engines_count_where_they_share_the_trainers_memory(files, tmp_path):
    def on_ray(cuda, nodes=1, run=None, rollout=None):
        config = settings(
            files,
            tmp_path / "run",
            run={"launcher": "ray"} | (run or {}),
            rollout={"workers": 4, "gpus": 0.25} | (rollout or {}),
        )
        workers = -(-config.rollout.workers // nodes)
        return memory._engines_beside(config, workers, cuda=cuda)

    assert on_ray(cuda=False) == 4
    assert on_ray(cuda=False, nodes=2) == 2
    assert on_ray(cuda=True, run={"gpus": 0.5}) == 2
    assert on_ray(cuda=True, run={"gpus": 0.5}, rollout={"workers": 1}) == 1
    assert on_ray(cuda=True, run={"gpus": 1.0}) == 0
    assert on_ray(cuda=True, run={"gpus": 0.5}, rollout={"gpus": 0.0}) == 0
    assert on_ray(cuda=True, run={"processes": 2}) == 0


def test_the_papers_recipe_on_eight_gpus():
    """Cosmos-Reason1-7B by the shipped settings: a trainer's GPU and a rollout worker's, of 80 GB each."""
    config = load_config(CONFIGS / "rl_cosmos_reason1_7b.yaml")
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, dtype="bfloat16"))
    count = Parameters(8_292_166_656, 8_292_166_656, 233_000_000, 1_140_000_000)
    question = memory.Question(shared=4300, text=200, visual=4096)
    size = memory.largest_pass(config, question, 2)
    trainer = memory.estimate_trainer(SEVEN_BILLION, count, size, config)
    engine = memory.estimate_engine(SEVEN_BILLION, count, question, config, 2)
    assert 40e9 < trainer.total < 80e9
    assert trainer.reference > 4 * count.total // 8
    assert 2 * count.total < engine.total < 40e9
    without = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, kl_coefficient=0.0))
    saved = trainer.total - memory.estimate_trainer(SEVEN_BILLION, count, size, without).total
    assert saved == trainer.reference
