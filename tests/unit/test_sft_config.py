# SPDX-License-Identifier: Apache-2.0
"""Settings of a run: bounds, and what errors say."""

from pathlib import Path

import pytest
import yaml

from training.settings import ConfigError
from training.sft.config import OptimizerConfig, load_config

CONFIGS = Path(__file__).parents[2] / "training" / "configs"


def minimal():
    return {
        "model": {"path": "m"},
        "data": {"sources": [{"path": "d"}]},
        "run": {"output": "o"},
    }


def load(tmp_path, value):
    path = tmp_path / "sft.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return load_config(path)


def test_defaults_are_the_papers_recipe(tmp_path):
    recipe = load(tmp_path, minimal()).optimizer
    assert (recipe.peak_rate, recipe.final_rate, recipe.batch, recipe.steps) == (1e-5, 1e-6, 256, 12500)
    assert (recipe.beta1, recipe.beta2, recipe.weight_decay, recipe.clip_norm) == (0.9, 0.95, 0.1, 1.0)


def test_rate_warms_up_and_falls_to_the_final_rate():
    recipe = OptimizerConfig(steps=100, warm_up=10)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-6)
    assert max(rates) == rates[9] == rates[10] == recipe.peak_rate
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(recipe.final_rate)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("optimizer", "batch", 0, "optimizer.batch: 0 is below the least value 1; raise it"),
        ("optimizer", "peak_rate", 3.0, "optimizer.peak_rate: 3.0 is above the greatest value 1; lower it"),
        ("optimizer", "peak_rate", float("nan"), "optimizer.peak_rate: must be a finite number, not nan"),
        ("optimizer", "final_rate", 1e-4, "final_rate: 0.0001 is above peak_rate 1e-05; lower it"),
        ("optimizer", "warm_up", 20000, "warm_up: 20000 is more than steps 12500"),
        ("optimizer", "steps", "many", "optimizer.steps: must be int, not 'many'"),
        ("optimizer", "steps", True, "optimizer.steps: must be int, not True"),
        ("data", "max_token", 5, "data.max_token: is not a setting; did you mean max_tokens?"),
        ("data", "max_tokens", 1, "data.max_tokens: 1 is below the least value 64"),
        ("data", "frames", 31, "frames: 31 is odd; frames come in pairs, take 32"),
        ("data", "sources", [], "sources: is empty"),
        ("data", "sources", [{"path": "d", "weight": 0}], "data.sources[0].weight: 0.0 is below"),
        ("data", "sources", "d", "data.sources: must be a list, not 'd'"),
        ("model", "weights", "bfloat16", "take float32"),
        ("model", "compute", "float8", "model.compute: 'float8' is none of 'bfloat16', 'float32'"),
        ("model", "lora", {"rank": 0}, "model.lora.rank: 0 is below the least value 1"),
        ("run", "processes", 2, "processes: 2 need launcher torchrun or ray"),
        ("run", "validate_every", 5, "run.validate_every: there is no data.validation"),
    ],
)
def test_an_error_names_file_key_value_and_what_to_do(tmp_path, section, key, value, said):
    changed = minimal()
    changed.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, changed)
    assert said in str(raised.value)
    assert str(tmp_path / "sft.yaml") in str(raised.value)


def test_rows_must_be_shared_evenly(tmp_path):
    changed = minimal()
    changed["run"] |= {"launcher": "torchrun", "processes": 3}
    with pytest.raises(ConfigError, match=r"batch: 256 rows cannot be shared by run.processes = 3"):
        load(tmp_path, changed)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is no YAML"):
        load(tmp_path, "model: [")
    with pytest.raises(ConfigError, match="must be a mapping"):
        load(tmp_path, "- 1")
    with pytest.raises(ConfigError, match=r"model.path: is missing"):
        load(tmp_path, minimal() | {"model": {}})


def test_numbers_in_the_notation_that_yaml_reads_as_text(tmp_path):
    text = yaml.safe_dump(minimal()) + "optimizer: {peak_rate: 2e-5, final_rate: 1e-6}\n"
    assert load(tmp_path, text).optimizer.peak_rate == 2e-5


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("sft_*.yaml")), ids=lambda path: path.stem)
def test_committed_configurations_are_valid(path):
    config = load_config(path)
    assert config.optimizer.batch % config.run.processes == 0
