# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import runpy
from pathlib import Path

import pytest

from cosmos_reason_node.config import Config
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode


def test_every_field_is_documented_and_its_default_is_valid():
    for f in dataclasses.fields(Config):
        assert f.metadata["doc"].endswith("."), f.name
    Config()  # raises when a default breaks a bound


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fps": -1.0}, "fps"),
        ({"fps": 0.01}, "fps"),
        ({"fps": math.nan}, "fps"),
        ({"window_frames": 31}, "window_frames"),
        ({"frame_width": 100, "frame_height": 112}, "frame_width"),
        ({"frame_width": 112}, "frame_height"),
        ({"cameras": ()}, "cameras"),
        ({"cameras": ("front",)}, "front"),
        ({"cameras": ("a=/x", "a=/y")}, "twice"),
        ({"cameras": ("a=/x", "b=/y", "c=/x")}, "'a' and 'c' have one topic, /x"),
        ({"cameras": ("a b=/x",)}, "a b"),
        ({"monitors": ("completion", "colour")}, "colour"),
        ({"action_options": ("only one",)}, "action_options"),
        ({"device": "gpu"}, "device"),
        ({"qos_reliability": "maybe"}, "maybe"),
        ({"record_budget_mb": 0}, "record_budget_mb"),
    ],
)
def test_absurd_settings_are_refused_by_name(settings, named):
    with pytest.raises(CosmosReasonError, match=named) as error:
        Config.from_mapping(settings)
    assert error.value.code is ErrorCode.INVALID_REQUEST


def test_all_problems_are_named_at_once():
    with pytest.raises(CosmosReasonError) as error:
        Config(fps=-1.0, temperature=9.0, window_frames=3)
    for name in ("fps", "temperature", "window_frames"):
        assert name in error.value.message


def test_unknown_setting_is_refused():
    with pytest.raises(CosmosReasonError, match="frame_rate"):
        Config.from_mapping({"frame_rate": 4.0})


def test_lists_become_tuples_and_topics_keep_their_order():
    config = Config.from_mapping({"cameras": ["wrist=/w/image_raw", "front=/f/image_raw/compressed"]})
    assert list(config.camera_topics.items()) == [
        ("wrist", "/w/image_raw"),
        ("front", "/f/image_raw/compressed"),
    ]


def test_the_documented_table_is_the_schema():
    root = Path(__file__).resolve().parents[2]
    page = runpy.run_path(str(root / "docs" / "make_parameters.py"))["table"]()
    assert (root / "docs" / "parameters.md").read_text(encoding="utf-8") == page, (
        "docs/parameters.md is out of date: run python docs/make_parameters.py"
    )
