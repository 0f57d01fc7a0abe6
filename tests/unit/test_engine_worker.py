# SPDX-License-Identifier: Apache-2.0
"""What the engine process does with its socket, without a model."""

import collections
import queue
import socket
import subprocess
import sys
import threading

import pytest

from cosmos_reason_node.engine import worker
from cosmos_reason_node.engine.wire import Decoder, KeptImages, Observe, send
from cosmos_reason_node.errors import ErrorCode
from tests import tiny_model

WAIT_S = 300.0  # generous: nothing here waits for its bound unless it is broken


@pytest.mark.parametrize("when", ["loading", "serving"])
def test_a_library_that_cannot_be_opened_is_said(when):
    """An OSError of an engine is not the host hanging up: it says so, once, with the reason."""
    code = """if True:
        import socket, sys, types
        from cosmos_reason_node.engine import worker
        from cosmos_reason_node.types import ModelInfo
        def fail(*_):
            raise OSError("libcudart.so.13: cannot open shared object file")
        engine = types.SimpleNamespace(info=ModelInfo(), max_prompt_tokens=1)
        worker.load_engine = fail if sys.argv[2] == "loading" else lambda spec: engine
        worker.Worker = lambda *_: types.SimpleNamespace(run=fail)
        sys.exit(worker.serve(worker.EngineSpec("model"), socket.socket(fileno=int(sys.argv[1]))))
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        process = subprocess.Popen([sys.executable, "-c", code, str(number), when], pass_fds=(number,))
        theirs.close()
        data = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        assert process.wait(WAIT_S) == 1
    *_, end = Decoder().feed(data)
    assert end.error_code is ErrorCode.ENGINE_FAILED
    assert "libcudart.so.13" in end.error_msg


def test_frames_wake_the_engine_though_those_before_them_were_taken_meanwhile():
    class Taken(collections.deque):
        """The engine takes what is there just before more is added."""

        def append(self, window):
            self.clear()
            super().append(window)

    class Connection:
        def __init__(self, data):
            self._data = [data]

        def recv(self, _):
            if self._data:
                return self._data.pop()
            threading.Event().wait()  # its end would end this process

    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, Observe(tiny_model.window(frames=2)), KeptImages())
        data = theirs.recv(1 << 20)
    seen, inbox = Taken([tiny_model.window(frames=2, seed=1)]), queue.SimpleQueue()
    threading.Thread(
        target=worker._receive, args=(Connection(data), inbox, seen, threading.Event()), daemon=True
    ).start()
    assert isinstance(inbox.get(timeout=WAIT_S), Observe)
    assert len(seen) == 1
