# SPDX-License-Identifier: Apache-2.0
"""Rows from data sets: grouping, bounds, rejections, order."""

import collections
import dataclasses
import json

import numpy as np
import pytest
import torch

from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import patchify
from tests.unit.nano_files import NANO
from tests.unit.sft_files import make_data, make_samples
from training.data.problems import DataError
from training.data.readers import open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import QuestionKind, Turn
from training.sft.batches import Damage, RowLoader, RowSource
from training.sft.config import DataConfig, SourceConfig
from training.sft.data import Rejections, RowSampler, Source, adapt_spec, chosen, load_sources, plan, spread

SPEC = read_model_spec(NANO)


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(NANO / "tokenizer.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), windows=9, frames=(2, 8, 4))


def config(*paths, **changes):
    return DataConfig(**{"sources": tuple(map(SourceConfig, map(str, paths))), "max_tokens": 1024, **changes})


def read(data, tokenizer, rejections=None, spec=SPEC):
    return load_sources(data.sources, data, tokenizer, spec, 0, rejections or Rejections())


def test_questions_about_one_window_share_a_row(folder, tokenizer):
    (source,) = read(config(folder, branches=2), tokenizer)
    with_video = [row for row in source.rows if row.media]
    assert source.samples == 27
    assert len(with_video) == 12  # six windows of three questions, at most two a row
    assert {len(row.branches) for row in with_video} == {1, 2}
    asked = collections.Counter(name for row in source.rows for name in row.names)
    assert set(asked.values()) == {1}


def test_a_rows_bound_is_its_length(folder, tokenizer):
    (source,) = read(config(folder), tokenizer)
    loader = RowLoader(tokenizer, SPEC, augment=False, seed=0)
    for row in source.rows:
        batch = loader.load([row], (0, 0))
        assert batch.size == row.length
        assert int((batch.tokens == SPEC.video_token).sum()) == row.visual


def test_pixels_are_the_nodes(folder, tokenizer):
    (source,) = read(config(folder), tokenizer)
    row = next(row for row in source.rows if row.media and row.media[0].paths == ("1.npz",))
    batch = RowLoader(tokenizer, SPEC, augment=False, seed=0).load([row], (0, 0))
    wanted, grid = patchify(np.load(folder / "1.npz")["frames"], SPEC.patches)
    assert batch.grids == (grid,)
    assert np.array_equal(batch.patches.numpy(), wanted)


def test_augmentation_repeats_with_its_key_only(folder, tokenizer):
    (source,) = read(config(folder), tokenizer)
    row = next(row for row in source.rows if row.media)
    loader = RowLoader(tokenizer, SPEC, augment=True, seed=0)
    first, again, other = (loader.load([row], key).patches for key in ((0, 0), (0, 0), (1, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_overlong_answers_are_rejected_with_file_and_row_never_cut(tmp_path, tokenizer):
    make_data(tmp_path, windows=2)
    samples = make_samples(2)
    samples[1] = dataclasses.replace(samples[1], reasoning="The drawer is closed. " * 200)
    samples[4] = dataclasses.replace(samples[4], history=(Turn("user", "hello"),))
    write_samples(tmp_path, samples)
    rejections = Rejections()
    (source,) = read(config(tmp_path), tokenizer, rejections)
    assert source.samples == 4
    overlong, with_history = rejections.problems
    assert str(tmp_path / "samples.jsonl") == overlong.file
    assert overlong.row == 2
    assert "0-next: needs" in overlong.message
    assert "over data.max_tokens = 1024" in overlong.message
    assert with_history.field == "history"
    rejections.write(tmp_path / "rejected.jsonl")
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 2


def test_bad_rows_of_a_folder_that_is_several_sources_are_told_once(tmp_path, tokenizer):
    make_data(tmp_path, windows=2)
    file = tmp_path / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["answer"] = "Z"  # of two options
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    kinds = ("task_completion", "next_action")
    sources = tuple(SourceConfig(str(tmp_path), kind=kind) for kind in kinds)
    rejections = Rejections()
    done, following = read(config(sources=sources, strict=False), tokenizer, rejections)
    assert (done.samples, following.samples) == (2, 1)
    (problem,) = rejections.problems
    assert (problem.row, problem.field) == (2, "answer")


def test_a_source_with_nothing_left_is_an_error(tmp_path, tokenizer, folder):
    with pytest.raises(DataError, match=r"has no sample of split 'test'; it has: train"):
        read(
            dataclasses.replace(config(folder), sources=(SourceConfig(str(folder), split="test"),)), tokenizer
        )
    with pytest.raises(DataError, match=r"has no sample of kind 'order'; it has: .*task_completion"):
        chosen(open_data_set(folder).samples, SourceConfig(str(folder), kind="order"))
    with pytest.raises(DataError, match=r"over data.max_tokens = 64"):
        read(config(folder, max_tokens=64), tokenizer)


def test_a_source_of_one_kind_or_category(folder):
    samples = open_data_set(folder).samples
    filed = [
        dataclasses.replace(s, kind=QuestionKind.COMMON_SENSE, category="order", question="?")
        for s in samples[:2]
    ]
    mixed = [*filed, *samples[2:]]
    assert chosen(mixed, SourceConfig(str(folder), kind="order")) == filed
    assert chosen(mixed, SourceConfig(str(folder), kind="common_sense")) == filed
    kind = samples[2].kind
    assert chosen(mixed, SourceConfig(str(folder), kind=kind.value)) == [
        s for s in samples[2:] if s.kind is kind
    ]


def test_samples_whose_media_are_not_there_are_left_out_and_listed(tmp_path, tokenizer):
    make_data(tmp_path, windows=3)
    (tmp_path / "0.npz").unlink()
    rejections = Rejections()
    (source,) = read(config(tmp_path, strict=False), tokenizer, rejections)
    assert source.samples == 6
    assert sorted((problem.row, problem.field) for problem in rejections.problems) == [
        (row, "media") for row in (1, 2, 3)
    ]
    assert all("0.npz is missing" in problem.message for problem in rejections.problems)


def test_media_that_are_not_there_end_a_strict_run_before_it_starts(tmp_path, tokenizer):
    for name in ("a", "b"):
        make_data(tmp_path / name, windows=2)
        (tmp_path / name / "0.npz").unlink()
        (tmp_path / name / "1.npz").write_bytes(b"")  # so nothing is left of either
    with pytest.raises(DataError, match=r"1.npz is empty \(0 bytes\)") as raised:
        read(config(tmp_path / "a", tmp_path / "b"), tokenizer)
    assert {(problem.file, problem.row) for problem in raised.value.problems} == {
        (str(tmp_path / name / "samples.jsonl"), row) for name in ("a", "b") for row in range(1, 7)
    }


def test_missing_frames_name_the_sample(tmp_path, tokenizer):
    make_data(tmp_path, windows=1)
    (source,) = read(config(tmp_path), tokenizer)
    (tmp_path / "0.npz").unlink()
    with pytest.raises(
        DataError, match=r"0.npz is missing.*remove sample 0-\w+ \(samples.jsonl, row [123]\)"
    ):
        RowLoader(tokenizer, SPEC, augment=False, seed=0).load(source.rows[:1], (0, 0))


def tear(path):
    """Cut a file short: it is there and not empty, and cannot be decoded."""
    path.write_bytes(path.read_bytes()[:-2000])


def test_a_row_that_cannot_be_decoded_counts_for_nothing(tmp_path, tokenizer, capsys):
    make_data(tmp_path / "data", windows=3)
    (source,) = read(config(tmp_path / "data", strict=False), tokenizer)
    listed = tmp_path / "rejected.jsonl"
    loader = RowLoader(tokenizer, SPEC, augment=False, seed=0, damage=Damage(listed))
    whole = loader.load(source.rows, (0, 0))
    tear(tmp_path / "data" / "1.npz")
    batch = loader.load(source.rows, (0, 0))
    torn = next(n for n, row in enumerate(source.rows) if row.media and row.media[0].paths == ("1.npz",))
    others = batch.rows != torn
    assert whole.weights[whole.rows == torn].sum() > 0
    assert batch.weights[~others].sum() == 0
    assert torch.equal(batch.weights[others], whole.weights[whole.rows != torn])
    assert torch.equal(batch.labels[others], whole.labels[whole.rows != torn])
    assert batch.samples == whole.samples - 3
    assert len(batch.grids) == len(whole.grids) - 1
    loader.load(source.rows, (1, 0))  # told once
    (line,) = listed.read_text().splitlines()
    assert "1.npz is damaged or cut off" in line
    assert capsys.readouterr().out.count("left out: ") == 1
    assert loader.load([source.rows[torn]], (2, 0)).weight == 0  # a pass of nothing else


def test_rows_beyond_a_tenth_that_cannot_be_decoded_end_the_run(tmp_path, tokenizer):
    make_data(tmp_path / "data", windows=30)
    (source,) = read(config(tmp_path / "data", strict=False, branches=1), tokenizer)
    for path in (tmp_path / "data").glob("*.npz"):
        tear(path)
    loader = RowLoader(tokenizer, SPEC, augment=False, seed=0, damage=Damage(tmp_path / "rejected.jsonl"))
    with_video = [row for row in source.rows if row.media]
    for row in with_video[:8]:
        loader.load([row], (0, 0))
    with pytest.raises(DataError, match=r"9 of the 9 rows .* training.data check"):
        loader.load([with_video[8]], (0, 0))


def test_the_window_can_be_set(folder, tokenizer):
    data = config(folder, frames=4, fps=2.0)
    spec = adapt_spec(SPEC, data)
    assert (spec.window_frames, spec.fps) == (4, 2.0)
    (source,) = read(data, tokenizer, spec=spec)
    batch = RowLoader(tokenizer, spec, augment=False, seed=0).load(source.rows, (0, 0))
    assert max(t for t, _, _ in batch.grids) == 2
    with pytest.raises(ValueError, match="frames of fixed size"):
        adapt_spec(SPEC, config(folder, max_pixels=50176))


def test_passes_stay_within_the_bound(folder, tokenizer):
    (source,) = read(config(folder), tokenizer)
    rows = source.rows[:8]
    for world in (1, 2, 4, 8):
        passes = plan(rows, 700, world)
        assert len(passes) % world == 0
        assert sorted(map(id, (row for rows in passes for row in rows))) == sorted(map(id, rows))
        assert all(len(rows) * max(row.length for row in rows) <= 700 for rows in passes)
    assert len(plan(rows, 100_000, 1)) == 1
    with pytest.raises(ValueError, match="8 rows cannot be shared by 3 processes"):
        plan(rows, 700, 3)


def test_order_is_a_function_of_seed_and_step(folder, tokenizer):
    sources = read(config(folder), tokenizer)
    forward = RowSampler(sources, 5, seed=1)
    steps = [forward.rows(step) for step in range(12)]
    assert RowSampler(sources, 5, seed=1).rows(7) == steps[7]
    assert forward.rows(3) == steps[3]  # also backwards
    assert RowSampler(sources, 5, seed=2).rows(0) != steps[0]
    count = len(sources[0].rows)
    drawn = [row for rows in steps for row in rows]
    assert set(map(id, drawn[:count])) == set(map(id, sources[0].rows))  # an epoch is everything once
    assert drawn[:count] != drawn[count : 2 * count]


def test_sources_are_drawn_by_weight(folder, tokenizer):
    (source,) = read(config(folder), tokenizer)
    heavy, light = (
        Source(name, weight, tuple(dataclasses.replace(row, names=(name,)) for row in source.rows), 27)
        for name, weight in (("heavy", 3.0), ("light", 1.0))
    )
    sampler = RowSampler([heavy, light], 8, seed=0)
    drawn = collections.Counter(row.names[0] for step in range(100) for row in sampler.rows(step))
    assert drawn["heavy"] / 800 == pytest.approx(0.75, abs=0.05)


def test_validation_takes_as_many_rows_of_each_source_from_all_over_it():
    def source(name, count):
        rows = tuple(f"{name}{i}" for i in range(count))  # what a row is does not matter here
        return Source(name, 1.0, rows, count)

    sources = [source("a", 100), source("b", 3), source("c", 50)]
    rows = spread(sources, 23)
    assert collections.Counter(row[0] for row in rows) == {"a": 10, "b": 3, "c": 10}
    assert [row for row in rows if row[0] == "a"] == [f"a{i}" for i in range(0, 100, 10)]
    assert len(spread(sources, 1000)) == len(set(spread(sources, 1000))) == 153


def test_decoding_ahead_changes_nothing(folder, tokenizer):
    sources = read(config(folder), tokenizer)
    loader = RowLoader(tokenizer, SPEC, augment=True, seed=0)

    def source(workers):
        return RowSource(RowSampler(sources, 4, 0), loader, 600, 4, workers)

    plain, ahead = source(0), source(2)
    for step in (0, 1, 3):  # a jump, as after a resume
        for wanted, found in zip(plain.batches(step, 0, 2), ahead.batches(step, 0, 2), strict=True):
            assert torch.equal(wanted.tokens, found.tokens)
            assert torch.equal(wanted.patches, found.patches)
    ahead.close()
