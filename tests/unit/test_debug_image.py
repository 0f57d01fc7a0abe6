# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np

from cosmos_reason_node.debug_image import LINE_PX, STRIP_FRAMES, WIDTH, DebugImage
from cosmos_reason_node.errors import ErrorCode
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


def decision(kind: QueryKind, brightness: int = 200, camera: str = "front") -> Decision:
    frames = tuple(
        Frame(camera, 1 + i, i, np.full((56, 84, 3), brightness if i == 3 else 10, np.uint8))
        for i in range(4)
    )
    answer = Answer(Verdict.CHOICE, "zieh «jetzt»", -1, 0.8, "", 10, 1)
    query = Query(kind, task="open")
    window = Window(camera, frames, 0, 1, 0, 4)
    return Decision("1", Source.MONITOR, query, (window,), answer, ModelInfo(), Latency(), 10, 20)


def test_nothing_is_drawn_before_there_is_a_window():
    image = DebugImage()
    assert image.jpeg() is None
    image.add(
        Decision("1", Source.MONITOR, Query(QueryKind.QUESTION), (), None, ModelInfo(), Latency(), 0, 0)
    )
    assert image.draw() is None


def test_newest_frame_strip_and_one_line_a_kind():
    image = DebugImage()
    image.add(decision(QueryKind.COMPLETION))
    image.add(decision(QueryKind.COMPLETION))
    image.add(decision(QueryKind.NEXT_ACTION).with_error(ErrorCode.ENGINE_DIED, "killed"))
    picture = image.draw()
    main = round(WIDTH * 56 / 84)
    strip = round(WIDTH / STRIP_FRAMES * 56 / 84)
    assert picture.shape == (main + strip + 2 * LINE_PX + 8, WIDTH, 3)
    assert (picture[:main] == 200).all()
    assert (picture[main : main + strip, :70] == 10).all(), "the strip begins with the oldest frame"
    assert (picture[main : main + strip, -70:] == 200).all()
    for row in range(2):
        line = picture[main + strip + row * LINE_PX : main + strip + (row + 1) * LINE_PX]
        assert line.max() > 100, "text"
    decoded = cv2.imdecode(np.frombuffer(image.jpeg(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == picture.shape


def test_each_camera_is_drawn_with_its_own_answers():
    image = DebugImage()
    image.add(decision(QueryKind.COMPLETION, 200, "front"))
    image.add(decision(QueryKind.NEXT_ACTION, 200, "front"))
    both = image.draw()
    image.add(decision(QueryKind.COMPLETION, 90, "wrist"))
    wrist = image.draw()
    assert wrist[0, 0].tolist() == [90, 90, 90]
    assert wrist.shape[0] == both.shape[0] - LINE_PX, "the wrist camera has one answer yet"


def test_no_frames_is_shown_until_there_are_some():
    image = DebugImage()
    image.add(decision(QueryKind.COMPLETION))
    one = image.draw().shape
    query = Query(QueryKind.COMPLETION, task="open")
    lost = Decision("2", Source.MONITOR, query, (), None, ModelInfo(), Latency(), 0, 0)
    image.add(lost.with_error(ErrorCode.NO_FRAMES, "the camera is silent"))
    assert image.draw().shape[0] == one[0] + LINE_PX
    image.add(decision(QueryKind.COMPLETION))
    assert image.draw().shape == one
