# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cosmos_reason_node.ros import transport
from cosmos_reason_node.ros.transport import PROFILE_VARIABLES, transport_env, tune_process

PROFILE = Path(__file__).parents[2] / "config" / "fastdds.xml"


@pytest.fixture(autouse=True)
def roomy_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_shm_has_room", lambda: True)


def test_profile_and_heap_for_every_fast_dds():
    added = transport_env({}, PROFILE)
    assert {name: added[name] for name in PROFILE_VARIABLES} == dict.fromkeys(PROFILE_VARIABLES, str(PROFILE))
    assert int(added["MALLOC_MMAP_THRESHOLD_"]) >= 3 * 1920 * 1080


@pytest.mark.parametrize("variable", [*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS"])
def test_a_transport_that_the_user_chose_is_left_alone(variable: str):
    added = transport_env({variable: "theirs", "MALLOC_TOP_PAD_": "1"}, PROFILE)
    assert not set(added) & {*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS", "MALLOC_TOP_PAD_"}
    assert "MALLOC_MMAP_THRESHOLD_" in added


def test_no_profile_without_its_file_or_room(monkeypatch: pytest.MonkeyPatch):
    assert not set(transport_env({}, None)) & set(PROFILE_VARIABLES)
    monkeypatch.setattr(transport, "_shm_has_room", lambda: False)
    assert not set(transport_env({}, PROFILE)) & set(PROFILE_VARIABLES)


def test_tuning_reaches_the_environment_and_the_heap_of_this_process():
    script = (
        "import os, sys, pathlib\n"
        "from cosmos_reason_node.ros import transport\n"
        "from cosmos_reason_node.ros.transport import transport_env, tune_process\n"
        "transport._shm_has_room = lambda: True\n"
        "assert tune_process(transport_env({}, pathlib.Path(sys.argv[1])))\n"
        "assert os.environ['FASTRTPS_DEFAULT_PROFILES_FILE'] == sys.argv[1]\n"
        # 20 MB lie in the heap now, below its end; before, they were a mapping of their own, far above it.
        "import ctypes; sbrk = ctypes.CDLL(None).sbrk; sbrk.restype = ctypes.c_void_p\n"
        "kept = bytearray(20_000_000); place = ctypes.addressof(ctypes.c_char.from_buffer(kept))\n"
        "assert place < sbrk(0), (hex(place), hex(sbrk(0)))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(PROFILE)], check=True, timeout=60, cwd=PROFILE.parents[1]
    )


def test_nothing_to_add_changes_nothing():
    environ = dict(os.environ)
    tune_process({}, environ)
    assert environ == dict(os.environ)


def test_the_profile_holds_several_images_and_keeps_the_network():
    def name(element: ElementTree.Element) -> str:
        return element.tag.rpartition("}")[2]

    elements = list(ElementTree.parse(PROFILE).getroot().iter())
    (size,) = (int(e.text or 0) for e in elements if name(e) == "segment_size")
    assert size >= 8 * 3 * 1920 * 1080
    assert [e.text for e in elements if name(e) == "type"] == ["SHM", "UDPv4"]
    (participant,) = (e for e in elements if name(e) == "participant")
    assert participant.get("is_default_profile") == "true"
