# SPDX-License-Identifier: Apache-2.0
"""The enumerations of the runtime are the constants of the messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cosmos_reason_node.engine.spec import EngineState
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.types import QueryKind, Source, Verdict

MSGS = Path(__file__).resolve().parents[2] / "msgs" / "msg"
CONSTANT = re.compile(r"^u?int\d+\s+([A-Z][A-Z0-9_]*)\s*=\s*(\d+)", re.MULTILINE)
CASES = [
    ("ErrorCode", "", ErrorCode),
    ("QueryKind", "", QueryKind),
    ("Decision", "VERDICT_", Verdict),
    ("Decision", "SOURCE_", Source),
]


def constants(message: str, prefix: str) -> dict[str, int]:
    """Constants of a .msg file whose names begin with ``prefix``, without it."""
    found = CONSTANT.findall((MSGS / f"{message}.msg").read_text())
    return {name.removeprefix(prefix): int(value) for name, value in found if name.startswith(prefix)}


@pytest.mark.parametrize(("message", "prefix", "enum"), CASES)
def test_the_message_definition_has_the_same_names_and_values(message, prefix, enum):
    assert constants(message, prefix) == {member.name: member.value for member in enum}


def test_the_status_message_has_the_engine_states():
    assert set(constants("Status", "ENGINE_")) == {state.name for state in EngineState}


@pytest.mark.ros
@pytest.mark.parametrize(("message", "prefix", "enum"), CASES)
def test_the_built_message_has_them_too(message, prefix, enum):
    msg = pytest.importorskip("cosmos_reason_msgs.msg", reason="messages not built; run `make test`")
    built = getattr(msg, message)
    for member in enum:
        assert getattr(built, prefix + member.name) == member.value


def test_codes_are_grouped_by_hundreds():
    assert ErrorCode.NONE == 0
    groups = {code // 100 for code in ErrorCode if code is not ErrorCode.NONE}
    assert groups == {1, 2, 3, 4, 5, 9}
