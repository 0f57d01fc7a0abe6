# SPDX-License-Identifier: Apache-2.0
"""What the command refuses, before it has cost anything or left anything behind."""

import dataclasses
import resource
import sys

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from tests.unit.nano_files import NANO, described
from tests.unit.sim_files import write_episodes
from training.data.sim.physics.clip import save_clip
from training.data.sim.physics.run import run_clip
from training.nano import __main__ as nano_cli
from training.nano import train as nano_train
from training.nano.architecture import create, save_weights
from training.nano.source import DrawSettings
from training.nano.train import TrainJob
from training.sft.config import OptimizerConfig
from training.sft.loop import TrainingError
from training.sft.store import StoreError

DRAWS = DrawSettings(pairs=4, lengths=(2,), length_shares=(1.0,))
RECIPE = OptimizerConfig(steps=2, peak_rate=1e-3, final_rate=1e-4, warm_up=1)


def command(monkeypatch, folder, *arguments):
    """The exit code of the command line, in ``folder``."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["training.nano", *map(str, arguments)])
    try:
        return nano_cli.main()
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("stage", ["generate", "train"])
def test_there_is_at_least_one_process(tmp_path, monkeypatch, capsys, stage):
    assert command(monkeypatch, tmp_path, stage, "--processes", "0") == 2
    assert "--processes: must be 1 or more, not 0" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_clip_of_a_training_seed_is_refused(tmp_path, monkeypatch):
    said = command(monkeypatch, tmp_path, "clip", "--seed", "5", "--out", "clip.mp4")
    assert said == "error: seed 5 is a training seed: the demo must show a held-out episode"


def test_a_stage_that_does_not_exist_leaves_no_model_behind(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, tmp_path, "train", "--stages", "sight") == 1
    assert "there is no stage 'sight': choose from vision" in capsys.readouterr().err
    assert command(monkeypatch, tmp_path, "train", "--start-from", "nothere") == 1
    assert "nothere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given", [("evaluate", "--model", "nothere"), ("compare", "--before", NANO, "--after", "nothere")]
)
def test_a_model_that_is_not_there_is_said_before_another_is_asked(tmp_path, monkeypatch, capsys, given):
    assert command(monkeypatch, tmp_path, *given) == 1
    assert "nothere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_weights_that_were_there(tmp_path):
    model = create(described(tmp_path))
    save_weights(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match=f"cannot be written to {tmp_path} .*: make room there"):
            save_weights(create(tmp_path, seed=1), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_stages_go_on_only_from_the_weights_they_began_with(tmp_path):
    """Finished ones are taken as they are: with other weights to begin with they would pass for trained."""
    write_episodes(tmp_path / "data" / "episodes")
    save_clip(tmp_path / "data" / "clips", run_clip(0, scene="room"))
    for name in ("model", "one", "two"):
        (tmp_path / name).mkdir()
        described(tmp_path / name)
    for seed, name in enumerate(("one", "two")):
        save_weights(create(tmp_path / name, seed), tmp_path / name)

    fresh = TrainJob(
        tmp_path / "data", tmp_path / "work", tmp_path / "model", vision=RECIPE, vision_draws=DRAWS,
        processes=1, stages=("vision",),
    )  # fmt: skip
    nano_train.train(fresh)
    one = dataclasses.replace(fresh, start=tmp_path / "one", work=tmp_path / "work-one")
    two = dataclasses.replace(one, start=tmp_path / "two")
    with pytest.raises(TrainingError, match=r"work/vision did not begin with .*/one.* move .*/work away"):
        nano_train.train(dataclasses.replace(one, work=fresh.work))
    nano_train.train(one)
    made = load_file(tmp_path / "model" / "model.safetensors")
    for other in (two, dataclasses.replace(one, start=None)):
        with pytest.raises(TrainingError, match="to go on give the --start-from that it began with"):
            nano_train.train(other)
    (tmp_path / "model" / "model.safetensors").unlink()
    nano_train.train(one)  # goes on: it is finished
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.items())
