# SPDX-License-Identifier: Apache-2.0
"""Ray Train as launcher: a worker that dies is replaced, and the run goes on from its checkpoint.

Ray starts some ten processes of its own and takes its time; tests of the loop itself do without it.
"""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from cosmos_reason_node.models.qwen2_5_vl import load
from tests.unit.sft_files import make_data, make_model, settings, wait_for, write_config
from training.sft.report import read_log

pytest.importorskip("ray", reason="only run.launcher: ray needs it: requirements/train.txt")


def workers(driver):
    """Training processes below the one that called Ray."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("asked", ["auto", "cpu", "cuda"])
def test_the_device_is_that_of_the_cluster(tmp_path, monkeypatch, asked):
    """The driver may have a GPU that the cluster lacks, or the other way round; workers are told."""
    import ray
    import ray.train.torch

    from training.sft import launch

    base, data = make_model(tmp_path / "base"), make_data(tmp_path / "data")
    value = settings(base, data, tmp_path / "run", run={"launcher": "ray"})
    value["run"]["device"] = asked
    config = write_config(tmp_path / "sft.yaml", value)
    started = []

    class Trainer:
        def __init__(self, _worker, *, train_loop_config, scaling_config, **_):
            started.append((train_loop_config["config"].run.device, scaling_config.use_gpu))

        def fit(self):
            pass

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    for driver, cluster in ((True, {"CPU": 8.0}), (False, {"CPU": 8.0, "GPU": 4.0})):
        monkeypatch.setattr(torch.cuda, "is_available", lambda driver=driver: driver)
        monkeypatch.setattr(ray, "cluster_resources", lambda cluster=cluster: cluster)
        launch.launch(config)
    there = {"auto": ["cpu", "cuda"], "cpu": ["cpu", "cpu"], "cuda": ["cuda", "cuda"]}[asked]
    assert started == [(device, device == "cuda") for device in there]


def test_a_dead_worker_is_replaced(tmp_path):
    output = tmp_path / "run"
    steps = 12
    value = settings(
        make_model(tmp_path / "base"),
        make_data(tmp_path / "data"),
        output,
        optimizer={"steps": steps},
        run={"launcher": "ray", "processes": 1, "save_every": 1},
    )
    config = write_config(tmp_path / "sft.yaml", value)
    with (tmp_path / "said").open("w") as said:
        driver = subprocess.Popen(
            [sys.executable, "-m", "training.sft", "--config", str(config)], stdout=said, stderr=said
        )
    try:
        wait_for(lambda: len(read_log(output)) > 2 or driver.poll() is not None, 900)
        assert driver.poll() is None, (tmp_path / "said").read_text()
        os.kill(workers(driver)[0].pid, signal.SIGKILL)
        assert driver.wait(timeout=900) == 0, (tmp_path / "said").read_text()
    finally:
        driver.terminate()
    told = (tmp_path / "said").read_text()
    assert "goes on after step" in told
    assert [entry["step"] for entry in read_log(output)] == list(range(steps))
    load(output / "model", device="cpu")
