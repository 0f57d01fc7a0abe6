# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cosmos_reason_node import deployment
from cosmos_reason_node.errors import CosmosReasonError

SPECIAL = 'a "quoted" \\ text: [x], {y} # é\nand a second line'


def written(process):
    """Parameters of the last file given to ``process``, as any YAML reader sees them."""
    command = process.command("python3")
    last = [command[i + 1] for i, word in enumerate(command) if word == "--params-file"][-1]
    document = yaml.safe_load(Path(last).read_text())
    assert document["/**"] == document[process.node_path]
    return document[process.node_path]["ros__parameters"]


def test_the_command_names_node_namespace_and_remappings():
    process = deployment.reason(
        namespace="robot1/", name="eyes", remappings=[("decisions", "/all")], log_level="warn"
    )
    assert process.command("python3") == [
        "python3",
        "-m",
        "cosmos_reason_node.ros.node",
        "--ros-args",
        *("-r", "__node:=eyes", "-r", "__ns:=/robot1", "-r", "decisions:=/all"),
        *("--log-level", "warn"),
    ]
    assert process.node_path == "/robot1/eyes"


def test_parameters_keep_their_values_and_types():
    values = written(
        deployment.reason(
            {
                "task": SPECIAL,
                "fps": 4,
                "cameras": ["a=b", "c=/d:e"],
                "monitors": (),
                "valid_for_s": 1e-7,
                "seed": 3,
            },
            use_sim_time=True,
        )
    )
    assert values == {
        "task": SPECIAL,
        "fps": 4.0,
        "cameras": ["a=b", "c=/d:e"],
        "monitors": [""],
        "valid_for_s": 1e-7,
        "seed": 3,
        "use_sim_time": True,
    }
    assert isinstance(values["fps"], float)
    assert isinstance(values["seed"], int)


def test_parameter_files_come_before_the_parameters(tmp_path):
    first = tmp_path / "first.yaml"
    first.write_text("{}")
    process = deployment.reason({"task": "x"}, parameter_files=[first])
    assert process.all_parameter_files()[0] == str(first)
    assert len(process.all_parameter_files()) == 2
    assert deployment.reason(parameter_files=[first]).all_parameter_files() == [str(first)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"settings": {"colour": "red"}}, CosmosReasonError),
        ({"settings": {"fps": 1e9}}, CosmosReasonError),
        ({"parameter_files": ["/no/such/file.yaml"]}, FileNotFoundError),
        ({"log_level": "loud"}, ValueError),
    ],
)
def test_bad_arguments_of_reason_fail_at_once(arguments, error):
    with pytest.raises(error):
        deployment.reason(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"source": "/no/such/video.mp4"}, FileNotFoundError),
        ({"source": __file__, "format": "gif"}, ValueError),
        ({"source": __file__, "rate": float("nan")}, ValueError),
        ({"source": __file__, "wait_s": -1.0}, ValueError),
        ({"source": __file__, "max_side": 1_000_000}, ValueError),
    ],
)
def test_bad_arguments_of_replay_fail_at_once(arguments, error):
    with pytest.raises(error):
        deployment.replay(**arguments)


def test_texts_become_settings_of_the_right_type():
    texts = {
        "cameras": "[front=/front/image_raw, 'wrist=w:x']",
        "monitors": "completion, next_action",
        "action_options": "[]",
        "autostart": "False",
        "fps": "4",
        "seed": "7",
        "task": "  open: the [drawer]",
        "device": "",
    }
    assert deployment.settings_from_text(texts) == {
        "cameras": ("front=/front/image_raw", "wrist=w:x"),
        "monitors": ("completion", "next_action"),
        "action_options": (),
        "autostart": False,
        "fps": 4.0,
        "seed": 7,
        "task": "  open: the [drawer]",
    }


@pytest.mark.parametrize(
    "text", ["[yes, no, 1.50, 0x10, null, 2001-01-01]", "yes,no,1.50,0x10,null,2001-01-01"]
)
def test_items_of_a_list_stay_the_texts_they_are(text):
    settings = deployment.settings_from_text({"action_options": text})
    assert settings == {"action_options": ("yes", "no", "1.50", "0x10", "null", "2001-01-01")}
    assert written(deployment.reason(settings)) == {"action_options": list(settings["action_options"])}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("fps", "fast"),
        ("seed", "1.5"),
        ("autostart", "maybe"),
        ("cameras", "[a"),
        ("action_options", "[reach: up, pull]"),
        ("action_options", "[[reach, pull], stop]"),
    ],
)
def test_texts_that_do_not_fit_are_refused_by_name(name, text):
    with pytest.raises(ValueError, match=name):
        deployment.settings_from_text({name: text})


def test_what_the_user_set_stays_in_the_environment():
    users = {"MALLOC_TOP_PAD_": "1", "FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    added = deployment.transport_environment(users)
    assert not set(users) & set(added)
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" not in added


def test_shared_files_are_found_under_an_install_prefix(tmp_path, monkeypatch):
    file = tmp_path / "share" / "cosmos_reason_node" / "models" / "only_here"
    file.parent.mkdir(parents=True)
    file.touch()
    assert deployment.share_path("models/only_here") is None
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    assert deployment.share_path("models/only_here") == file


def test_a_parameter_file_is_found_by_path_or_by_name(tmp_path):
    own = tmp_path / "own.yaml"
    own.touch()
    assert deployment.parameter_file(str(own)) == own
    with pytest.raises(FileNotFoundError):
        deployment.parameter_file("no-such-robot")
    with pytest.raises(FileNotFoundError):
        deployment.parameter_file("../config/gpu")
