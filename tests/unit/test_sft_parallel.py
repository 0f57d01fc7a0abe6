# SPDX-License-Identifier: Apache-2.0
"""Two processes (FSDP2 over gloo) do what one does, and their checkpoints are each other's."""

import contextlib
import os
import signal
import socket

import pytest
import torch

from cosmos_reason_node.models.qwen2_5_vl import load
from tests.unit.sft_files import forked, held_at, make_data, make_model, settings, wait_for
from training.settings import make_settings
from training.sft.config import RunConfig, SftConfig
from training.sft.loop import Interrupted
from training.sft.parallel import join
from training.sft.report import read_log
from training.sft.run import run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def config(base, data, output, **model):
    value = settings(base, data, output, model=model, optimizer={"steps": 4}, run={"save_every": 1})
    return make_settings(SftConfig, value)


def started(count, made, stop_at=None):
    """Workers with the environment that torchrun gives them; they wait before step ``stop_at``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank):
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if stop_at is None:
            run(made)
        else:
            held_at(stop_at, run, made)

    return [forked(work, rank) for rank in range(count)]


def losses(output):
    return [entry["loss"] for entry in read_log(output)]


@pytest.mark.parametrize(("error", "left"), [(None, False), (Interrupted, False), (RuntimeError, True)])
def test_who_fails_alone_does_not_wait_for_the_others(tmp_path, error, left):
    """To leave NCCL's group takes all processes; those that do not fail are in a collective."""
    said = tmp_path / "said"

    def work():
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        with contextlib.suppress(Interrupted, RuntimeError), join(RunConfig(output="x", device="cpu")):
            if error:
                raise error("here")
        said.write_text(str(torch.distributed.is_initialized()))

    child = forked(work)
    child.join()
    assert said.read_text() == str(left)


@pytest.mark.parametrize(
    ("tied", "model", "near"),
    [
        (True, {"checkpointing": True}, 1e-5),
        (True, {"compute": "bfloat16"}, 1e-2),  # autocast and the sharded policy round at different places
        (False, {"lora": {"rank": 4, "dropout": 0.0}, "train_vision": False}, 1e-5),
    ],
    ids=["float32", "bfloat16", "lora"],
)
def test_two_processes_do_what_one_does(data, tmp_path, tied, model, near):
    base = make_model(tmp_path / "base", tied=tied)
    run(config(base, data, tmp_path / "one", **model))
    together = config(base, data, tmp_path / "two", **model)
    workers = started(2, together, stop_at=2)
    wait_for(lambda: (tmp_path / "two/checkpoints/step-00000002").exists())
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
    assert len(losses(tmp_path / "two")) == 2
    run(together)  # on one process
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=near)
    for worker in started(2, together):  # the checkpoint of one is read by two, which write the model
        worker.join()
        assert worker.exitcode == 0
    one, two = (load(tmp_path / name / "model", device="cpu").network.state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.02, atol=max(2e-3, near))
