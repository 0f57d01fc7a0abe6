# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server that answers by a script and can misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WELL = ("<think>\nthe drawer ", "is open", "\n</think>\n\n<answer>\n", "yes", "\n</answer>")
USAGE = {"prompt_tokens": 500, "completion_tokens": 12, "total_tokens": 512}


class BadServer:
    """What it says, and what it was asked.

    Attributes:
        pieces: of text, streamed one by one; ``pause_s`` between them.
        fault: "" | "stall" | "die" | "unfinished" | "garbage" | "error" | "status" | "models".
        usage: as reported at the end; None for none.
        finish: reason reported.
        logprobs: of the token "yes": its likeliest tokens.
        status: sent instead of an answer, with fault "status".
        waits_for: a request that holds this text is not answered before ``release`` is set.
        asked: bodies of requests.
        hung_up: requests whose client went away.
    """

    def __init__(self) -> None:
        self.pieces: Sequence[str] = WELL
        self.pause_s = 0.0
        self.fault = ""
        self.usage: dict[str, Any] | None = dict(USAGE)
        self.finish = "stop"
        self.logprobs: dict[str, float] = {"yes": -0.1, "no": -2.5, " the": -4.0}
        self.status = 500
        self.waits_for = ""
        self.release = threading.Event()
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hung_up = 0
        self.url = ""

    def stream(self) -> Iterator[dict[str, Any]]:
        for text in self.pieces:
            tops = self.logprobs if text.strip().lower() in ("yes", "no", "a", "b") else {text: -0.1}
            entries = [{"token": token, "logprob": value} for token, value in tops.items()]
            content = [{"token": text, "logprob": max([*tops.values(), -9.0]), "top_logprobs": entries}]
            logprobs = {"content": content} if self.logprobs else None
            yield {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": logprobs}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}]}
        if self.usage is not None:
            yield {"choices": [], "usage": self.usage}


@contextmanager
def served() -> Iterator[BadServer]:
    """The server in a thread."""
    script = BadServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            names = ["one", "two"] if script.fault == "models" else ["one"]
            self._reply(200, {"data": [{"id": name} for name in names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.asked.append({**body, "path": self.path})
            script.headers.append(dict(self.headers))
            if script.fault == "status":
                self._reply(script.status, {"error": {"message": f"no: {self.headers.get('Authorization')}"}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            if script.waits_for and script.waits_for in json.dumps(body):
                script.release.wait(60)
            try:
                for number, piece in enumerate(script.stream()):
                    if number == 2 and script.fault:
                        if script.fault == "stall":
                            time.sleep(5)
                        if script.fault in ("stall", "die"):
                            return
                        if script.fault == "garbage":
                            self._send(b'data: {"choices": [{"delta": 7}]}\n\n')
                        if script.fault == "error":
                            self._send(b'data: {"error": {"message": "CUDA out of memory"}}\n\n')
                    self._send(b"data: " + json.dumps(piece).encode() + b"\n\n")
                    time.sleep(script.pause_s)
                if script.fault != "unfinished":
                    self._send(b"data: [DONE]\n\n")
            except OSError:
                script.hung_up += 1

        def _send(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

        def _reply(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self._send(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
