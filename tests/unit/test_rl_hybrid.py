# SPDX-License-Identifier: Apache-2.0
"""Reinforcement learning of the hybrid family: the same loop, branches read one after the other."""

from pathlib import Path

import pytest
import torch

from cosmos_reason_node.engine.run import FORCED_TOKENS
from cosmos_reason_node.models import parts
from cosmos_reason_node.models.load import load
from cosmos_reason_node.models.spec import read_json
from tests import tiny_hybrid
from tests.unit.rl_files import close, rolled, short
from tests.unit.sft_files import settings
from training.rl import toy
from training.rl.loop import make_sampler, run_inline
from training.rl.memory import check_memory, estimate_engine, fine_tuning, longest_question
from training.rl.policy import GrpoLoss, Policy, RowPacker
from training.rl.run import prepare
from training.settings import make_settings
from training.sft import run
from training.sft.config import SftConfig
from training.sft.memory import count_parameters
from training.sft.parallel import Context
from training.sft.report import read_log

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("rl")
    data = toy.write_data(root / "data", 24, 1)
    raw = tiny_hybrid.write(root / "raw", fps=4.0)
    # A few steps teach the format, without which every answer earns the same.
    tuning = settings(raw, data, root / "sft", optimizer={"steps": 30, "peak_rate": 3e-3})
    run.run(make_settings(SftConfig, tuning))
    return root / "sft" / "model", data


def test_rollout_log_probs_equal_the_trainers(base, tmp_path):
    config = short(*base, tmp_path / "run")
    roller, judged = rolled(config)
    model = load(config.model.path, device="cpu", dtype="float32")
    packer = RowPacker(model, config, roller.sampler.window)
    rows = [row for group, task in judged for row in packer.rows(group, task)]
    batch = packer.batch(rows)
    policy = Policy(model, torch.float32, frozen_vision=False)
    assert close(GrpoLoss(policy, None, config.grpo).log_probs(batch), batch.sampled, 1e-3)


def test_a_run_trains_and_writes_a_model(base, tmp_path):
    longer = {"max_tokens": 48}  # this tokenizer needs more for the format than the toy's
    config = short(*base, tmp_path / "run", model={"train_vision": False}, rollout=longer)
    run_inline(config)
    log = read_log(tmp_path / "run")
    assert len([entry for entry in log if "loss" in entry]) == 4
    assert any(entry["grad_norm"] > 0 for entry in log)
    before, after = (load(path, "cpu").network for path in (base[0], tmp_path / "run" / "model"))
    changed = {
        name
        for name, weight in after.state_dict().items()
        if not torch.equal(weight, before.state_dict()[name].bfloat16().float())
    }
    assert changed
    assert all("language_model" in name or "lm_head" in name for name in changed)


def test_the_reference_has_no_tower_of_its_own(base, tmp_path):
    config = short(*base, tmp_path / "run", model={"train_vision": False})
    _, objective = prepare(config, Path(config.model.path), Context(0, 1, 1, torch.device("cpu")))
    policy, reference = objective.policy.network, objective._reference[0].network
    assert len(parts.tower(policy)) == 2
    assert parts.tower(reference) == []
    assert len(parts.blocks(policy)) == len(parts.blocks(reference)) + 2


def test_one_more_answer_costs_its_states_and_keys_in_the_estimate(base, tmp_path):
    config = short(*base, tmp_path / "run")
    assert "of a rollout worker" in check_memory(config, longest_question(config, make_sampler(config)))[0]

    def cache(group):
        asked = short(*base, tmp_path / "run", grpo={"group_size": group})
        count = count_parameters(base[0], fine_tuning(asked))
        question = longest_question(asked, make_sampler(asked))
        estimated = estimate_engine(read_json(base[0] / "config.json"), count, question, asked, 2)
        return estimated.cache, question.text + asked.rollout.max_tokens + FORCED_TOKENS

    (four, region), (five, _) = cache(4), cache(5)
    mixers = [block.mixer for block in load(base[0], "cpu").network.model.language_model.layers]
    recurrent = [m for m in mixers if hasattr(m, "ssm_state_size")]
    keyed = [m for m in mixers if hasattr(m, "k_proj")]
    assert len(recurrent) == 4
    assert len(keyed) == 2
    states = 4 * sum(m.num_heads * m.head_dim * m.ssm_state_size for m in recurrent)
    keys = 4 * region * sum(m.k_proj.out_features + m.v_proj.out_features for m in keyed)
    assert five - four == states + keys
