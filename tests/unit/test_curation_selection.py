# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.curation_data import save, scene
from training.data.curation import clip as clips
from training.data.curation.config import Caption, ConfigError, FrameSettings, Select
from training.data.curation.outcome import Books, Rejected
from training.data.curation.selection import find_videos, select
from training.data.curation.sidecar import read_caption
from training.data.curation.store import Store


def run(folder, paths, **settings):
    """Kept files, and the reasons why the others are not."""
    books = Books()
    with Store(folder / "curation.sqlite") as store:
        kept = asyncio.run(select(paths, Select(**settings), store, books, lambda _: None))
    assert books.balanced
    return [clip.path for clip in kept], {loss.item: loss.reason for loss in books.losses}


def blurred(frames):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), 9) for frame in frames])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (lambda: scene(0, 8), "too_short"),
        (lambda: scene(0, 80), "too_long"),
        (lambda: scene(0, 30, (96, 64)), "too_small"),
        (lambda: np.repeat(scene(0, 1), 30, 0), "too_still"),
        (lambda: blurred(scene(0)), "blurred"),
    ],
)
def test_a_video_that_is_not_good_enough_is_left_out(tmp_path, frames, reason):
    good, bad = save(tmp_path / "good.mp4", scene(1)), save(tmp_path / "bad.mp4", frames())
    kept, losses = run(tmp_path, [bad, good], max_s=6.0)
    assert kept == [good]
    assert losses == {str(bad): reason}


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "folder"])
def test_what_is_no_video_is_left_out(tmp_path, damage):
    good, bad = save(tmp_path / "good.mp4", scene(1)), tmp_path / "bad.mp4"
    whole = save(tmp_path / "whole.avi", scene(2, 60)).read_bytes()
    if damage == "folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes({"empty": b"", "text": b"no video", "cut": whole[: len(whole) // 3]}[damage])
    kept, losses = run(tmp_path, [bad, good])
    assert kept == [good]
    assert losses == {str(bad): "unreadable"}


def test_a_name_that_is_not_utf_8_is_left_out_before_anything_is_paid_for(tmp_path):
    """As unzip leaves it. Also of a copy, which is not opened: what was measured is known by its content."""
    good = save(tmp_path / "z.mp4", scene(1))
    assert run(tmp_path, [good])[0] == [good]
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    bad.write_bytes(good.read_bytes())
    kept, losses = run(tmp_path, find_videos([str(tmp_path)], tmp_path / "out"))
    assert kept == [good]
    assert losses == {str(bad): "unreadable"}


def test_copies_are_found_and_other_takes_of_the_same_place_are_not(tmp_path):
    frames = scene(0)
    first = save(tmp_path / "a.mp4", frames)
    same = tmp_path / "b.mp4"
    same.write_bytes(first.read_bytes())
    smaller = np.stack([cv2.resize(frame, (320, 240)) for frame in frames])
    copies = [
        save(tmp_path / "c recoded.mp4", frames, crf=30),
        save(tmp_path / "d resized.mp4", smaller),
        save(tmp_path / "e darker.mp4", (frames * 0.8).astype(np.uint8)),
        save(tmp_path / "f slower.mp4", frames, fps=8),
    ]
    others = [save(tmp_path / "g backwards.mp4", frames[::-1]), save(tmp_path / "h other.mp4", scene(4))]
    kept, losses = run(tmp_path, [first, same, *copies, *others])
    assert kept == [first, *others]
    assert losses == {str(same): "duplicate"} | {str(path): "near_duplicate" for path in copies}
    kept, losses = run(tmp_path, [first, same, *copies], near_duplicate=1.0)
    assert kept == [first, *copies]


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    path = save(tmp_path / "a.mp4", scene(0))
    assert run(tmp_path, [path])[0] == [path]
    monkeypatch.setattr(clips, "VideoFile", None)  # decoding again would fail
    moved = path.rename(tmp_path / "moved.mp4")
    assert run(tmp_path, [moved])[0] == [moved]


def test_frames_follow_the_times_of_the_video(tmp_path):
    path = save(tmp_path / "a.mp4", scene(0, 30))
    clip = clips.clip_of(path, clips.file_digest(path), clips.measure(path, 60.0))
    assert clip.length_s == pytest.approx(3.0)
    assert clips.frame_times(clip, FrameSettings(fps=2, most=32)) == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5])
    assert clips.frame_times(clip, FrameSettings(fps=2, most=4)) == pytest.approx([0, 0.8, 1.5, 2.3])
    assert len(clips.frame_times(clip, FrameSettings(fps=100, most=100))) == 30, "no frame twice"
    assert clips.frame_times(clip, FrameSettings(fps=0.01)) == [0.0]
    pictures = clips.pictures(clip, FrameSettings(fps=2, most=4, quality=95))
    frames = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in scene(0)]).astype(int)
    for time_s, picture in pictures:
        image = cv2.imdecode(np.frombuffer(picture.load(), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.abs(frames - image).mean((1, 2)).argmin() == round(time_s * 10)
    assert len({picture.name for _, picture in pictures}) == 4


def test_videos_are_found_in_folders_and_named_once(tmp_path):
    inside = tmp_path / "하위 폴더"
    inside.mkdir()
    (tmp_path / "out").mkdir()
    names = ["a.mp4", "b.MKV", "c.txt", "하위 폴더/d.webm", "out/e.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    places = [str(tmp_path), str(tmp_path / "a.mp4"), str(tmp_path / "c.txt")]
    found = find_videos(places, leave_out=tmp_path / "out")
    assert [str(path.relative_to(tmp_path)) for path in found] == names[:4]
    with pytest.raises(ConfigError, match="no file or folder"):
        find_videos([str(tmp_path / "none")], tmp_path / "out")
    with pytest.raises(ConfigError, match="no video in"):
        find_videos([str(tmp_path / "out")], tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "settings", "result"),
    [
        (b"A cup falls.\n", Caption(), "A cup falls."),
        (None, Caption(), "no_sidecar"),
        (b"\xff\xfe\x00", Caption(), "bad_sidecar"),
        (b'{"task": "open it"}', Caption(sidecar=".json", field="task"), "open it"),
        (b'{"task": 3}', Caption(sidecar=".json", field="task"), "bad_sidecar"),
        (b'{"job": "open it"}', Caption(sidecar=".json", field="task"), "bad_sidecar"),
        (b"[", Caption(sidecar=".json"), "bad_sidecar"),
        (b'{"caption": "A cup \\ud83d"}', Caption(sidecar=".json"), "A cup \ufffd"),
    ],
)
def test_captions_lie_beside_the_videos(tmp_path, content, settings, result):
    video = tmp_path / "clip 1.mp4"
    if content is not None:
        video.with_suffix(settings.sidecar).write_bytes(content)
    if result.endswith("_sidecar"):
        with pytest.raises(Rejected) as caught:
            read_caption(video, settings)
        assert caught.value.reason == result
    else:
        assert read_caption(video, settings) == result
