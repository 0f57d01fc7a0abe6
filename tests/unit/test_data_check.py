# SPDX-License-Identifier: Apache-2.0
"""The pre-flight check finds what was planted, and nothing in a good data set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from training.data import media_scan
from training.data.__main__ import main
from training.data.blind import blind_scores
from training.data.check import CheckResult, check
from training.data.fingerprint import alike, fingerprint
from training.data.media_scan import Unit, scan
from training.data.readers import joined, open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import Frames, Provenance, QuestionKind, Sample, Video


def scene(number: int, time: float = 0.0, size: int = 96) -> np.ndarray:
    """Blobs that move; equal for equal numbers."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:size, 0:size] / size
    image = np.zeros((size, size, 3))
    for _ in range(12):
        cx, cy, dx, dy, width = (
            rng.uniform(0, 1),
            rng.uniform(0, 1),
            *rng.uniform(-0.3, 0.3, 2),
            rng.uniform(0.05, 0.2),
        )
        blob = np.exp(-((x - cx - dx * time) ** 2 + (y - cy - dy * time) ** 2) / width**2)
        image += blob[..., None] * rng.uniform(-120, 200, 3)
    return np.clip(image + 60, 0, 255).astype(np.uint8)


def clip(path: Path, number: int, *, crf: int = 18, size: int = 96, backwards: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.linspace(0, 1, 9)[:: -1 if backwards else 1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = size
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf), "preset": "ultrafast"}
        stream.codec_context.thread_count = 1
        for time in times:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(scene(number, time, size), format="rgb24"))
            )
        container.mux(stream.encode())
    return path


def sample(name: str, path: str, split: str = "train", answer: str = "yes", **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "sample_id": name,
        "media": (Video(path),),
        "kind": QuestionKind.TASK_COMPLETION,
        "task": "open the drawer",
        "answer": answer,
        "provenance": Provenance("sim", episode=name),
        "split": split,
    }
    return Sample(**values | changes)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    for number in range(4):
        clip(root / f"{number}.mp4", number)
    return root


@pytest.fixture
def good(tmp_path: Path, clips: Path) -> Path:
    shutil.copytree(clips, tmp_path / "v")
    write_samples(tmp_path, good_samples())
    return tmp_path


def good_samples() -> list[Sample]:
    splits = ("train", "train", "held_out", "held_out")
    return [sample(f"s{i}", f"v/{i}.mp4", split, ("yes", "no")[i % 2]) for i, split in enumerate(splits)]


def checked(root: Path, processes: int = 1) -> CheckResult:
    return check(open_data_set(root, strict=False), processes)


def found(root: Path) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in checked(root).findings]


def test_a_good_data_set_has_no_findings(good: Path):
    result = checked(good)
    assert result.findings == ()
    assert result.ok
    assert (result.samples, result.media, result.splits) == (4, 4, {"held_out": 2, "train": 2})
    assert result.media_bytes == sum(path.stat().st_size for path in (good / "v").iterdir())


def test_broken_media_are_named_with_their_users(good: Path):
    (good / "v/0.mp4").unlink()
    (good / "v/1.mp4").write_bytes(b"")
    data = (good / "v/2.mp4").read_bytes()
    (good / "v/2.mp4").write_bytes(data[: len(data) // 2])
    (good / "v/3.mp4").write_bytes(b"<html>Not found</html>")
    assert found(good) == [
        ("missing", "v/0.mp4"),
        ("empty", "v/1.mp4"),
        ("truncated", "v/2.mp4"),
        ("unreadable", "v/3.mp4"),
    ]
    assert "used by s0 (samples.jsonl, row 1)" in checked(good).findings[0].message
    assert not checked(good).ok


def test_a_part_beyond_the_end_is_found(good: Path):
    write_samples(good, [sample("s0", "v/0.mp4", media=(Video("v/0.mp4", start_s=60.0),))])
    assert found(good) == [("truncated", "v/0.mp4")]


def test_leaks_by_content_whatever_the_name(good: Path):
    shutil.copy(good / "v/0.mp4", good / "v/copy.mp4")
    more = [sample("copy", "v/copy.mp4", "held_out"), sample("again", "v/1.mp4", "held_out", task="close it")]
    write_samples(good, [*good_samples(), *more])
    assert found(good) == [("leak: same media", "v/0.mp4"), ("leak: same media", "v/1.mp4")]


def test_leaks_by_episode(good: Path):
    twin = Provenance("sim", episode="s0")
    write_samples(good, [*good_samples()[:3], sample("s3", "v/3.mp4", "held_out", provenance=twin)])
    assert found(good) == [("leak: same episode", "sim:s0")]


def test_clips_encoded_anew_scaled_or_backwards_are_noticed(good: Path):
    clip(good / "v/anew.mp4", 0, crf=30)
    clip(good / "v/small.mp4", 1, size=64)
    clip(good / "v/back.mp4", 2, backwards=True)
    clip(good / "v/other.mp4", 9)
    splits = {"anew": "held_out", "small": "held_out", "back": "train", "other": "train"}
    more = [sample(name, f"v/{name}.mp4", split) for name, split in splits.items()]
    write_samples(good, [*good_samples(), *more])
    assert found(good) == [("leak? alike", f"v/{i}.mp4") for i in range(3)]
    assert checked(good).ok  # a warning


def test_the_same_clip_twice_in_a_split_is_a_warning(good: Path):
    shutil.copy(good / "v/0.mp4", good / "v/copy.mp4")
    same = [
        sample("copy", "v/copy.mp4"),
        sample("s0 again", "v/0.mp4"),
        sample("not s1", "v/1.mp4", answer="yes"),
    ]
    write_samples(good, [*good_samples(), *same])
    first = checked(good).findings[0]
    assert "s1 (samples.jsonl, row 2) and not s1 (samples.jsonl, row 7) ask the same" in first.message
    assert found(good) == [
        ("contradiction", "s1"),
        ("duplicate sample", "s0"),
        ("duplicate media", "v/0.mp4"),
    ]


def test_bad_rows_are_counted_and_the_rest_is_checked(good: Path):
    rows = [json.loads(line) for line in (good / "samples.jsonl").read_text().splitlines()]
    rows += [rows[0], rows[1] | {"sample_id": "x", "answer": "B"}]
    (good / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = checked(good)
    assert (result.rows, result.bad_rows, result.samples) == (6, 2, 4)
    places = [finding.where.rpartition("/")[2] for finding in result.findings]
    assert places == ["samples.jsonl, row 5", "samples.jsonl, row 6"]
    assert [finding.kind for finding in result.findings] == ["bad id", "wrong answer"]


def test_arrays_pictures_and_archives(tmp_path: Path, clips: Path):
    np.savez(tmp_path / "e.npz", frames=np.stack([scene(5, t) for t in (0.0, 0.5, 1.0)]))
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as out:
        out.add(clips / "0.mp4", "clips/0.mp4")
        out.add(clips / "1.mp4", "clips/1.mp4")
    short = Frames(("e.npz",), tuple(range(4)))
    samples = [
        sample("a", "x", media=(Video("c.tar.gz", "clips/1.mp4"),)),
        sample("b", "x", media=(Video("c.tar.gz", "clips/0.mp4"),)),
        sample("c", "x", media=(Video("c.tar.gz", "clips/2.mp4"),)),
        sample("d", "x", media=(Frames(("e.npz",), (0, 1, 2), index=(2, 1, 0)),)),
        sample("e", "x", media=(Frames(("gone.png",), (0,)),)),
    ]
    write_samples(tmp_path, samples)
    assert found(tmp_path) == [("missing", "c.tar.gz:clips/2.mp4"), ("missing", "gone.png")]
    write_samples(tmp_path, [sample("d", "x", media=(short,))])
    assert found(tmp_path) == [("truncated", "e.npz")]


def test_members_of_an_archive_are_read_once_and_in_order(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each step back in a compressed archive is to unpack it anew from its begin."""
    with tarfile.open(tmp_path / "clips.tar.gz", "w:gz") as out:
        for i in (2, 0, 1):
            out.add(clips / f"{i}.mp4", f"{i}.mp4")
    read = []
    extract = tarfile.TarFile.extractfile

    def counted(tar: tarfile.TarFile, member: Any) -> Any:
        read.append(member.name)
        return extract(tar, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", counted)
    units = [Unit("clips.tar.gz", f"{i}.mp4") for i in range(3)]
    facts = scan(tmp_path, units, 1)
    assert read == ["2.mp4", "0.mp4", "1.mp4"]
    for i, unit in enumerate(units):
        content = (clips / f"{i}.mp4").read_bytes()
        assert (facts[unit].digest, facts[unit].size) == (hashlib.sha256(content).hexdigest(), len(content))
        assert facts[unit].fingerprint


def test_a_pool_finds_the_same(good: Path):
    (good / "v/0.mp4").write_bytes(b"x")
    units = [Unit(f"v/{i}.mp4") for i in range(4)] * 1
    done: list[int] = []
    assert scan(good, units, 2, done.append) == scan(good, units, 1)
    assert done[-1] == 4


def test_a_file_that_kills_its_reader_is_named_and_the_others_are_read(good: Path):
    units = [Unit("v/0.mp4"), Unit("v/killer.mp4")]
    with open(good / "v/killer.mp4", "wb") as stream:
        stream.truncate(1 << 40)  # a terabyte of nothing takes minutes to read
    facts = scan(good, units, 2, file_seconds=3)
    assert [unit.path for unit, fact in facts.items() if fact.reason] == ["v/killer.mp4"]
    assert "remove it" in facts[units[-1]].message


def test_damage_is_found_but_hours_long_videos_are_not_played(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame between first and middle is damaged: nobody would wait for a film to be decoded to find it."""
    path = good / "v/long.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"x264-params": "keyint=8:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        stream.codec_context.thread_count = 1
        for i in range(64):
            frame = av.VideoFrame.from_ndarray(scene(1, (i % 8) / 8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    at, size = packets[16]
    data[at : at + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    unit = Unit("v/long.mp4")
    assert scan(good, [unit], 1)[unit].reason == "unreadable"
    monkeypatch.setattr(media_scan, "_ALL_FRAMES", 63)
    assert scan(good, [unit], 1)[unit].reason == ""


def test_the_command(good: Path, capsys: pytest.CaptureFixture[str]):
    report = good / "out" / "report.json"
    assert main(["check", str(good), "--json", str(report), "--processes", "1", "--quiet"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    record = json.loads(report.read_text())
    assert record["ok"] is True
    assert {(score["group"], score["split"]) for score in record["scores"]} == {
        ("task_completion", "train"),
        ("task_completion", "held_out"),
    }
    (good / "v/0.mp4").unlink()
    assert main(["check", str(good), "--json", str(report), "--processes", "1", "--quiet"]) == 1
    assert "ERROR: missing: 1\n  v/0.mp4: " in capsys.readouterr().out
    assert json.loads(report.read_text())["findings"][0]["kind"] == "missing"
    assert main(["check", str(good / "v"), "--json", str(report)]) == 1
    assert "holds no data set" in capsys.readouterr().out
    assert json.loads(report.read_text())["ok"] is False


def test_parts_of_a_file_may_be_in_different_splits_where_they_do_not_overlap(good: Path):
    """As LeRobot v3 stores episodes, many in one file."""

    def parts(*bounds: tuple[float, float | None, str]) -> list[Sample]:
        return [
            sample(f"s{i}", "v/0.mp4", split, media=(Video("v/0.mp4", start_s=start, end_s=end),))
            for i, (start, end, split) in enumerate(bounds)
        ]

    write_samples(good, parts((0.0, 0.5, "train"), (0.5, None, "held_out")))
    assert ("leak: same media", "v/0.mp4") not in found(good)
    write_samples(good, parts((0.0, None, "train"), (0.5, 1.0, "held_out")))
    assert ("leak: same media", "v/0.mp4") in found(good)


def test_leaks_between_data_sets(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "Bench mark"
    (other / "v").mkdir(parents=True)
    shutil.copy(good / "v/2.mp4", other / "v/7.mp4")
    clip(other / "v/2.mp4", 9)
    write_samples(other, [sample("s0", "v/7.mp4", "test", "no"), sample("s9", "v/2.mp4", "test")])
    arguments = ["check", str(good), "--against", str(other), "--processes", "1", "--quiet"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "leak: same media: 1" in out
    assert (
        "v/2.mp4 and Bench mark/v/7.mp4 have the same content and are in bench_mark.test and held_out" in out
    )
    assert "splits: bench_mark.test 2, held_out 2, train 2" in out


def test_names_of_other_data_sets_in_any_script(good: Path, tmp_path: Path):
    for name in ("评测", "_held", "-x"):
        other = tmp_path / "others" / name
        (other / "v").mkdir(parents=True)
        clip(other / "v/2.mp4", 9)
        write_samples(other, [sample("s9", "v/2.mp4", "test")])
        assert main(["check", str(good), "--against", str(other), "--processes", "1", "--quiet"]) == 0


def test_data_sets_of_one_name_are_told_apart(good: Path, tmp_path: Path):
    others = []
    for folder, split in (("A", "test"), ("B", "train"), ("C", "test")):
        others.append(tmp_path / folder / ("x" * 60))
        (others[-1] / "v").mkdir(parents=True)
        clip(others[-1] / "v/2.mp4", 9 if folder == "B" else 8)
        write_samples(others[-1], [sample("s9", "v/2.mp4", split)])
    data = joined(open_data_set(good), [open_data_set(other) for other in others])
    name = "x" * 40
    found = [(one.sample_id, one.split, data.place(one)[0]) for one in data.samples[4:]]
    assert found == [
        (f"{name}{number}/s9", f"{name}{number}.{split}", str(other / "samples.jsonl"))
        for number, split, other in zip(("", "-2", "-3"), ("test", "train", "test"), others, strict=True)
    ]
    leaks = [one for one in check(data, 1).findings if one.kind == "leak: same media"]
    assert len(leaks) == 1


@pytest.mark.parametrize("count", ["-1", "many"])
def test_a_number_of_processes_that_cannot_be(good: Path, count: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as raised:
        main(["check", str(good), "--processes", count])
    assert raised.value.code == 2
    assert "--processes" in capsys.readouterr().err


def choice(i: int, options: tuple[str, ...], right: str, split: str = "train", question: str = "?") -> Sample:
    answer = "ABCD"[options.index(right)]
    return sample(
        f"{split}{i}",
        "x.mp4",
        split,
        answer,
        kind=QuestionKind.OTHER,
        question=question,
        options=options,
        task="",
    )


def test_blind_scores_of_planted_biases():
    letters = [choice(i, (f"r{i}", f"x{i}", f"y{i}"), f"r{i}") for i in range(8)]
    (score,) = blind_scores(letters)
    assert score.accuracy["most_frequent_letter"] == 1.0
    assert score.accuracy["most_frequent_answer"] == pytest.approx(1 / 3)  # each answer is its own
    assert score.chance == pytest.approx(1 / 3)

    long = [
        choice(i, ("a", "b", "the longest")[i % 3 :] + ("a", "b", "the longest")[: i % 3], "the longest")
        for i in range(9)
    ]
    (score,) = blind_scores(long)
    assert score.accuracy["longest_option"] == 1.0
    assert score.accuracy["most_frequent_answer"] == 1.0
    assert score.accuracy["most_frequent_letter"] == pytest.approx(0.0, abs=0.34)

    by_text = [
        choice(i, ("left", "right"), "left" if i % 2 else "right", question=f"q{i % 2}") for i in range(8)
    ]
    (score,) = blind_scores(by_text)
    assert score.accuracy["question_text"] == 1.0
    assert score.accuracy["most_frequent_answer"] < 0.6


def test_a_favourite_of_each_source_is_seen_though_all_together_are_balanced():
    def of(source: str, i: int, right: str) -> Sample:
        key, other = f"key {source} {i}", f"other {source} {i}"
        one = choice(i, (key, other) if right == "A" else (other, key), key, question=f"{source} {i}?")
        return dataclasses.replace(one, sample_id=f"{source}{i}", provenance=Provenance(source))

    biased = [of("one", i, "A") for i in range(20)] + [of("two", i, "B") for i in range(20)]
    (score,) = blind_scores(biased)
    assert score.accuracy["most_frequent_letter"] == 0.5
    assert score.accuracy["source_favourite"] == score.best == 1.0
    fair = [of(source, i, "AB"[i % 2]) for source in ("one", "two") for i in range(20)]
    (score,) = blind_scores(fair)
    assert score.best == 0.5
    (score,) = blind_scores([of("one", i, "AB"[i % 2]) for i in range(20)])
    assert "source_favourite" not in score.accuracy


def test_the_same_answer_in_capitals_is_no_contradiction(good: Path):
    samples = [
        sample(
            name, "a.mp4", kind=QuestionKind.OTHER, question="Which?", task="", options=options, answer="A"
        )
        for name, options in (("small", ("cup", "fork")), ("large", ("Cup", "Fork")))
    ]
    write_samples(good, samples)
    kinds = [kind for kind, _ in found(good)]
    assert "contradiction" not in kinds
    assert "duplicate sample" in kinds


def test_blind_guesses_learn_from_training_samples_only():
    samples = [sample(f"t{i}", "x.mp4", "train", "no") for i in range(3)]
    samples += [sample(f"h{i}", "x.mp4", "held_out", "yes") for i in range(5)]
    held_out, train = blind_scores(samples)
    assert (held_out.split, held_out.accuracy["most_frequent_answer"]) == ("held_out", 0.0)
    assert (train.split, train.accuracy["most_frequent_answer"]) == ("train", 1.0)
    assert held_out.answers == {"yes": 5}
    (balanced,) = blind_scores([sample(f"{i}", "x.mp4", "train", ("yes", "no")[i % 2]) for i in range(4)])
    assert balanced.accuracy == {"most_frequent_answer": 0.5, "random": 0.5, "question_text": 0.5}


def test_fingerprints_ignore_noise_but_not_scenes():
    rng = np.random.default_rng(0)
    frames = [scene(1, t) for t in (0.0, 0.5, 1.0)]
    noisy = [np.clip(frame + rng.normal(0, 3, frame.shape), 0, 255).astype(np.uint8) for frame in frames]
    assert alike(fingerprint(frames), fingerprint(noisy))
    others = [fingerprint([scene(n, t) for t in (0.0, 0.5, 1.0)]) for n in range(2, 12)]
    assert not any(alike(fingerprint(frames), other) for other in others)
    assert fingerprint([np.full((64, 64, 3), 9, np.uint8)] * 3) == ()
