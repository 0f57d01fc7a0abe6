# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cosmos_reason_node.video import CameraDevice, VideoError, VideoFile, shrink
from tests.unit.video_files import steady, write_video


def read_all(video):
    times, brightness = [], []
    while (time_s := video.advance()) is not None:
        times.append(time_s)
        brightness.append(int(video.image().mean()))
    return times, brightness


def test_a_video_is_read_with_its_own_times(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mp4", steady(12, 20.0)))
    assert (video.info.width, video.info.height, video.info.frames) == (64, 48, 12)
    assert video.info.duration_s == pytest.approx(0.6, rel=0.05)
    times, brightness = read_all(video)
    assert times == pytest.approx(steady(12, 20.0), abs=1e-3)
    assert brightness == pytest.approx([8 * i for i in range(12)], abs=3)


def test_frames_of_a_variable_rate_video_keep_their_distances(tmp_path):
    uneven = [0.0, 0.1, 0.133, 0.5, 0.533, 1.2]
    times, _ = read_all(VideoFile(write_video(tmp_path / "a.mp4", uneven)))
    assert times == pytest.approx(uneven, abs=2e-3)


def test_the_first_frame_is_at_zero_whatever_the_file_says(tmp_path):
    times, _ = read_all(VideoFile(write_video(tmp_path / "a.mp4", [5.0, 5.1, 5.2])))
    assert times == pytest.approx([0.0, 0.1, 0.2], abs=2e-3)


def test_a_rewound_video_gives_the_same_frames(tmp_path):
    video = VideoFile(write_video(tmp_path / "a.mp4", steady(5, 10.0)))
    first = read_all(video)
    video.rewind()
    assert read_all(video) == first


def test_a_missing_an_empty_and_a_damaged_file_and_a_folder_say_what_is_wrong(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", steady(30, 30.0)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])  # the index comes at the end
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    cases = {
        tmp_path / "none.mp4": "there is no video",
        tmp_path / "empty.mp4": "is empty",
        tmp_path / "cut.mp4": "cannot|not a video",
        tmp_path / "noise.mp4": "not a video",
        tmp_path: "is a directory",
    }
    for path, message in cases.items():
        with pytest.raises(VideoError, match=message):
            VideoFile(path)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path):
    """OpenCV would end the process, so it is opened in one of its own; the file itself is a good one."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    video = write_video(tmp_path / "a.mp4", steady(3, 10.0)).rename(folder / "a.mp4")
    script = "import sys; from cosmos_reason_node.video import VideoFile; VideoFile(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, video], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("cosmos_reason_node.video.VideoError: the name ")
    assert "rename it" in done.stderr


def test_no_camera_and_a_file_in_place_of_a_camera_say_what_to_do(tmp_path):
    with pytest.raises(VideoError, match="there is no camera"):
        CameraDevice("/dev/video_that_is_not_there")
    (tmp_path / "video0").write_text("")
    with pytest.raises(VideoError, match="not a camera device"):
        CameraDevice(str(tmp_path / "video0"))


def test_shrink_keeps_the_shape_and_never_enlarges():
    image = np.zeros((480, 640, 3), np.uint8)
    assert shrink(image, 320).shape == (240, 320, 3)
    assert shrink(image, 0) is image
    assert shrink(image, 1000) is image
    assert shrink(np.zeros((1, 900, 3), np.uint8), 30).shape == (1, 30, 3)
