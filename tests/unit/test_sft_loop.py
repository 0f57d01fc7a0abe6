# SPDX-License-Identifier: Apache-2.0
"""The loop on an objective of its own (a line fitted to points): resuming, and what can go wrong."""

import dataclasses
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.sft_files import forked
from training.sft.config import OptimizerConfig
from training.sft.loop import Interrupted, Job, TrainingError, train
from training.sft.parallel import Context
from training.sft.report import read_log
from training.sft.store import SnapshotStore, StoreError

torch.set_num_threads(1)
ALONE = Context(0, 1, 1, torch.device("cpu"))
RECIPE = OptimizerConfig(steps=12, batch=4, peak_rate=0.1, final_rate=0.01)


@dataclasses.dataclass
class Points:
    x: torch.Tensor
    y: torch.Tensor
    samples: int = 4
    size: int = 4

    @property
    def weight(self):
        return float(len(self.x))

    def to(self, device):
        return self


class PointSource:
    """Two batches a step of noisy points on y = 2x + 1; one value of step ``bad`` is infinite."""

    def __init__(self, bad=-1, on_step=lambda step: None):
        self.bad, self.on_step = bad, on_step

    def batches(self, step, rank, world):
        self.on_step(step)
        for part in range(2):
            generator = torch.Generator().manual_seed(1000 * step + part)
            x = torch.randn(4, 1, generator=generator)
            y = 2 * x + 1 + 0.01 * torch.randn(4, 1, generator=generator)
            yield Points(x, y / 0 if step == self.bad else y)

    def close(self):
        pass


class Line(nn.Module):
    """With dropout, so that random numbers matter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(1, 64)
        self.outer = nn.Linear(64, 1)

    def forward(self, batch):
        hidden = nn.functional.dropout(torch.relu(self.inner(batch.x)), 0.1, self.training)
        error = (self.outer(hidden) - batch.y).square().sum()
        return error, {"far": (error.detach() > 1).float()}


def job(directory, source=None, **changes):
    settings = {"save_every": 3, "log_every": 100} | changes
    return Job(Line(), source or PointSource(), RECIPE, directory, **settings)


def curve(directory):
    return [(e["step"], e["loss"], e["grad_norm"], e["far"]) for e in read_log(directory) if "loss" in e]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    train(job(directory), ALONE)
    return directory


def copied(whole, directory, step):
    """A run that has got as far as ``step``."""
    shutil.copytree(whole, directory, dirs_exist_ok=True)
    for path in (directory / "checkpoints").iterdir():
        if path.name > f"step-{step:08d}":
            shutil.rmtree(path)
    return directory


def test_it_learns_with_accumulated_batches(whole):
    losses = [loss for _, loss, *_ in curve(whole)]
    assert losses[-1] < 0.3 * losses[0]
    first = Line().train()
    torch.manual_seed(0)
    with torch.no_grad():
        expected = sum(float(first.eval()(batch)[0]) for batch in PointSource().batches(0, 0, 1)) / 8
    assert losses[0] == pytest.approx(expected, rel=0.3)  # the mean over both batches, but for dropout


def test_accumulated_gradients_are_those_of_one_batch(tmp_path):
    class Joined(PointSource):
        def batches(self, step, rank, world):
            parts = list(super().batches(step, rank, world))
            yield Points(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), 8, 8)

    norms = []
    for name, source in (("two", PointSource()), ("one", Joined())):
        made = job(tmp_path / name, source)
        made.objective.forward = lambda batch, own=made.objective: (
            (own.outer(torch.relu(own.inner(batch.x))) - batch.y).square().sum(),
            {},
        )
        (tmp_path / name).mkdir()
        train(made, ALONE)
        norms.append([entry["grad_norm"] for entry in read_log(tmp_path / name)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_killed_anywhere_it_goes_on_bit_for_bit(whole, tmp_path):
    def killed(step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    child = forked(train, job(tmp_path, PointSource(on_step=killed)), ALONE)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(curve(tmp_path)) == 8
    assert train(job(tmp_path), ALONE) == 6
    assert curve(tmp_path) == curve(whole)
    one, two = (
        SnapshotStore(path / "checkpoints", 2).newest().tensors("model") for path in (tmp_path, whole)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_signal_saves_and_stops(whole, tmp_path):
    def stopped(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 5, which is saved: start again to go on"):
        train(job(tmp_path, PointSource(on_step=stopped)), ALONE)
    assert train(job(tmp_path), ALONE) == 5
    assert curve(tmp_path) == curve(whole)


def test_a_loss_that_is_no_number_stops_before_it_does_harm(whole, tmp_path):
    with pytest.raises(
        TrainingError, match=r"step 8: the loss is inf.*Lower optimizer.peak_rate.*from step 6"
    ):
        train(job(tmp_path, PointSource(bad=7)), ALONE)
    tensors = SnapshotStore(tmp_path / "checkpoints", 2).newest().tensors("model")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert train(job(tmp_path), ALONE) == 6
    assert curve(tmp_path) == curve(whole)


def test_a_full_disk_leaves_the_last_checkpoint_intact(whole, tmp_path):
    copied(whole, tmp_path, 9)
    size = (tmp_path / "checkpoints/step-00000009/optimizer.safetensors").stat().st_size

    def without_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))  # bytes that a file may have
        try:
            train(job(tmp_path), ALONE)
        except StoreError as error:
            os.write(2, str(error).encode())
            os._exit(7)

    child = forked(without_room)
    child.join()
    assert child.exitcode == 7
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000009"]
    assert train(job(tmp_path), ALONE) == 9
    assert curve(tmp_path) == curve(whole)


def test_the_error_of_a_full_disk_says_what_to_do(tmp_path):
    taken = tmp_path / "checkpoints"
    taken.write_text("a file, where the folder would be")
    with pytest.raises(StoreError, match=r"checkpoint of step 3 .* cannot be written to .*make room there"):
        train(job(tmp_path), ALONE)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, capsys):
    copied(whole, tmp_path, 12)
    with (tmp_path / "checkpoints/step-00000012/optimizer.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff\x00\xff")
    assert train(job(tmp_path), ALONE) == 9
    said = capsys.readouterr().out
    assert "step-00000012 is damaged (optimizer.safetensors has changed since it was written)" in said
    assert curve(tmp_path) == curve(whole)
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(StoreError, match=r"all checkpoints in .* are damaged.*Delete the folder"):
        train(job(tmp_path), ALONE)


def test_a_checkpoint_of_another_run_is_refused(whole, tmp_path):
    copied(whole, tmp_path, 9)
    with pytest.raises(
        TrainingError, match=r"made with run.seed = None, now it is 5: choose another run.output"
    ):
        train(job(tmp_path, facts={"run.seed": 5}), ALONE)
    other = job(tmp_path)
    other.objective.more = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"does not fit the model \(2 tensors differ, more.bias"):
        train(other, ALONE)


def test_rates_may_be_others_where_a_run_goes_on(tmp_path, capsys):
    """What a run is told to change when its loss is not finite any more."""
    facts = {"optimizer": {"steps": 15, "peak_rate": 1e-3, "warm_up": 2}, "model.compute": "bfloat16"}
    train(job(tmp_path, facts=facts), ALONE)
    changed = {"optimizer": {"steps": 15, "peak_rate": 1e-4, "warm_up": 5}, "model.compute": "float32"}
    train(job(tmp_path, facts=changed), ALONE)
    said = capsys.readouterr().out
    assert "goes on after step" in said
    assert "model.compute was bfloat16 and is float32 from here on" in said
    longer = {**changed, "optimizer": {"steps": 16, "peak_rate": 1e-4, "warm_up": 5}}
    with pytest.raises(TrainingError, match=r"made with optimizer = .*'steps': 15.*set optimizer back"):
        train(job(tmp_path, facts=longer), ALONE)


def test_only_the_newest_are_kept_and_leftovers_cleared(tmp_path):
    left = tmp_path / "checkpoints" / "partial-1"
    left.mkdir(parents=True)
    train(job(tmp_path), ALONE)
    assert sorted(path.name for path in left.parent.iterdir()) == ["step-00000009", "step-00000012"]


def test_a_damaged_later_checkpoint_does_not_cost_the_one_that_is_written(tmp_path: Path):
    files = {"model": {"a": torch.arange(4.0)}}
    for step in (5, 10):
        SnapshotStore(tmp_path, 2).write(step, files, {})
    (tmp_path / "step-00000010" / "model.safetensors").write_bytes(b"damaged")
    store = SnapshotStore(tmp_path, 1)
    assert store.newest().step == 5
    store.write(6, files, {})
    assert store.newest().step == 6


def test_tied_tensors_are_stored_once(tmp_path: Path):
    weight = torch.arange(4.0)
    store = SnapshotStore(tmp_path, 1)
    store.write(1, {"model": {"a": weight, "b": weight, "c": weight + 1}}, {})
    found = store.newest().tensors("model")
    assert set(found) == {"a", "b", "c"}
    assert math.isclose(float(found["b"].sum()), 6.0)
