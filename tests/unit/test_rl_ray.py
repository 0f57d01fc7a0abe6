# SPDX-License-Identifier: Apache-2.0
"""Runs of processes: synchronous ones equal the single process bit for bit, and every role may be killed.

Ray is started once for the module; it takes its time on a busy machine.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.unit.rl_files import make_base, short, story
from training.sft.report import read_log

ray = pytest.importorskip("ray", reason="only run.launcher: ray needs it: requirements/train.txt")

ROLES = {"rollout": "_Rollout", "reward": "_Reward", "trainer": "_Trainer", "books": "_BooksActor"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine, although another cluster was once started here and has left its address."""
    from training.sft.launch import start_ray

    # Ray's processes may still write when it is removed.
    temporary = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
    with pytest.MonkeyPatch.context() as patch, temporary as folder:
        patch.setenv("RAY_TMPDIR", folder)  # sockets lie in it: a long path would be too long for them
        patch.delenv("RAY_ADDRESS", raising=False)
        left = Path(folder) / "ray" / "ray_current_cluster"
        left.parent.mkdir()
        left.write_text("127.0.0.1:6379")
        start_ray(8)
        yield
        ray.shutdown()


def processes(name):
    """Processes of Ray actors of a class, oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def in_background(config):
    """A run in a thread; its error is kept."""
    from training.rl.actors import run_ray

    kept = []

    def target():
        try:
            run_ray(config)
        except Exception as error:
            kept.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, kept


def wait(condition, seconds=900):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_staleness_0_equals_the_single_process_bit_for_bit_though_workers_die(base, tmp_path, monkeypatch):
    from training.rl.loop import run_inline

    run_inline(short(*base, tmp_path / "sync", rollout={"together": 2}))
    monkeypatch.chdir(
        tmp_path
    )  # Ray was started elsewhere: relative paths mean the user's folder all the same
    output = Path("async")
    base = tuple(Path(os.path.relpath(path)) for path in base)
    rollout = {"workers": 2, "max_staleness": 0, "together": 2}
    config = short(*base, output, run={"launcher": "ray"}, rollout=rollout)
    thread, errors = in_background(config)
    wait(lambda: len(read_log(output)) >= 1 or not thread.is_alive())
    victims = processes("_Rollout"), processes("_Reward")  # the second rollout worker may not be there yet
    for victim in itertools.chain(*victims):
        victim.kill()
    thread.join(timeout=900)
    assert not thread.is_alive()
    assert not errors
    assert all(victims)
    assert story(output) == story(tmp_path / "sync")
    assert (tmp_path / "async" / "model" / "config.json").is_file()


def test_every_role_is_killed_at_random_times_and_the_books_agree(base, tmp_path):
    output, rng = tmp_path / "run", random.Random(0)
    config = short(
        *base,
        output,
        run={"launcher": "ray", "save_every": 1},
        rollout={"workers": 1, "max_staleness": 1},
        optimizer={"steps": 12},
    )
    thread, errors = in_background(config)
    order = [(name, signal.SIGKILL) for name in ROLES.values()]
    order.append((ROLES["trainer"], signal.SIGTERM))  # it saves before it ends
    rng.shuffle(order)
    killed = []
    for number, (name, how) in enumerate(order):
        wait(lambda number=number: len(read_log(output / "monitor")) > number or not thread.is_alive())
        time.sleep(rng.uniform(0, 0.3))
        wait(lambda name=name: processes(name) or not thread.is_alive())  # it may be starting again
        for process in processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)
                killed.append((name, how))
    thread.join(timeout=900)
    assert not thread.is_alive()
    assert not errors
    assert set(killed) == set(order)
    entries = read_log(output / "monitor")
    assert [entry["step"] for entry in entries] == list(range(12))  # each iteration once in the final history
    assert [entry["step"] for entry in read_log(output)] == list(range(12))
    for entry in entries:
        assert len(entry["attempts"]) == 4  # each place of it once
        assert set(entry["staleness"]) <= {"0", "1"}
    counts = entries[-1]["counts"]
    assert counts["failed"] == 0


def test_a_worker_joins_late(base, tmp_path):
    """A run whose workers cannot all be placed at once begins with those that can."""
    output, full = tmp_path / "run", tmp_path / "full"
    config = short(
        *base,
        output,
        run={"launcher": "ray"},
        rollout={"workers": 2, "max_staleness": 1},
        optimizer={"steps": 8},
    )

    def occupy():  # defined here: workers cannot import this module
        full.touch()
        end = time.monotonic() + 600
        while full.exists() and time.monotonic() < end:
            time.sleep(0.1)

    blocker = ray.remote(occupy).options(num_cpus=5).remote()  # leaves no room for a second worker
    wait(full.exists)
    thread, errors = in_background(config)
    wait(lambda: len(read_log(output)) >= 2 or not thread.is_alive())
    early = {process.pid for process in processes("_Rollout")}
    trainers = processes("_Trainer")
    for trainer in trainers:
        trainer.suspend()  # or the run might end before there is room
    full.unlink()
    wait(lambda: not early.issuperset(process.pid for process in processes("_Rollout")))
    for trainer in trainers:
        trainer.resume()
    thread.join(timeout=900)
    ray.get(blocker, timeout=60)
    assert not thread.is_alive()
    assert not errors
    assert trainers
    assert len(read_log(output)) == 8


def test_a_worker_without_room_beside_the_trainer_is_not_queued(base, tmp_path, monkeypatch):
    """In Ray's queue it would take the place of a trainer that has died, which would then wait for ever."""
    output, there = tmp_path / "run", ray.cluster_resources()
    config = short(
        *base,
        output,
        run={"launcher": "ray"},
        rollout={"workers": 2, "max_staleness": 1},
        optimizer={"steps": 8},
    )
    monkeypatch.setattr(ray, "cluster_resources", lambda: {**there, "CPU": 3.0})  # as of a smaller cluster
    thread, errors = in_background(config)
    wait(lambda: len(read_log(output)) >= 2 or not thread.is_alive())
    trainers = processes("_Trainer")
    for trainer in trainers:
        trainer.suspend()  # or the run might end before
    time.sleep(5.0)
    alone = len(processes("_Rollout"))
    monkeypatch.undo()
    wait(lambda: len(processes("_Rollout")) == 2 or not thread.is_alive())
    for trainer in trainers:
        trainer.resume()
    thread.join(timeout=900)
    assert not thread.is_alive()
    assert not errors
    assert trainers
    assert alone == 1


def test_workers_that_hang_are_ended_and_the_run_goes_on(base, tmp_path, capsys):
    """Stopped, not dead: they neither answer nor end, as on a file system that does not come back."""
    output = tmp_path / "run"
    config = short(
        *base,
        output,
        run={"launcher": "ray", "timeout_s": 300},
        rollout={"deadline_s": 15.0, "max_staleness": 0},
        optimizer={"steps": 6},
    )
    thread, errors = in_background(config)
    wait(lambda: len(read_log(output)) >= 1 or not thread.is_alive())
    stopped = processes("_Rollout") + processes("_Reward")
    for process in stopped:
        process.suspend()
    try:
        thread.join(timeout=240)
        assert not thread.is_alive()
    finally:
        for process in stopped:
            if process.is_running():
                process.kill()
    assert not errors
    assert len(stopped) == 2
    assert [entry["step"] for entry in read_log(output)] == list(range(6))
    said = capsys.readouterr().out
    assert "rollout-0.1 hangs" in said
    assert "reward-0.1 hangs" in said


def test_ctrl_c_says_how_to_go_on(base, tmp_path):
    output, file = tmp_path / "run", tmp_path / "rl.yaml"
    config = short(*base, output, run={"launcher": "ray", "save_every": 1}, optimizer={"steps": 1000})
    file.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(config)))))
    command = [sys.executable, "-m", "training.rl", "--config", str(file)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait(lambda: len(read_log(output)) >= 2 or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "start again to go on from the last checkpoint" in said
    assert "Traceback" not in said
    assert list((output / "checkpoints").glob("step-*"))
