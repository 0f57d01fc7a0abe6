# SPDX-License-Identifier: Apache-2.0
"""The demo's parts that need no ROS: choice of the clip, console, processes, collector."""

import io
import json
import signal
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from cosmos_reason_node.demo import __main__ as demo
from cosmos_reason_node.demo.clip import DEFAULT_TASK, choose
from cosmos_reason_node.demo.collector import Collector, picture_size
from cosmos_reason_node.demo.console import Console
from cosmos_reason_node.demo.processes import Processes, ProcessFailed
from cosmos_reason_node.deployment import Process, bundled_model
from cosmos_reason_node.video import VideoError
from tests.unit.test_report import ZERO, decision_line, record
from tests.unit.video_files import steady, write_video

ROOT = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_the_bundled_clip_brings_its_questions_and_the_truth():
    clip = choose()
    assert clip.source.is_file()
    assert clip.task
    assert clip.action
    assert clip.options == ()
    assert 5.0 < clip.duration_s < 60.0
    assert set(clip.truth) == {"completion", "affordance", "next_action"}
    assert clip.action in {label for _, _, label in clip.truth["next_action"]}
    assert not clip.note


def test_the_users_video_is_asked_about_the_users_task(tmp_path):
    video = write_video(tmp_path / "mine.mp4", steady(20, 10.0))
    clip = choose(video=str(video), task="stack the cups", options=("a", "b"), seconds=1.0)
    assert (clip.source, clip.task, clip.options) == (video, "stack the cups", ("a", "b"))
    assert clip.duration_s == 1.0
    unknown = choose(video=str(video))
    assert unknown.task == DEFAULT_TASK
    assert DEFAULT_TASK in unknown.note
    assert unknown.duration_s == pytest.approx(2.0, rel=0.1)


def test_a_json_beside_a_video_describes_it(tmp_path):
    video = write_video(tmp_path / "mine.mp4", steady(4, 10.0))
    video.with_suffix(".json").write_text(json.dumps({"task": "pour", "options": ["x", "y"]}))
    assert choose(video=str(video)).options == ("x", "y")
    assert choose(video=str(video), task="wipe").options == ()
    video.with_suffix(".json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        choose(video=str(video))


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"task": None}, "task must be a text"),
        ({"options": 5}, "options must be a list"),
        ({"options": "reach"}, "options must be a list"),
        ({"truth": []}, "truth must be lists"),
        ({"truth": {"completion": [[0, 1]]}}, "truth must be lists"),
    ],
)
def test_a_json_beside_a_video_that_holds_something_else_is_refused(tmp_path, beside, named):
    video = write_video(tmp_path / "mine.mp4", steady(4, 10.0))
    video.with_suffix(".json").write_text(json.dumps(beside))
    with pytest.raises(ValueError, match=f"mine.json beside the video: {named}"):
        choose(video=str(video))


def test_a_video_whose_header_has_no_length_is_measured(tmp_path):
    """As a browser or an encoder leaves it that writes to a stream."""
    video = write_video(tmp_path / "mine.mp4", steady(30, 10.0))
    stream = tmp_path / "mine.h264"
    with av.open(str(video)) as source, av.open(str(stream), "w", format="h264") as target:
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
    length_s = choose(video=str(stream)).duration_s
    assert length_s > 0
    assert choose(video=str(stream), seconds=length_s / 3).duration_s == pytest.approx(length_s / 3)


def test_a_folder_of_frames_that_no_demo_made_is_left_alone(capsys, tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "holiday.jpg").write_bytes(b"mine")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert "choose another --out" in capsys.readouterr().out
    assert (tmp_path / "frames" / "holiday.jpg").read_bytes() == b"mine"
    (tmp_path / "decisions.jsonl").touch()
    demo._fresh_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_contradictions_and_missing_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        choose(video="a.mp4", camera="/dev/video0")
    for seconds in (-1.0, 1e5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="SECONDS_LIMIT"):
            choose(seconds=seconds)
    with pytest.raises(VideoError, match="there is no video"):
        choose(video=str(tmp_path / "none.mp4"))
    with pytest.raises(VideoError, match="there is no camera"):
        choose(camera="/dev/video_that_is_not_there")


def test_the_command_line_takes_what_make_passes_on():
    options = demo._parse(["--video", "", "--seconds", "", "--options", "a; b;;c ", "--task", "t"])
    assert (options.video, options.seconds, options.options, options.task) == ("", 0.0, ("a", "b", "c"), "t")


def test_a_bad_wish_ends_with_two_and_one_line(capsys, tmp_path):
    assert demo.main(["--video", "/none.mp4", "--out", str(tmp_path / "out")]) == 2
    assert "there is no video /none.mp4" in capsys.readouterr().out


def test_a_terminal_gets_colour_and_one_progress_line_and_a_file_gets_neither():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        console = Console(stream)
        console.progress("loading 1")
        console.progress("loading 2")
        console.decision(record(0), 1.0)
    assert "\x1b[33m" in terminal.getvalue()
    assert terminal.getvalue().count("\r\x1b[2K") == 2
    assert "\x1b" not in file.getvalue()
    assert "loading 2" not in file.getvalue()  # at most one line every few seconds
    assert "NO" in file.getvalue()


def test_a_model_cannot_drive_the_terminal():
    terminal = Terminal()
    console = Console(terminal)
    console.decision(
        record(0, reasoning="\x1b]0;owned\x07\x1b[2J", kind="question", verdict="CHOICE", answer="\x1bc"), 0.0
    )
    console.paragraph("\x1b[5mlong " * 100)
    console.stream("\x1b[31mred\x9b", thinking=False)
    written = terminal.getvalue()
    for known in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"):
        written = written.replace(known, "")
    assert "\x1b" not in written
    assert "\x9b" not in written


def test_a_streamed_answer_is_not_glued_to_the_thought():
    for thought in (("The drawer", " is open."), ("The drawer is open.\n",)):
        file = io.StringIO()
        console = Console(file)
        for text in thought:
            console.stream(text, thinking=True)
        console.stream("", thinking=False)
        console.stream("move", thinking=False)
        console.stream(" away", thinking=False)
        console.stream_end()
        assert file.getvalue() == "    The drawer is open.\n    move away\n"


def python(code, executable="replay"):
    """A definition whose command runs ``code`` instead of a node."""

    class Script(Process):
        def command(self, python=sys.executable):
            return [python, "-c", code]

    return Script(executable=executable, name=executable)


def test_a_process_that_fails_shows_the_end_of_its_log(tmp_path):
    with Processes(tmp_path, {"PATH": ""}) as processes:
        started = processes.start(python("print('line one'); raise SystemExit('no such camera')"))
        started.process.wait(60.0)
        with pytest.raises(ProcessFailed, match=r"(?s)replay ended with exit code 1.*no such camera"):
            started.check(may_end=True)


def test_a_process_may_end_only_where_that_is_expected(tmp_path):
    with Processes(tmp_path, {}) as processes:
        started = processes.start(python("pass"))
        started.process.wait(60.0)
        started.check(may_end=True)
        with pytest.raises(ProcessFailed, match="exit code 0"):
            started.check()


def test_stopping_asks_first_and_kills_a_process_that_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "cosmos_reason_node.demo.processes._STOP_STEPS",
        ((signal.SIGINT, 3.0), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)),
    )
    ignore = "import signal, time\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n"
    deaf = ignore + "print('up', flush=True)\ntime.sleep(60)"
    polite = (
        "import time\ntry:\n    print('up', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt: print('bye')"
    )
    with Processes(tmp_path, {}) as processes:
        started = [processes.start(python(deaf, "replay")), processes.start(python(polite, "reason_node"))]
        end = time.monotonic() + 60.0
        while any("up" not in s.log.read_text() for s in started) and time.monotonic() < end:
            time.sleep(0.02)
    assert started[0].process.returncode == -signal.SIGKILL
    assert started[1].process.returncode == 0
    assert started[1].log.read_text() == "up\nbye\n"


def test_the_collector_writes_at_once_and_keeps_the_pictures_that_were_seen(tmp_path):
    collector = Collector(tmp_path)
    for k in range(4):
        collector.add_image(ZERO + k, np.full((20, 30, 3), 50 * k, np.uint8))
    line = decision_line(stamp_ns=ZERO + 2)
    line["windows"][0]["frame_stamps_ns"] = [ZERO - 7, ZERO + 2]
    collector.add_decision(line)
    assert json.loads((tmp_path / "decisions.jsonl").read_text()) == line
    assert list(collector.pictures()) == [ZERO + 2]
    assert (collector.first_stamp_ns, collector.newest_stamp_ns) == (ZERO - 7, ZERO + 3)
    collector.close()
    assert picture_size(1080, 1920) == (162, 288)
    assert picture_size(48, 64) == (48, 64)


def test_the_bundled_model_is_asked_as_its_parameter_file_has_it_and_others_as_by_default(tmp_path):
    (held,) = yaml.safe_load((ROOT / "config" / "nano-cpu.yaml").read_text()).values()
    assert demo._settings(bundled_model())["monitors_at_once"] == held["ros__parameters"]["monitors_at_once"]
    assert "monitors_at_once" not in demo._settings(tmp_path)
