# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import yaml

from cosmos_reason_node.prompt import PROMPT_ID
from tests.unit.curation_data import settings
from training.data.curation import prompts
from training.data.curation.config import ConfigError, load_config

ROOT = Path(__file__).resolve().parents[2]


def load(folder, **changes):
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(settings(folder, "http://localhost/v1", **changes)))
    return load_config(path)


def test_the_example_is_a_configuration():
    config = load_config(ROOT / "training" / "configs" / "curation.yaml")
    assert config.endpoints["reasoner"].api_key_env == "REASONER_API_KEY"
    assert config.write.sets[3].name == "reasoning-free-embodied"
    assert config.select.max_s == 60.0
    assert config.write.call.parameters == {"temperature": 0.7, "seed": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select__min_seconds": 1}, r"select\.min_seconds: is not a setting; did you mean min_s"),
        ({"colour": "red"}, r"colour: is not a setting; known: output, videos"),
        ({"select__min_s": "two"}, r"select\.min_s: must be float, not 'two'"),
        ({"select__min_s": -1}, r"select\.min_s: must be 0 or more, not -1"),
        ({"select__min_s": float("nan")}, r"select\.min_s: must be 0 or more, not nan"),
        ({"select__workers": True}, r"select\.workers: must be int, not True"),
        ({"select__min_s": 9, "select__max_s": 3}, r"select\.max_s: must not be below select\.min_s"),
        ({"videos": "clips"}, r"videos: must be a list, not 'clips'"),
        ({"videos": []}, r"videos: is empty"),
        ({"source": ""}, r"provenance\.source: is empty"),
        ({"split": "My Split"}, r"split: 'My Split' is no name"),
        ({"embodiment": "toaster"}, r"embodiment: 'toaster' is none of '', 'human'"),
        ({"write__sets": [{"style": "deep"}]}, r"write\.sets\[0\]\.style: 'deep' is none of"),
        ({"write__sets": [{"count": 2}, {"count": 3}]}, r"write\.sets: two sets are of the same style"),
        ({"trace": None}, r"trace: is missing, but write\.sets asks for reasoning"),
        (
            {"judge": {"endpoint": "remote"}},
            r"judge\.endpoint: there is no endpoint 'remote'; defined: local",
        ),
        ({"endpoints": {"local": {"model": "x"}}}, r"endpoints\.local\.base_url: is missing"),
        ({"blind__call__parameters": ["x"]}, r"blind\.call\.parameters: must be a mapping, not"),
        ({"blind__call": None}, r"blind\.call: must be a mapping of settings, not None"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, **changes)
    assert str(caught.value).startswith(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("text", [b"a: [", b"\xff\xfe", b"- 1", b""])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_a_prompt_that_changes_gets_a_new_version():
    """The words of each version, once used, stay: raise the version and put the new label here."""
    assert {prompt.label for prompt in prompts.ALL} == {
        "caption@1:bdc2efb9c0b1",
        "write-understanding-choice@1:ea7438c11552",
        "write-understanding-free@1:4245ed96b443",
        "write-reasoning-choice@1:23c388ce230a",
        "write-reasoning-free@1:4fd122802d76",
        f"blind-{PROMPT_ID}@1:912d03db2884",
        "trace@1:63330eabbabe",
        "judge@1:3a4233e8c115",
    }
