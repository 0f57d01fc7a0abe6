# SPDX-License-Identifier: Apache-2.0
"""The engine process: real processes, a tiny real model."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from cosmos_reason_node.engine.base import Done, Failed, Request, Token
from cosmos_reason_node.engine.host import EngineHost, EngineSpec, EngineState
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.engine.wire import MAX_KEPT, Decoder, KeptImages, Observe, Submit, send
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model

SHORT = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=3)
LONG = dataclasses.replace(SHORT, think_tokens=1500)
WAIT_S = 300.0  # generous: nothing here waits for its bound unless it is broken


class Recorder:
    """Keeps what the host calls back."""

    def __init__(self):
        self.events = []
        self.states = []
        self._changed = threading.Condition()

    def on_event(self, request_id, event):
        with self._changed:
            self.events.append((request_id, event))
            self._changed.notify_all()

    def on_state(self, status):
        with self._changed:
            self.states.append(status)
            self._changed.notify_all()

    def wait(self, predicate):
        with self._changed:
            assert self._changed.wait_for(predicate, WAIT_S), (self.events[-5:], self.states[-3:])

    def of(self, request_id):
        return [event for other, event in self.events if other == request_id]

    def ends(self, request_id):
        return [event for event in self.of(request_id) if not isinstance(event, Token)]

    def wait_ends(self, *request_ids, count=1):
        self.wait(lambda: all(len(self.ends(i)) >= count for i in request_ids))
        return [self.ends(i) for i in request_ids]

    def wait_begun(self, request_id):
        self.wait(lambda: any(isinstance(e, Token) and e.text for e in self.of(request_id)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def recorder():
    return Recorder()


@pytest.fixture(scope="module")
def host(directory, recorder):
    spec = EngineSpec(str(directory), device="cpu", threads=1, max_active=2)
    host = EngineHost(spec, recorder.on_event, recorder.on_state, max_pending=8)
    host.start()
    status = host.wait_ready(WAIT_S)
    assert status.state is EngineState.READY, status
    yield host
    host.stop(WAIT_S)
    assert host.status.state is EngineState.STOPPED


_numbers = iter(range(10**6))


def submit(host, *queries, priority=False, **changes):
    request_id = f"r{next(_numbers)}"
    host.submit(Request(request_id, (tiny_model.window(),), queries, **changes), priority=priority)
    return request_id


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pid):
    end = time.monotonic() + WAIT_S
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_node_side_does_not_import_torch():
    code = (
        "import sys, cosmos_reason_node.engine.host; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=WAIT_S)


def test_states_and_info(host, recorder):
    recorder.wait(lambda: recorder.states and recorder.states[-1].state is EngineState.READY)
    states = [status.state for status in recorder.states]
    assert states[0] is EngineState.LOADING
    assert states[-1] is EngineState.READY
    status = host.status
    assert status.info.model_id == "tiny"
    assert len(status.info.digest) == 64
    assert status.max_prompt_tokens > 1000
    assert status.pid == host.pid != os.getpid()


def test_the_same_answer_as_in_process(host, recorder, directory):
    torch.set_num_threads(1)  # as the engine process, so that sums are taken in the same order
    queries = (SHORT, Query(QueryKind.QUESTION, question="What moves?", think_tokens=4))
    request_id = submit(host, *queries)
    (ends,) = recorder.wait_ends(request_id, count=2)
    engine = TorchEngine(qwen2_5_vl.load(directory, "cpu"), min_confidence=host.spec.min_confidence)
    here = [
        event
        for event in engine.answer(Request("here", (tiny_model.window(),), queries))
        if isinstance(event, Done)
    ]
    # The process joins products that share their input: the last bits of the confidence differ.
    expected = {done.branch: done.answer for done in here}
    for done in ends:
        other = expected.pop(done.branch)
        assert done.answer.confidence == pytest.approx(other.confidence, abs=1e-4)
        assert dataclasses.replace(done.answer, confidence=other.confidence) == other
    assert not expected
    assert all(done.latency.queue_s > 0 for done in ends)
    assert all(done.latency.first_token_s > done.latency.queue_s for done in ends)


def test_many_requests_each_branch_ends_once(host, recorder):
    ids = []
    for i in range(24):
        recorder.wait(lambda: host.pending < 8)
        ids.append(submit(host, *[SHORT] * (1 + i % 3), priority=i % 2 == 0))
    for i, request_id in enumerate(ids):
        (ends,) = recorder.wait_ends(request_id, count=1 + i % 3)
        assert sorted(end.branch for end in ends) == list(range(1 + i % 3))
        assert all(isinstance(end, Done) for end in ends)
    assert host.pending == 0


def test_busy_and_cancel(host, recorder):
    ids = [submit(host, LONG) for _ in range(8)]
    with pytest.raises(CosmosReasonError) as caught:
        submit(host, SHORT)
    assert caught.value.code is ErrorCode.BUSY
    recorder.wait_begun(ids[0])
    assert all(host.cancel(request_id) for request_id in ids)
    for ends in recorder.wait_ends(*ids):
        assert [(end.branch, end.error_code) for end in ends] == [(-1, ErrorCode.CANCELED)]
    assert not host.cancel(ids[0])
    assert not host.cancel("never was")
    (ends,) = recorder.wait_ends(submit(host, SHORT))
    assert isinstance(ends[0], Done)


@pytest.mark.parametrize("at_once", [True, False])
def test_cancel_one_branch(host, recorder, at_once):
    request_id = submit(host, LONG, SHORT)
    if not at_once:
        recorder.wait_begun(request_id)
    assert host.cancel(request_id, branch=0)
    (ends,) = recorder.wait_ends(request_id, count=2)
    outcome = {end.branch: end for end in ends}
    assert outcome[0].error_code is ErrorCode.CANCELED
    assert isinstance(outcome[1], Done)
    assert host.pending == 0


def test_deadline_counts_waiting(host, recorder):
    blockers = [submit(host, LONG) for _ in range(2)]  # max_active
    waiting = submit(host, SHORT, deadline_s=0.2)
    running = submit(host, LONG, deadline_s=0.5, priority=True)
    for ends in recorder.wait_ends(waiting, running):
        assert [(end.branch, end.error_code) for end in ends] == [(-1, ErrorCode.DEADLINE_EXCEEDED)]
    for blocker in blockers:
        host.cancel(blocker)
    recorder.wait_ends(*blockers)


def test_interactive_requests_start_before_monitors(host, recorder):
    blockers = [submit(host, LONG) for _ in range(2)]
    recorder.wait_begun(blockers[1])
    monitors = [submit(host, SHORT) for _ in range(3)]
    query = submit(host, SHORT, priority=True)
    recorder.wait_ends(query)
    assert not any(recorder.of(monitor) for monitor in monitors)
    for blocker in blockers:
        host.cancel(blocker)
    recorder.wait_ends(*monitors)


def test_observed_frames_are_encoded_before_the_request(host, recorder):
    seen = tiny_model.window(frames=8, seed=99, camera="observed")

    def part(first, count):
        return dataclasses.replace(seen, frames=seen.frames[first : first + count], first_tick=10 + first)

    def statistics():
        """As reported with, or after, the last request."""
        time.sleep(0.6)  # longer than the pause between reports
        recorder.wait_ends(submit(host, dataclasses.replace(SHORT, think_tokens=0)))
        end = time.monotonic() + WAIT_S
        while host.statistics.requests == 0:
            assert time.monotonic() < end
            time.sleep(0.02)
        return host.statistics

    before = statistics()
    for first in (0, 2, 4):
        host.observe(part(first, 2))
    request_id = f"r{next(_numbers)}"
    host.submit(Request(request_id, (part(0, 6),), (SHORT,)))
    (ends,) = recorder.wait_ends(request_id)
    assert isinstance(ends[0], Done)
    after = statistics()
    while after.vision_misses - before.vision_misses < 3:
        after = statistics()
    assert after.vision_hits - before.vision_hits >= 3
    assert after.decode_steps > before.decode_steps


def test_frames_that_the_process_does_not_read_are_dropped(host, recorder):
    seen = tiny_model.window(frames=2, seed=98, camera="observed")
    os.kill(host.pid, signal.SIGSTOP)
    try:
        for _ in range(5000):  # far more than the socket holds
            host.observe(seen)
        request_id = submit(host, SHORT)
        assert host._process.outbox.qsize() < 100
    finally:
        os.kill(host.pid, signal.SIGCONT)
    (ends,) = recorder.wait_ends(request_id)
    assert isinstance(ends[0], Done)


def test_bad_requests_are_answered(host, recorder):
    request_id = f"bad{next(_numbers)}"
    host.submit(Request(request_id, (tiny_model.window(frames=3),), (SHORT,)))
    (ends,) = recorder.wait_ends(request_id)
    assert ends[0].error_code is ErrorCode.BAD_IMAGE
    for request in (Request("x", (), ()), Request(submit(host, LONG), (), (SHORT,))):
        with pytest.raises(CosmosReasonError) as caught:
            host.submit(request)
        assert caught.value.code is ErrorCode.INVALID_REQUEST
    host.cancel(request.request_id)
    recorder.wait_ends(request.request_id)


def test_kill_9_fails_all_once_and_restarts(host, recorder):
    pid = host.pid
    ids = [submit(host, LONG, SHORT, LONG), submit(host, LONG), submit(host, LONG), submit(host, SHORT)]
    recorder.wait(lambda: any(isinstance(e, Done) for e in recorder.of(ids[0])))
    os.kill(pid, signal.SIGKILL)
    recorder.wait_ends(*ids[1:3])
    recorder.wait(lambda: any(isinstance(e, Failed) for e in recorder.of(ids[0])))
    for request_id, branches in ((ids[0], {1}), (ids[1], set()), (ids[2], set())):
        ends = recorder.ends(request_id)
        assert {end.branch for end in ends if isinstance(end, Done)} == branches
        failures = [end for end in ends if isinstance(end, Failed)]
        assert [(end.branch, end.error_code) for end in failures] == [(-1, ErrorCode.ENGINE_DIED)]
        assert "SIGKILL" in failures[0].error_msg
    with pytest.raises(CosmosReasonError) as caught:
        submit(host, SHORT)
    assert caught.value.code is ErrorCode.ENGINE_NOT_READY
    recorder.wait(lambda: host.status.state is EngineState.READY)
    assert host.status.restarts == 1
    assert host.pid not in (0, pid)
    assert EngineState.RESTARTING in [status.state for status in recorder.states]
    (ends,) = recorder.wait_ends(submit(host, SHORT))
    assert isinstance(ends[0], Done)
    assert len(recorder.ends(ids[1])) == 1


def test_stop_fails_pending_and_start_begins_again(host, recorder):
    pid = host.pid
    request_id = submit(host, LONG)
    recorder.wait_begun(request_id)
    host.stop(WAIT_S)
    assert [end.error_code for end in recorder.ends(request_id)] == [ErrorCode.NOT_ACTIVE]
    assert (host.status.state, host.pid) == (EngineState.STOPPED, 0)
    wait_gone(pid)
    host.stop(WAIT_S)  # does nothing
    host.start()
    host.start()  # does nothing
    assert host.wait_ready(WAIT_S).state is EngineState.READY
    assert host.status.restarts == 0


def test_a_hang_is_killed_and_restarted(host, recorder):
    # The last test on this host: it does not wait until the engine is back.
    pid = host.pid
    host._step_timeout_s = 1.0
    os.kill(pid, signal.SIGSTOP)
    request_id = submit(host, SHORT)
    (ends,) = recorder.wait_ends(request_id)
    assert ends[0].error_code is ErrorCode.ENGINE_DIED
    assert "hang" in ends[0].error_msg
    wait_gone(pid)
    recorder.wait(lambda: host.pid not in (0, pid))
    assert host.status.state is EngineState.RESTARTING
    assert host.status.restarts == 1


def test_a_model_that_cannot_be_loaded_is_failed_until_started_again(directory, tmp_path):
    recorder = Recorder()
    copy = shutil.copytree(directory, tmp_path / "copy")
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    host = EngineHost(EngineSpec(str(copy), device="cpu", threads=1), recorder.on_event, recorder.on_state)
    host.start()
    status = host.wait_ready(WAIT_S)
    assert (status.state, status.error_code) == (EngineState.FAILED, ErrorCode.MODEL_INVALID)
    assert "model.safetensors" in status.error_msg
    assert (status.pid, status.restarts) == (0, 0)
    with pytest.raises(CosmosReasonError, match=r"model\.safetensors"):
        submit(host, SHORT)
    weights.write_bytes(whole)
    host.start()
    recorder.wait(lambda: host.status.state is EngineState.LOADING and host.pid)
    pid = host.pid
    host.stop(WAIT_S)  # in the middle of loading
    assert host.status.state is EngineState.STOPPED
    wait_gone(pid)


def test_a_model_that_was_in_service_comes_back_once_its_disk_does(directory, tmp_path):
    recorder = Recorder()
    copy = shutil.copytree(directory, tmp_path / "copy")
    spec = EngineSpec(str(copy), device="cpu", threads=1, warm_up=False)
    host = EngineHost(spec, recorder.on_event, recorder.on_state, max_backoff_s=0.2)
    host.start()
    assert host.wait_ready(WAIT_S).state is EngineState.READY
    (copy / "model.safetensors").rename(tmp_path / "away")
    os.kill(host.pid, signal.SIGKILL)
    recorder.wait(lambda: any(status.error_code is ErrorCode.MODEL_INVALID for status in recorder.states))
    assert host.status.state is not EngineState.FAILED
    (tmp_path / "away").rename(copy / "model.safetensors")
    recorder.wait(lambda: host.status.state is EngineState.READY)
    host.stop(WAIT_S)


def test_a_load_that_takes_too_long_is_failed(directory):
    recorder = Recorder()
    spec = EngineSpec(str(directory), device="cpu")
    host = EngineHost(spec, recorder.on_event, recorder.on_state, load_timeout_s=0.3)
    host.start()
    status = host.wait_ready(WAIT_S)
    assert (status.state, status.error_code) == (EngineState.FAILED, ErrorCode.ENGINE_FAILED)
    assert "load_timeout_s" in status.error_msg
    wait_gone(next(status.pid for status in recorder.states if status.pid))
    host.stop(WAIT_S)
    assert host.status.state is EngineState.STOPPED


def test_a_process_that_always_dies_while_loading_is_given_up(directory):
    pids = []

    def kill_when_started(status):
        if status.pid and status.pid not in pids:
            pids.append(status.pid)
            os.kill(status.pid, signal.SIGKILL)
        if status.state is EngineState.RESTARTING and not status.pid:
            raise ValueError("a callback that raises does not stop the host")

    spec = EngineSpec(str(directory), device="cpu")
    host = EngineHost(spec, lambda *event: None, kill_when_started, max_backoff_s=0.5)
    host.start()
    status = host.wait_ready(WAIT_S)
    assert (status.state, status.error_code) == (EngineState.FAILED, ErrorCode.ENGINE_DIED)
    assert "while it loaded" in status.error_msg
    assert len(pids) == 3


def test_the_engine_dies_with_a_killed_host(directory):
    code = f"""if True:
        import time
        from cosmos_reason_node.engine.base import Request
        from cosmos_reason_node.engine.host import EngineHost, EngineSpec
        host = EngineHost(EngineSpec({str(directory)!r}, device="cpu", threads=1), lambda *event: None)
        host.start()
        assert host.wait_ready({WAIT_S}).pid
        print(host.pid, flush=True)
        time.sleep({WAIT_S})
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_gone(pid)


def test_wire_keeps_frames_and_splits_anywhere():
    request = Request("r", (tiny_model.window(frames=2),), (SHORT,))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=lambda: (send(ours, Submit(request, True, 1.5)), ours.close()))
        writer.start()
        data = b"".join(iter(lambda: theirs.recv(1 << 16), b""))
        writer.join()
    decoder = Decoder()
    messages = [m for i in range(0, len(data), 997) for m in decoder.feed(data[i : i + 997])]
    assert len(messages) == 1
    got = messages[0].request
    assert dataclasses.replace(got, windows=()) == dataclasses.replace(request, windows=())
    np.testing.assert_array_equal(got.windows[0].pixels(), request.windows[0].pixels())
    assert len(data) < request.windows[0].pixels().nbytes + 4096


def test_an_image_crosses_once_while_it_is_kept():
    long = tiny_model.window(frames=MAX_KEPT + 40, size=(4, 4))

    def part(first, count):
        return dataclasses.replace(long, frames=long.frames[first : first + count])

    windows = [part(first, 8) for first in range(0, MAX_KEPT + 32, 2)]
    windows.append(part(0, 8))  # long gone on both sides
    windows.append(dataclasses.replace(part(0, 2), frames=(long.frames[0], long.frames[0])))
    ours, theirs, images, decoder = *socket.socketpair(), KeptImages(), Decoder()
    sizes, got = [], []
    with ours, theirs:
        for window in windows:
            send(ours, Observe(window), images)
            data = theirs.recv(1 << 20)
            sizes.append(len(data))
            got += decoder.feed(data)
    for message, window in zip(got, windows, strict=True):
        np.testing.assert_array_equal(message.window.pixels(), window.pixels())
    assert got[1].window.frames[0].image is got[0].window.frames[2].image
    assert not got[0].window.frames[0].image.flags.writeable
    image_bytes = 4 * 4 * 3
    assert sizes[0] - sizes[1] > 5 * image_bytes  # six images of eight were there
    assert sizes[-2] > sizes[1] + 5 * image_bytes
