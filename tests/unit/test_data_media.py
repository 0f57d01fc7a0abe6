# SPDX-License-Identifier: Apache-2.0
"""Windows from files are those that the node would have made."""

from __future__ import annotations

import dataclasses
import io
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from cosmos_reason_node.types import Frame
from cosmos_reason_node.video import VideoFile
from cosmos_reason_node.vision.patchify import PatchSpec
from cosmos_reason_node.vision.resize import resize
from cosmos_reason_node.window import Offer, TimeGrid, WindowBuffer
from tests.unit.video_files import steady, write_video
from training.data import archive
from training.data.clip import Clip, open_video
from training.data.media import MediaError, WindowSpec, choose, load_window
from training.data.media_scan import Unit, scan
from training.data.schema import Frames, Grid, Video

SPEC = WindowSpec(250_000_000, 8, PatchSpec(), max_pixels=28 * 28 * 4)
TICK = SPEC.period_ns
VARIABLE = [0.0, 0.01, 0.02, 0.3, 0.31, 1.05, 1.9, 1.95, 2.0, 2.3, 4.4, 4.41, 4.6, 4.9]


def numbers(window) -> list[int]:
    """Which frame of write_video each frame of a window is."""
    return [round(float(frame.image.mean()) / 8) for frame in window.frames]


def node_window(times_s, num_frames=SPEC.num_frames):
    """Indices that the node keeps of a camera with these times, and how many are held."""
    buffer = WindowBuffer("c", TimeGrid(TICK), num_frames, max_hold_s=60.0)
    index_of = {}
    for index, time_s in enumerate(times_s):
        stamp = 100 * TICK + round(time_s * 1e9)
        if buffer.offer(stamp) is Offer.SAMPLE:
            buffer.put(Frame("c", stamp, stamp // TICK, np.empty(0)))
            index_of[stamp] = index
    window = buffer.window()
    return [index_of[frame.stamp_ns] for frame in window.frames], window.held


@pytest.mark.parametrize("times_s", [steady(31, 30), steady(25, 12), steady(9, 2), VARIABLE], ids=len)
def test_frames_are_those_the_node_keeps(tmp_path: Path, times_s: list[float]):
    write_video(tmp_path / "x.mp4", times_s)
    window = load_window(tmp_path, Video("x.mp4", camera="c"), SPEC)
    indices, held = node_window(times_s)
    assert numbers(window) == indices
    assert window.held == held
    assert (window.first_tick % 2, len(window.frames) % 2, window.asked) == (0, 0, 8)
    assert window.frames[0].image.shape == (56, 56, 3)
    assert {frame.camera for frame in window.frames} == {"c"}


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts", "mov"])
def test_other_containers(tmp_path: Path, suffix: str):
    """AVI has no presentation times, MPEG-TS cannot be sought exactly."""
    with av.open(str(tmp_path / f"x.{suffix}"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(20):
            image = np.full((48, 64, 3), 8 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    assert numbers(load_window(tmp_path, Video(f"x.{suffix}"), SPEC)) == [0, 3, 5, 8, 10, 13, 15, 18]
    assert numbers(load_window(tmp_path, Video(f"x.{suffix}", "", 1.0, 1.5), SPEC)) == [10, 13]
    packed = tar(tmp_path / "c.tar", {f"x.{suffix}": (tmp_path / f"x.{suffix}").read_bytes()}, "w")
    assert numbers(load_window(tmp_path, Video(packed.name, f"x.{suffix}"), SPEC))[0] == 0
    unit = Unit(f"x.{suffix}", parts=((1.0, 1.5),))
    assert scan(tmp_path, [unit], 1)[unit].reason == ""


def moving_video(path: Path, codec: str, options: dict[str, str], count: int = 96) -> Path:
    """Ten frames a second that all differ, and are stored in another order than shown."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 64, 3)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.thread_count = 1
        for _ in range(count):
            image = 0.97 * np.roll(image, 1, axis=1) + 0.03 * rng.integers(0, 255, image.shape)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return path


GROUPS = "keyint=12:min-keyint=12:scenecut=0:b-adapt=0:bframes=3"


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264-params": f"{GROUPS}:open-gop=1"}),
        ("libx264", {"x264-params": GROUPS}),
        ("libx265", {"x265-params": f"{GROUPS}:open-gop=1:log-level=none"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
    ],
    ids=["h264-open", "h264", "hevc-open", "mpeg4"],
)
def test_frames_that_are_sought_are_those_of_playing(
    tmp_path: Path, codec: str, options: dict[str, str], suffix: str, monkeypatch: pytest.MonkeyPatch
):
    """Also those between two key frames that are shown before the frame they are stored behind."""
    starts: list[int | None] = []
    decode = Clip._decode

    def noted(self: Clip, wanted: dict[int, int], spec: WindowSpec, start: int | None) -> Any:
        starts.append(start)
        return decode(self, wanted, spec, start)

    monkeypatch.setattr(Clip, "_decode", noted)
    path = moving_video(tmp_path / f"x.{suffix}", codec, options)
    with av.open(str(path)) as container:
        played = [resize(frame.to_ndarray(format="rgb24"), (56, 56)) for frame in container.decode(video=0)]
    with open_video(tmp_path, Video(path.name)) as clip:
        stamps = clip.stamps_ns
        assert len(stamps) == len(played)
        for i, image in enumerate(played):
            np.testing.assert_array_equal(clip.read([i], SPEC)[i], image)
        starts.clear()
        far = clip.read([0, 47, 95], SPEC)
        assert len(starts) == 3  # what lies between is not decoded
        assert None not in starts
        starts.clear()
        assert len(clip.read(range(20, 40, 2), SPEC)) == 10
        assert len(starts) == 1
    assert all(np.array_equal(far[i], played[i]) for i in far)
    for first in range(24, 48):
        part = Video(path.name, "", stamps[first] / 1e9, stamps[first + 8] / 1e9)
        with open_video(tmp_path, part) as clip:
            assert clip.stamps_ns == stamps[first : first + 8]
            np.testing.assert_array_equal(clip.read([0], SPEC)[0], played[first])
    assert None not in starts  # never from the file's first frame


def test_a_part_is_read_by_its_times(tmp_path: Path):
    write_video(tmp_path / "x.mp4", steady(31, 10))
    window = load_window(tmp_path, Video("x.mp4", start_s=1.0, end_s=2.0), SPEC)
    assert numbers(window) == [10, 13, 15, 18]
    whole = load_window(tmp_path, Video("x.mp4", end_s=2.0), SPEC)
    assert numbers(whole)[-4:] == numbers(window)
    assert whole.frames[-1].stamp_ns == window.frames[-1].stamp_ns  # one time grid for all parts of a file
    with pytest.raises(MediaError, match=r"no frame from 9 s on"):
        load_window(tmp_path, Video("x.mp4", start_s=9.0), SPEC)


def test_a_whole_clip_fits_a_window(tmp_path: Path):
    write_video(tmp_path / "x.mp4", steady(31, 4))  # 7.5 s, four times a window
    window = load_window(tmp_path, Video("x.mp4"), dataclasses.replace(SPEC, whole=True))
    assert numbers(window) == [0, 4, 8, 12, 16, 19, 23, 27]
    assert window.period_ns * 8 > 7.5e9
    short = load_window(tmp_path, Video("x.mp4", end_s=1.0), dataclasses.replace(SPEC, whole=True))
    assert short.period_ns == TICK
    assert numbers(short) == [0, 1, 2, 3]


def test_a_single_frame_is_a_still_pair(tmp_path: Path):
    write_video(tmp_path / "x.mp4", [0.0])
    window = load_window(tmp_path, Video("x.mp4"), SPEC)
    assert numbers(window) == [0, 0]
    assert window.held == 1


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["90", "180", "270"])
def test_videos_of_phones_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int]):
    corner = np.zeros((64, 32, 3), np.uint8)
    corner[:16, :16] = 255
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 64, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "x.mp4").read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, times, ids, duration, reserved, layer, group, volume
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "x.mp4").write_bytes(data)
    seen = load_window(tmp_path, Video("x.mp4"), dataclasses.replace(SPEC, max_pixels=64 * 64))
    height, width = seen.frames[0].image.shape[:2]
    assert (height < width) == (a == 0)  # lying on its side for a quarter turn
    video = VideoFile(tmp_path / "x.mp4")  # the node's reader, OpenCV, turns pictures by itself
    video.advance()
    shown = cv2.cvtColor(video.image(), cv2.COLOR_BGR2RGB)
    resized = cv2.resize(shown, (width, height), interpolation=cv2.INTER_AREA)
    assert np.abs(resized.astype(int) - seen.frames[0].image).mean() < 3


def test_unicode_paths(tmp_path: Path):
    name = "clips/日本 é/x y.mp4"
    (tmp_path / name).parent.mkdir(parents=True)
    write_video(tmp_path / name, steady(8, 4), size=(64, 32))
    assert load_window(tmp_path, Video(name), SPEC).frames[0].image.shape == (28, 56, 3)


def tar(path: Path, entries: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as out:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("name", "mode"), [("clips.tar.gz", "w:gz"), ("clips.tar", "w")])
def test_members_are_read_in_place(tmp_path: Path, name: str, mode: str):
    clips = {}
    for count in (8, 4):
        write_video(tmp_path / "x.mp4", steady(count, 4))
        clips[f"clips/{count} ü.mp4"] = (tmp_path / "x.mp4").read_bytes()
    tar(tmp_path / name, {**clips, "../evil.mp4": b"x", "empty.mp4": b""}, mode)
    (tmp_path / "x.mp4").unlink()
    for count in (4, 8, 4):  # in any order
        window = load_window(tmp_path, Video(name, f"clips/{count} ü.mp4"), SPEC)
        assert numbers(window) == list(range(count))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert not (tmp_path.parent / "evil.mp4").exists()
    assert [member for member, _ in archive.members(tmp_path / name)] == [*clips, "../evil.mp4", "empty.mp4"]
    with pytest.raises(MediaError, match=r"holds no file 'clips/9\.mp4'"):
        load_window(tmp_path, Video(name, "clips/9.mp4"), SPEC)
    with pytest.raises(MediaError, match="is empty"):
        load_window(tmp_path, Video(name, "empty.mp4"), SPEC)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_threads_read_an_archive_at_once(tmp_path, mode):
    clips = {f"{i}.bin": bytes([i]) * (20_000 + 97 * i) for i in range(60)}
    for turn in range(5):  # each with an archive that has not been indexed yet
        path = tar(tmp_path / f"{turn}.tar", clips, mode)
        names = list(clips) * 4
        with ThreadPoolExecutor(8) as pool:
            listed = pool.submit(lambda path=path: [name for name, _ in archive.members(path)])
            read = pool.map(lambda name, path=path: archive.open_member(path, name).read(), names)
            assert list(read) == [clips[name] for name in names]
        assert listed.result() == list(clips)


def test_links_in_an_archive_lead_nowhere(tmp_path: Path):
    with tarfile.open(tmp_path / "c.tar", "w") as out:
        info = tarfile.TarInfo("passwd.mp4")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(info)
    with pytest.raises(MediaError, match="holds no file"):
        load_window(tmp_path, Video("c.tar", "passwd.mp4"), SPEC)


def test_torn_archives_are_named(tmp_path: Path):
    write_video(tmp_path / "x.mp4", steady(40, 4))
    data = (tmp_path / "x.mp4").read_bytes()
    whole = tar(tmp_path / "c.tar.gz", {"a.mp4": data, "b.mp4": data[::-1]}).read_bytes()
    (tmp_path / "c.tar.gz").write_bytes(whole[: len(whole) * 3 // 4])
    assert len(load_window(tmp_path, Video("c.tar.gz", "a.mp4"), SPEC).frames) == 8
    with pytest.raises(MediaError, match=r"c\.tar\.gz is damaged or cut off"):
        load_window(tmp_path, Video("c.tar.gz", "b.mp4"), SPEC)
    (tmp_path / "d.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(MediaError, match=r"d\.tar is no tar archive"):
        load_window(tmp_path, Video("d.tar", "a.mp4"), SPEC)


def fast_start(path: Path) -> Path:
    """The same video with its index in front, as files for the web have."""
    target = path.with_name("fast.mp4")
    with (
        av.open(str(path)) as source,
        av.open(str(target), "w", options={"movflags": "faststart"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return target


def test_truncated_empty_missing_and_foreign_files_are_errors(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for image in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    for path in (tmp_path / "x.mp4", fast_start(tmp_path / "x.mp4")):
        data = path.read_bytes()
        load_window(tmp_path, Video(path.name), SPEC)
        for share in (0.3, 0.6, 0.95):
            (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
            with pytest.raises(MediaError, match=r"cut off|cannot be decoded"):
                load_window(tmp_path, Video("cut.mp4"), SPEC)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "folder.mp4").mkdir()
    for name, what in [
        ("empty.mp4", "is empty"),
        ("text.mp4", "cannot be decoded"),
        ("folder.mp4", "is a folder"),
        ("none.mp4", "is missing"),
    ]:
        with pytest.raises(MediaError, match=f"{name} {what}"):
            load_window(tmp_path, Video(name), SPEC)
    with pytest.raises(MediaError, match="File name too long"):
        load_window(tmp_path, Video("n" * 300 + ".mp4"), SPEC)


def test_a_playlist_cannot_open_other_files(tmp_path: Path):
    write_video(tmp_path / "secret.mp4", steady(4, 4))
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(MediaError, match="cannot be decoded"):
        load_window(tmp_path, Video("x.mp4"), SPEC)


def test_image_files_and_arrays(tmp_path: Path):
    frames = np.random.default_rng(0).integers(0, 255, (6, 56, 56, 3), np.uint8)
    for i, frame in enumerate(frames):
        (tmp_path / f"é{i}.png").write_bytes(cv2.imencode(".png", frame[:, :, ::-1])[1].tobytes())
    np.savez_compressed(tmp_path / "e.npz", frames=frames)
    np.save(tmp_path / "e.npy", frames)
    stamps = tuple(10**9 + i * TICK for i in range(6))
    for media in (
        Frames(tuple(f"é{i}.png" for i in range(6)), stamps),
        Frames(("e.npz",), stamps),
        Frames(("e.npy",), stamps, grid=Grid(TICK, 4)),
    ):
        window = load_window(tmp_path, media, SPEC)
        np.testing.assert_array_equal(window.pixels(), frames)
        assert (window.first_tick, window.held) == (4, 0)
    backwards = load_window(tmp_path, Frames(("e.npz",), stamps, index=(5, 4, 3, 2, 1, 0)), SPEC)
    np.testing.assert_array_equal(backwards.pixels(), frames[::-1])
    with pytest.raises(MediaError, match="holds 6 frames, but frame 6"):
        load_window(tmp_path, Frames(("e.npz",), (*stamps, stamps[-1] + TICK)), SPEC)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "e.npz").read_bytes()[:999])
    np.savez(tmp_path / "grey.npz", frames=frames[..., 0])
    np.savez(tmp_path / "bad.npz", frames=np.array([object()]))
    for name in ("cut.npz", "grey.npz", "bad.npz"):
        with pytest.raises(MediaError, match=name):
            load_window(tmp_path, Frames((name,), stamps), SPEC)


def test_frames_on_the_grid_are_taken_as_they_are(tmp_path: Path):
    frames = np.zeros((4, 28, 28, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
    np.savez(tmp_path / "w.npz", frames=frames)
    # Ticks 6 and 7 hold the frame of tick 5, from before the window: the stamps alone could not tell.
    held = Frames(("w.npz",), (5 * TICK, 5 * TICK, 8 * TICK, 9 * TICK), grid=Grid(TICK, 6))
    window = load_window(tmp_path, held, dataclasses.replace(SPEC, frame_size=(28, 28)))
    assert window.first_tick == 6
    assert window.held == 2
    assert [frame.stamp_ns // TICK for frame in window.frames] == [5, 5, 8, 9]
    newest = load_window(tmp_path, held, dataclasses.replace(SPEC, num_frames=2, frame_size=(28, 28)))
    assert (newest.first_tick, newest.held) == (8, 0)
    assert newest.frames[0].image.max() == 2


def test_choosing_is_fast_enough_to_be_exact_on_long_recordings():
    stamps = [i * 33_333_333 for i in range(20_000)]
    choice = choose(stamps, SPEC, relative=True)
    assert len(choice.indices) == 8
    assert choice.indices[-1] >= 19_990 - 8


def test_a_video_says_its_times(tmp_path: Path):
    write_video(tmp_path / "x.mp4", VARIABLE)
    with open_video(tmp_path, Video("x.mp4")) as clip:
        assert clip.stamps_ns == pytest.approx([round(t * 1e9) for t in VARIABLE], abs=12_000)
