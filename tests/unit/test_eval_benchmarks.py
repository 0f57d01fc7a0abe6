# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from released files, own data sets and simulated episodes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import QueryKind
from tests.unit.video_files import steady, write_video
from training.data.problems import DataError
from training.data.readers.jsonl import write_samples
from training.data.schema import Provenance, QuestionKind, Sample, Video
from training.data.sim.episode import FRAME_SIZE, run_episode, save_episode
from training.eval import __main__ as command
from training.eval.benchmarks import data_set, family, thinned
from training.eval.simulated import RobotEpisodes, find_sources, simulated

MODEL = read_model_spec("models/nano")
CHOICES = {"A": "lift the cup", "B": "push the cup"}


def write_subset(root, name, videos, clips=()):
    folder = root / name
    (folder / "clips").mkdir(parents=True)
    rows = [
        {"video": f"clips/{v}.mp4", "qa_pairs": {"question": q, "index2ans": CHOICES, "answer": "B"}}
        for v in videos
        for q in ("What is next?", "What then?")
    ]
    (folder / f"{name}_benchmark_qa_pairs.json").write_text(json.dumps(rows))
    for clip in clips:
        write_video(folder / "clips" / f"{clip}.mp4", steady(24, 2.0))


def test_embodied_reasoning_as_released(tmp_path):
    write_subset(tmp_path, "bridgev2", ["a", "b"], clips=["a"])
    write_subset(tmp_path, "agibot", ["c"])
    write_subset(tmp_path, "something_else", ["d"], clips=["d"])
    bench = family("embodied", tmp_path, MODEL)
    assert [len(stimulus.items) for stimulus in bench.stimuli] == [2, 2]  # one window, two questions
    assert {item.source for item in bench.items} == {"bridgev2"}
    assert len({item.item_id for item in bench.items}) == 4
    assert bench.official
    notes = " ".join(bench.notes)
    assert "bridge: 2 of 4 questions lack their clips and count as wrong" in notes
    assert "agibot: 2 questions but none of their clips, so it was not asked" in notes
    assert "No rows of robovqa, holoassist, av, robofail" in notes
    (window,) = bench.stimuli[0].load()
    assert len(window.frames) == MODEL.window_frames
    assert window.frames[-1].stamp_ns - window.frames[0].stamp_ns > 11e9  # the whole clip of 12 s
    assert window.frames[0].image.shape == (112, 112, 3)


def test_training_rows_beside_the_benchmark_are_not_asked(tmp_path):
    write_subset(tmp_path, "bridgev2", ["a"], clips=["a"])
    said = [{"role": "user", "content": "What is next?"}, {"role": "assistant", "content": "lift the cup"}]
    rows = [{"video": "clips/a.mp4", "conversations": said}]
    (tmp_path / "bridgev2" / "bridgev2_sft.json").write_text(json.dumps(rows))
    bench = family("embodied", tmp_path, MODEL)
    assert len(bench.items) == 2
    assert "1 rows for training lie beside it and were not asked" in " ".join(bench.notes)


def test_a_benchmark_that_is_not_there_says_what_is_wanted(tmp_path):
    with pytest.raises(DataError, match=r"wanted NAME/NAME_benchmark_qa_pairs\.json"):
        family("embodied", tmp_path, MODEL)
    write_subset(tmp_path, "bridgev2", ["a"], clips=["a"])
    with pytest.raises(DataError, match=r"holds nothing of intuitive_physics(.|\n)*No rows of arrow_of_time"):
        family("intuitive_physics", tmp_path, MODEL)


def sample(number, **more):
    fields = {"kind": QuestionKind.COMMON_SENSE, "question": "Is it open?", "yes_no": True, "answer": "yes"}
    origin = Provenance("home", episode=f"e{number // 2}")
    values = {"media": (Video("a.mp4"),), "provenance": origin, **fields, **more}
    return Sample(f"s{number}", **values)


def test_own_data_set_and_single_file(tmp_path):
    write_video(tmp_path / "a.mp4", steady(48, 4.0))
    samples = [
        sample(0, category="order", split="held_out"),
        sample(1, split="train"),
        sample(2, kind=QuestionKind.CAPTION, yes_no=False, answer="a drawer", split="held_out"),
    ]
    write_samples(tmp_path, samples)
    bench = data_set(tmp_path, MODEL)
    assert [(item.group, item.category, item.cluster) for item in bench.items] == [
        ("order", "order", "home/e0"),
        ("common_sense", "", "home/e0"),
    ]
    assert any("training split" in note for note in bench.notes)
    assert any("1 captions" in note for note in bench.notes)
    held_out = data_set(tmp_path / "samples.jsonl", MODEL, split="held_out")
    assert [item.item_id for item in held_out.items] == ["s0"]
    (window,) = held_out.stimuli[0].load()
    assert window.period_ns == 250_000_000  # the end of the clip, as the node would see it
    with pytest.raises(DataError, match="has no sample of split 'val'; it has: held_out, train"):
        data_set(tmp_path, MODEL, split="val")
    write_samples(tmp_path, samples[2:])
    with pytest.raises(DataError, match="holds no question to ask in split held_out, see: 1 captions"):
        data_set(tmp_path, MODEL, split="held_out")


def test_recordings_are_episodes_of_a_source_else_files(tmp_path):
    """Intervals are over them: parts of one file are not independent, equal numbers of two robots are."""
    parts = tuple((Video("a.mp4", start_s=float(i), end_s=i + 1.0),) for i in range(2))
    write_samples(
        tmp_path,
        [
            sample(0),
            sample(2, provenance=Provenance("lab", episode="e0")),
            sample(4, provenance=Provenance("web"), media=parts[0]),
            sample(6, provenance=Provenance("web"), media=parts[1]),
            sample(8, provenance=Provenance("web"), media=(Video("b.mp4"),)),
            *(sample(i, provenance=Provenance("web"), media=()) for i in (10, 12)),
        ],
    )
    clusters = [item.cluster for item in data_set(tmp_path, MODEL).items]
    assert len(set(clusters)) == 6
    assert clusters[2] == clusters[3]


def test_a_clip_that_was_replaced_is_asked_about_anew(tmp_path):
    write_video(tmp_path / "a.mp4", steady(24, 4.0))
    write_samples(tmp_path, [sample(0)])
    (before,) = data_set(tmp_path, MODEL).items
    shutil.copytree(tmp_path, tmp_path / "copy")
    (copy,) = data_set(tmp_path / "copy", MODEL).items
    assert copy.digest == before.digest  # and can be compared
    write_video(tmp_path / "a.mp4", steady(24, 8.0))
    (after,) = data_set(tmp_path, MODEL).items
    assert after.digest != before.digest


def test_damaged_rows_are_left_out_with_a_note(tmp_path):
    write_samples(tmp_path, [sample(0)])
    path = tmp_path / "samples.jsonl"
    path.write_text(path.read_text() * 2 + "{\n")
    for bench in (data_set(tmp_path, MODEL), data_set(path, MODEL)):
        assert len(bench.items) == 1
        assert any("2 of 3 rows are damaged" in note and "row 3" in note for note in bench.notes)
    with pytest.raises(DataError, match="give the folder"):
        data_set(write_video(tmp_path / "a.mp4", steady(4, 4.0)), MODEL)


def test_thinned_takes_from_everywhere():
    assert thinned(range(10), 3) == (0, 3, 6)
    assert thinned(range(3), 0) == thinned(range(3), 9) == (0, 1, 2)


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    root = tmp_path_factory.mktemp("episodes")
    noise = np.random.default_rng(0)
    for seed in (1_000_000, 1_000_001):
        episode = run_episode(seed, sample=False)
        length = len(episode.openness)
        frames = noise.integers(0, 256, (length, *FRAME_SIZE, 3), np.uint8)
        points = np.zeros((length, 2, 2), np.float32)
        save_episode(root, dataclasses.replace(episode, frames=frames, points=points))
    return root / "held_out"


def test_simulated_robot_episodes(episodes):
    (source,) = find_sources([episodes], frames=8)
    assert isinstance(source, RobotEpisodes)
    bench = simulated([source], 6, MODEL)
    assert len(bench.stimuli) == 6
    assert {item.group for item in bench.items} <= {"task_completion", "affordance", "next_action"}
    assert all(item.cluster.startswith("sim_robot/100000") for item in bench.items)
    assert all(item.tasks for item in bench.items)
    ids = [item.item_id for item in bench.items]
    assert len(set(ids)) == len(ids)
    again = simulated(find_sources([episodes], frames=8), 6, MODEL)
    assert again.items == bench.items
    assert simulated([source], 3, MODEL).items == bench.items[: len(simulated([source], 3, MODEL).items)]
    (window,) = bench.stimuli[0].load()
    assert (len(window.frames), window.first_tick % 2, window.held) == (8, 0, 0)
    assert window.frames[0].image.shape == (112, 112, 3)
    choices = [item for item in bench.items if item.form == "choice"]
    assert choices
    assert all(item.query.kind is QueryKind.NEXT_ACTION for item in choices)


def test_a_split_of_the_simulated_benchmark_by_its_name(episodes, tmp_path, monkeypatch):
    """Checkpoints are chosen by the validation split; what it says is never taken for the held-out one."""
    monkeypatch.setattr(command, "SIM_DATA", (tmp_path / "episodes", tmp_path / "clips"))
    shutil.copytree(episodes, tmp_path / "episodes" / "validation")

    def benchmark(*more):
        given = ["--model", "models/nano", "--bench", "sim", "--windows", "2", "--frames", "8", *more]
        return command._benchmark(command._parser().parse_args(given), MODEL)

    found = benchmark("--split", "validation")
    assert (found.name, found.notes) == ("sim-validation", ("Split validation.",))
    by_folder = benchmark("--data", str(episodes))
    assert by_folder.name == "sim"
    assert found.items == by_folder.items
    with pytest.raises(FileNotFoundError, match=r"episodes/held_out: run .* --validation N"):
        benchmark()
    with pytest.raises(ValueError, match="leave one out"):
        benchmark("--split", "validation", "--data", str(episodes))


def test_the_papers_benchmarks_have_no_splits(capsys):
    given = ["--model", "models/nano", "--bench", "embodied", "--data", "x", "--split", "train"]
    assert command.main(given) == 1
    assert "leave --split out" in capsys.readouterr().err


def test_frames_get_the_models_size(episodes):
    larger = dataclasses.replace(MODEL, frame_size=(140, 168))
    bench = simulated(find_sources([episodes], frames=4), 1, larger)
    (window,) = bench.stimuli[0].load()
    assert window.frames[0].image.shape == (140, 168, 3)


def test_no_simulated_data_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"python -m training\.nano generate"):
        find_sources([tmp_path], 8)
