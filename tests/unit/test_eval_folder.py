# SPDX-License-Identifier: Apache-2.0
"""One folder is one model asked about one benchmark, however often and by whichever protocols."""

import json

import pytest
import torch

from tests import tiny_model
from training.data.readers.jsonl import write_samples
from training.data.schema import Provenance, QuestionKind, Sample
from training.eval.__main__ import main
from training.sft.lock import only_run

SPLITS = ("held_out", "train")
QUICK = ("--no-blind", "--permutations", "1", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two checkpoints as training leaves them, and data sets of a question without video for each split."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("files")
    for seed, run in enumerate(("run1", "run2")):
        tiny_model.write(root / run / "model", seed)
    for name in ("p", "q"):
        (root / name / "val").mkdir(parents=True)
        write_samples(root / name / "val", [sample(name, split) for split in SPLITS])
    return root


def sample(name, split):
    return Sample(
        f"{name}-{split}", (), QuestionKind.COMMON_SENSE, "yes", Provenance(name), split,
        question=f"Is {name} open?", yes_no=True,
    )  # fmt: skip


def evaluate(files, run, bench, *more):
    """The command line; its exit code."""
    model, bench = files / run / "model", files / bench
    return main(["--model", str(model), "--bench", str(bench), *QUICK, *map(str, more)])


def origin(folder, protocol="letter"):
    facts = json.loads((folder / f"{protocol}.json").read_text())
    return facts["benchmark"]["origin"], facts["overall"]["n"]


def test_folders_have_names_that_tell_models_benchmarks_and_splits_apart(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {
        "run1-model-p-val-held_out": ("run1", "p/val", "--split", "held_out"),
        "run1-model-p-val-train": ("run1", "p/val", "--split", "train"),
        "run1-model-q-val-train": ("run1", "q/val", "--split", "train"),
        "run2-model-q-val-train": ("run2", "q/val", "--split", "train"),
        "run2-model-p-val-samples": ("run2", "p/val/samples.jsonl"),
    }
    assert [evaluate(files, *given) for given in asked.values()] == [0] * len(asked)
    assert {path.name for path in (tmp_path / "build" / "eval").iterdir()} == set(asked)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("run1", "q/val", "--split", "held_out"), "another benchmark"),
        (("run1", "p/val", "--split", "train"), "another benchmark"),
        (("run2", "p/val", "--split", "held_out"), "another model"),
    ],
    ids=["benchmark", "split", "model"],
)
def test_a_folder_of_another_evaluation_is_refused_and_replaced_at_will(files, tmp_path, capsys, other, said):
    strict = ("--protocol", "strict", "--seeds", "1", "--think-tokens", "8", "--out", tmp_path)
    assert evaluate(files, "run1", "p/val", "--split", "held_out", "--out", tmp_path) == 0
    # The same by another protocol, with the path written otherwise.
    assert evaluate(files, "run1", "q/../p/val", "--split", "held_out", *strict) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {"letter.json", "strict.json", "released.json"} <= set(before)
    capsys.readouterr()
    assert evaluate(files, *other, *strict) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "choose another --out" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert evaluate(files, *other, *strict, "--replace") == 0
    assert not (tmp_path / "letter.json").exists(), "it was about something else"
    place, count = origin(tmp_path, "strict")
    assert place.startswith(str(files / other[1]))
    assert count == 1
    kept = (tmp_path / "predictions.jsonl").read_bytes()
    assert kept.startswith(before["predictions.jsonl"])


def test_an_evaluation_of_before_goes_on(files, tmp_path):
    """Older ones know their benchmark by its name alone."""
    assert evaluate(files, "run1", "p/val", "--split", "held_out", "--out", tmp_path) == 0
    facts = json.loads((tmp_path / "run.json").read_text())
    del facts["benchmark"]["origin"]
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert evaluate(files, "run1", "p/val", "--split", "held_out", "--out", tmp_path) == 0
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert evaluate(files, "run1", "q/val", "--split", "held_out", "--out", tmp_path) == 1


def test_two_evaluations_do_not_share_a_folder(files, tmp_path, capsys):
    with only_run(tmp_path):
        assert evaluate(files, "run1", "p/val", "--out", tmp_path) == 1
    assert f"--out: another run is writing to {tmp_path}; choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--bench", "models", "--data", "x"), "models is a data set and needs no --data"),
        (("--bench", "models", "--windows", "5"), "--windows and --frames are for --bench sim"),
        (("--bench", "embodied", "--data", "x", "--frames", "8"), "--windows and --frames are for"),
        (("--bench", "sim", "--limit", "5"), "--limit is for benchmarks from files"),
    ],
)
def test_flags_without_effect_are_refused(capsys, given, said):
    assert main(["--model", "models/nano", *given]) == 1
    assert said in capsys.readouterr().err
