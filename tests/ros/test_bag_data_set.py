# SPDX-License-Identifier: Apache-2.0
"""A bag of the node becomes a data set whose windows are, bit for bit, those that the node saw."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cosmos_reason_msgs.msg import CameraStatus, Status
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.ros import cdr
from cosmos_reason_node.ros.convert import convert_compressed, convert_image
from cosmos_reason_node.ros.messages import decision_msg, time_msg
from cosmos_reason_node.ros.recorder import Recorder
from cosmos_reason_node.types import (
    Answer,
    Decision,
    Frame,
    Latency,
    ModelInfo,
    Query,
    QueryKind,
    Source,
    Verdict,
    Window,
)
from cosmos_reason_node.vision.patchify import PatchSpec
from cosmos_reason_node.window import Offer, TimeGrid, WindowBuffer
from training.data.bag import convert
from training.data.media import WindowSpec, load_window
from training.data.problems import Report
from training.data.readers import open_data_set

pytestmark = pytest.mark.ros

SIZE = (56, 84)
START = 1_763_000_000 * 10**9 + 123_456_789
FRONT, WRIST = "/front/image_raw", "/wrist/image_raw/compressed"
TYPES = {FRONT: "sensor_msgs/msg/Image", WRIST: "sensor_msgs/msg/CompressedImage"}
DECISIONS, STATUS = "/cosmos_reason/decisions", "/cosmos_reason/status"
MODEL = ModelInfo("nano", "0123456789abcdef", "p", "torch", "cpu", "float32")


class Robot:
    """Cameras, windows and recorder, wired as in the node; time is the test's."""

    def __init__(self, directory: Path, fps: float) -> None:
        self.now_ns = START
        self.recorder = Recorder(
            directory,
            keep_s=60,
            buffer_bytes=64 << 20,
            budget_bytes=1 << 30,
            now_ns=lambda: self.now_ns,
            warn=pytest.fail,
        )
        self.grid = TimeGrid.from_fps(fps)
        self.buffers = {topic: WindowBuffer(topic.split("/")[1], self.grid, 8) for topic in TYPES}
        for topic, kind in TYPES.items():
            self.recorder.add_topic(topic, kind)
        self.recorder.add_topic(DECISIONS, "cosmos_reason_msgs/msg/Decision")
        self.recorder.add_topic(STATUS, "cosmos_reason_msgs/msg/Status")

    def see(self, topic: str, stamp: int, damaged: bool = False, run: int = 0) -> None:
        """An image arrives; what Camera does with it."""
        noise = np.random.default_rng(stamp + run).integers(0, 255, (97, 131, 3), np.uint8)
        image: Any
        if topic == FRONT:
            rows = np.pad(noise.reshape(97, -1), ((0, 0), (0, 7)))
            image = Image(height=97, width=131, encoding="bgr8", step=rows.shape[1])
            image.data = rows.tobytes()[: -5 if damaged else None]
        else:
            image = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", noise)[1].tobytes())
        image.header.stamp = time_msg(stamp)
        serialized = bytes(serialize_message(image))
        self.recorder.record(topic, serialized)
        buffer = self.buffers[topic]
        if buffer.offer(cdr.read_stamp(serialized)) is not Offer.SAMPLE:
            return
        if damaged:
            buffer.lose()
            return
        if topic == FRONT:
            rgb = convert_image(cdr.read_image(serialized), lambda *_: SIZE).rgb
        else:
            rgb = convert_compressed(cdr.read_compressed_image(serialized), lambda *_: SIZE).rgb
        buffer.put(Frame(buffer.camera, stamp, self.grid.tick(stamp), rgb, "optical"))

    def decide(
        self, name: str, query: Query, answer: Answer | None, *topics: str, error: int = 0
    ) -> Decision:
        windows = tuple(window for topic in topics if (window := self.buffers[topic].window()))
        self.now_ns += 10**6
        decision = Decision(
            name, Source.MONITOR, query, windows, answer, MODEL, Latency(), self.now_ns, 0, ErrorCode(error)
        )
        self.recorder.record(DECISIONS, bytes(serialize_message(decision_msg(decision))))
        return decision

    def tell_status(self) -> None:
        cameras = [CameraStatus(name=topic.split("/")[1], topic=topic) for topic in TYPES]
        self.recorder.record(STATUS, bytes(serialize_message(Status(cameras=cameras))))

    def save(self) -> Path:
        bag = self.recorder.capture(60, 0, "")
        for _ in range(1000):
            if not self.recorder.report().capturing:
                return bag
            time.sleep(0.01)
        raise AssertionError("the bag is still being written")


def answer(verdict: Verdict, text: str, option: int = -1, reasoning: str = "") -> Answer:
    return Answer(verdict, text, option, 0.75, reasoning, 10, 2)


@pytest.fixture
def robots() -> Iterator[list[Robot]]:
    made: list[Robot] = []
    yield made
    for robot in made:
        robot.recorder.close()


def drive(robot: Robot, seconds: float) -> list[Decision]:
    """Two cameras at odd rates with holes, doubles, disorder and a damaged image; decisions all along."""
    rng = np.random.default_rng(1)
    decisions: list[Decision] = []
    stamp, number = START, 0
    while stamp < START + seconds * 1e9:
        number += 1
        stamp += int(rng.integers(20_000_000, 60_000_000))
        if number % 17 == 0:
            stamp += 2 * robot.grid.period_ns + 7  # a hole that is held
        robot.see(FRONT, stamp, damaged=number % 13 == 0)
        if number % 11 == 0:
            robot.see(FRONT, stamp)
            robot.see(FRONT, stamp - 15_000_000)
        robot.see(WRIST, stamp + 3_000_000)
        if number % 9 == 0:
            completion = Query(QueryKind.COMPLETION, task="open the drawer")
            choice = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"))
            own = Query(QueryKind.QUESTION, question="Is it dark?", yes_no=True)
            n = f"{number}"
            decisions += [
                robot.decide(n + "a", completion, answer(Verdict.YES, "yes", reasoning="It is open."), FRONT),
                robot.decide(n + "b", choice, answer(Verdict.CHOICE, "pull", 1), FRONT, WRIST),
                robot.decide(n + "c", own, answer(Verdict.NO, "no"), WRIST),
                robot.decide(n + "d", completion, answer(Verdict.UNKNOWN, "unknown"), FRONT),
                robot.decide(n + "e", completion, None, FRONT, error=int(ErrorCode.DEADLINE_EXCEEDED)),
            ]
    return [d for d in decisions if d.windows and d.answer and d.answer.verdict is not Verdict.UNKNOWN]


def spec_of(window: Window) -> WindowSpec:
    return WindowSpec(window.period_ns, window.asked, PatchSpec(), frame_size=SIZE)


@pytest.mark.parametrize("fps", [4.0, 2.0, 3.0, 7.3])
@pytest.mark.parametrize("status", [True, False])
def test_windows_are_what_the_node_saw(tmp_path: Path, robots: list[Robot], fps: float, status: bool):
    robot = Robot(tmp_path / "bags", fps)
    robots.append(robot)
    if status:
        robot.tell_status()
    decisions = drive(robot, 6.0)
    report = Report()
    any_spec = spec_of(decisions[0].windows[0])
    samples = convert(robot.save(), tmp_path / "out", report, spec=any_spec, split="recorded")
    assert report.problems == []
    assert [sample.sample_id for sample in samples] == [decision.decision_id for decision in decisions]
    assert open_data_set(tmp_path / "out").samples == tuple(samples)
    held = 0
    for sample, decision in zip(samples, decisions, strict=True):
        assert sample.to_query() == decision.query
        assert [media.camera for media in sample.media] == [window.camera for window in decision.windows]
        for media, seen in zip(sample.media, decision.windows, strict=True):
            window = load_window(tmp_path / "out", media, spec_of(seen))
            np.testing.assert_array_equal(window.pixels(), seen.pixels())
            assert [f.stamp_ns for f in window.frames] == [f.stamp_ns for f in seen.frames]
            for name in ("first_tick", "period_ns", "held", "asked"):
                assert getattr(window, name) == getattr(seen, name)
            held += seen.held
    assert held > 0
    first = next(sample for sample in samples if sample.sample_id.endswith("a"))
    assert (first.answer, first.reasoning, first.split) == ("yes", "It is open.", "recorded")
    assert first.provenance.made_by == "nano@0123456789ab"
    assert first.extra["confidence"] == 0.75
    assert {sample.answer for sample in samples} == {"yes", "no", "B"}


def test_decisions_whose_images_were_not_recorded_are_named(tmp_path: Path, robots: list[Robot]):
    robot = Robot(tmp_path / "bags", 4.0)
    robots.append(robot)
    robot.tell_status()
    for i in range(40):
        robot.see(FRONT, START + i * 10**8)
    early = robot.decide("early", Query(QueryKind.COMPLETION, task="x"), answer(Verdict.YES, "yes"), FRONT)
    frames = [dataclasses.replace(frame, stamp_ns=frame.stamp_ns + 1) for frame in early.windows[0].frames]
    moved = dataclasses.replace(early.windows[0], frames=tuple(frames))
    edited = dataclasses.replace(early, decision_id="edited", windows=(moved,))
    robot.recorder.record(DECISIONS, bytes(serialize_message(decision_msg(edited))))
    report = Report()
    samples = convert(robot.save(), tmp_path / "out", report, spec=spec_of(early.windows[0]))
    assert [sample.sample_id for sample in samples] == ["early"]
    ((row, message),) = [(problem.row, problem.message) for problem in report.problems]
    assert row == 2
    assert "8 of its 8 frames are not in the bag" in message


def test_a_simulation_that_began_anew_is_refused_where_stamps_come_again(tmp_path: Path, robots: list[Robot]):
    robot = Robot(tmp_path / "bags", 4.0)
    robots.append(robot)
    robot.tell_status()
    done = Query(QueryKind.COMPLETION, task="x")
    decisions = []
    for run, images in enumerate((40, 12)):
        for i in range(images):
            robot.see(FRONT, START + i * 10**8, run=run)
        decisions.append(robot.decide(f"run {run}", done, answer(Verdict.NO, "no"), FRONT))
    report = Report()
    samples = convert(robot.save(), tmp_path / "out", report, spec=spec_of(decisions[0].windows[0]))
    assert [sample.sample_id for sample in samples] == ["run 0"], "the second run did not come as far"
    (problem,) = report.problems
    assert problem.row == 2
    assert "was set back" in problem.message


def test_corrected_decisions_get_the_right_answers(tmp_path: Path, robots: list[Robot]):
    robot = Robot(tmp_path / "bags", 4.0)
    robots.append(robot)
    robot.tell_status()
    for i in range(40):
        robot.see(FRONT, START + i * 10**8)
    done = Query(QueryKind.COMPLETION, task="x")
    wrong = robot.decide("wrong", done, answer(Verdict.YES, "yes", reasoning="It is open."), FRONT)
    robot.decide("right", done, answer(Verdict.YES, "yes", reasoning="It is open."), FRONT)
    robot.decide("unsure", done, answer(Verdict.UNKNOWN, "unknown"), FRONT)
    bag = robot.save()
    lines = [("wrong", "yes"), ("right", "yes"), ("unsure", "no"), ("wrong", "no")]
    text = "".join(json.dumps({"decision_id": name, "answer": said}) + "\n" for name, said in lines)
    (bag.parent / "corrections.jsonl").write_text(text + "{not json\n")
    report = Report()
    samples = convert(bag, tmp_path / "out", report, spec=spec_of(wrong.windows[0]))
    found = {sample.sample_id: (sample.answer, sample.reasoning) for sample in samples}
    assert found == {"wrong": ("no", ""), "right": ("yes", "It is open."), "unsure": ("no", "")}
    assert {s.sample_id: s.extra["corrected_from"] for s in samples} == {
        "wrong": "yes",
        "right": "yes",
        "unsure": "",
    }
    assert [problem.row for problem in report.problems] == [5]
