# SPDX-License-Identifier: Apache-2.0
"""Settings of a run: presets, what is refused, and whether a cluster has room for them."""

import re
from pathlib import Path

import pytest

from tests.unit.rl_files import short
from training.rl.actors import missing, takes_gpu
from training.rl.config import ConfigError, load_config, make_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"launcher": "inline"}, "rollout": {"max_staleness": 1}}, "inline is one process"),
        ({"grpo": {"preset": "best"}}, "none of 'paper', 'modern'"),
        ({"grpo": {"group_size": 1}}, "group_size"),
        ({"grpo": {"kl": 0.1}}, "kl"),
        ({"optimizer": {"steps": 3}, "grpo": {"minibatches": 2}}, "no multiple"),
        ({"grpo": {"preset": ["paper"]}}, r"grpo.preset: must be str, not \['paper'\]"),
        ({"grpo": {"preset": None}}, "grpo.preset: must be str"),
        ({"grpo": {"clip_low": float("nan")}}, "grpo.clip_low: must be a finite number"),
        ({"data": {"sources": []}}, "name at least one data set"),
        ({"rollout": {"max_staleness": 5}}, "above the greatest value 4"),
        ({"run": {"timeout_s": 1200}}, r"before a worker that hangs is missed \(1200 s\)"),
        ({"run": {"timeout_s": 20}, "rollout": {"deadline_s": 1}}, r"is missed \(30 s\)"),
    ],
)
def test_settings_that_cannot_be_used(sections, message):
    value = {
        "model": {"path": "m"},
        "data": {"sources": [{"path": "d"}]},
        "run": {"output": "o", "launcher": "ray"},
    }
    for name, more in sections.items():
        value[name] = value.get(name, {}) | more
    with pytest.raises(ConfigError, match=message):
        make_config(value)


@pytest.mark.parametrize(
    ("sections", "there", "cuda", "words"),
    [
        ({}, {"CPU": 4.0}, False, ""),
        ({}, {"CPU": 2.0}, False, "has 2 CPU .* take 2.5"),
        ({"rollout": {"gpus": 1.0}}, {"CPU": 4.0, "GPU": 1.0}, True, "has 1 GPU .* take 2"),
        ({"rollout": {"gpus": 0.5}, "run": {"gpus": 0.5}}, {"CPU": 4.0, "GPU": 1.0}, True, ""),
        ({"rollout": {"gpus": 1.0}, "run": {"processes": 2}}, {"CPU": 9.0, "GPU": 2.0}, True, "which take 3"),
    ],
)
def test_a_cluster_without_room_for_one_of_each_role_is_said(tmp_path, sections, there, cuda, words):
    changes = sections | {"run": {"launcher": "ray"} | sections.get("run", {})}
    said = missing(short(tmp_path, tmp_path, tmp_path / "run", **changes), there, cuda=cuda)
    assert re.search(words, said) if words else not said


@pytest.mark.parametrize(
    ("here", "nodes", "gpus", "takes"),
    [
        (False, 1, 0, False),
        (False, 1, 1, False),
        (True, 1, 1, True),
        (False, 2, 8, True),
        (False, 2, 0, False),
    ],
)
def test_a_head_node_without_a_gpu_takes_those_of_the_cluster(here, nodes, gpus, takes):
    assert takes_gpu(here, nodes, {"GPU": float(gpus)} if gpus else {}) is takes


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("rl_*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_can_be_read(path):
    assert load_config(path).iterations == 500


def test_presets_are_the_recipes_and_files_may_differ():
    value = {
        "model": {"path": "m"},
        "data": {"sources": [{"path": "d"}]},
        "run": {"output": "o", "launcher": "ray"},
    }
    paper = make_config(value)
    assert (paper.grpo.group_size, paper.grpo.kl_coefficient, paper.questions) == (9, 0.005, 128)
    assert (paper.optimizer.peak_rate, paper.iterations, paper.rollout.max_tokens) == (4e-6, 500, 6144)
    modern = make_config(value | {"grpo": {"preset": "modern", "clip_high": 0.3}})
    assert (modern.grpo.clip_high, modern.grpo.kl_coefficient, modern.grpo.dynamic_sampling) == (
        0.3,
        0.0,
        True,
    )
    assert modern.questions == 256
