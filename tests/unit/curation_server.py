# SPDX-License-Identifier: Apache-2.0
"""A local HTTP server that speaks chat completions, well or badly, as each test wants."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from training.data.curation import prompts

_STEPS = {prompt.system: prompt.name.split("-")[0] for prompt in prompts.ALL}


@dataclass(frozen=True)
class Seen:
    """A request that arrived: which step's, under which key, its content, and how many came before it."""

    step: str
    key: str
    body: dict[str, Any]
    headers: dict[str, str]
    before: int

    @property
    def text(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


@dataclass(frozen=True)
class Reply:
    """What to send back; ``text`` becomes a chat completion unless ``raw`` is given."""

    text: str = ""
    status: int = 200
    raw: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    reasoning: str = ""
    usage: bool = True
    drop: bool = False  # close the connection instead

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        message = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        body: dict[str, Any] = {
            "model": "scripted-1",
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
        }
        if self.usage:
            body["usage"] = {"prompt_tokens": 100, "completion_tokens": 20}
        return json.dumps(body).encode()


class Server:
    """The server's side of the story. ``reply`` may be exchanged at any time."""

    def __init__(self, reply: Callable[[Seen], Reply]) -> None:
        self.reply = reply
        self.arrived: list[Seen] = []
        self.answered: Counter[str] = Counter()
        self.changed = threading.Condition()
        self.url = ""

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.changed:
            seen = Seen(
                _STEPS[body["messages"][0]["content"]],
                handler.headers["Idempotency-Key"],
                body,
                {name.lower(): value for name, value in handler.headers.items()},
                len(self.arrived),
            )
            self.arrived.append(seen)
            self.changed.notify_all()
        reply = self.reply(seen)
        if reply.drop:
            handler.close_connection = True
            return
        data = reply.encoded()
        try:
            handler.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:  # whoever asked is gone
            return
        with self.changed:
            if reply.status == 200 and reply.raw is None:
                self.answered[seen.key] += 1

    def steps(self) -> Counter[str]:
        return Counter(seen.step for seen in self.arrived)


@contextmanager
def serving(reply: Callable[[Seen], Reply]) -> Iterator[Server]:
    """A server on a free port of this machine."""
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    class Listener(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # whoever asked was killed
            pass

    with Listener(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()


# --- a model that does its work well ----------------------------------------------------------------------

QUESTIONS = {
    "understanding, choice": {
        "question": "What does the robot arm put into the drawer?",
        "options": ["a red cup", "a blue ball", "a green book", "a silver spoon"],
        "answer": "a red cup",
        "category": "actions",
    },
    "understanding, free": {
        "question": "Which part of the drawer does the arm reach for first?",
        "answer": "the handle",
        "category": "order",
    },
    "reasoning, choice": {
        "question": "Why can nobody drink from the cup where it ends up?",
        "options": ["it has tipped over", "it is full of sand", "it is glued shut"],
        "answer": "it has tipped over",
        "category": "causality",
    },
    "reasoning, free": {
        "question": "What would stop the arm from putting a second cup away at the end?",
        "answer": "the drawer is shut",
        "category": "affordance",
    },
}
_KEYS = [entry["answer"] for entry in QUESTIONS.values()]
THOUGHT = (
    "Okay, let me think about it. According to the caption, the arm pulls the drawer open and the cup goes "
    "into it. The user wants a short answer. The cup tips over inside, and then the drawer is pushed shut."
)


def good(seen: Seen) -> Reply:
    """What a good model answers at each step; blind it knows nothing."""
    if seen.step == "caption":
        return Reply(
            "A robot arm opens a drawer and puts a red cup into it. " + "Then it moves back slowly. " * 3
        )
    if seen.step == "write":
        style = "reasoning" if "test reasoning" in seen.text else "understanding"
        form = "choice" if '"options"' in seen.text else "free"
        return Reply(
            "Here they are:\n```json\n" + json.dumps({"questions": [QUESTIONS[f"{style}, {form}"]]}) + "\n```"
        )
    if seen.step == "blind":
        return Reply("<think>\nI cannot know.\n</think>\n\n<answer>\nno idea\n</answer>")
    if seen.step == "judge":
        return Reply("no")
    return Reply(f"<think>\n{THOUGHT}\n</think>\n\n<answer>\n{right_answer(seen.text)}\n</answer>")


def right_answer(text: str) -> str:
    """The right answer to one of QUESTIONS, wherever its option stands in the prompt."""
    for key in _KEYS:
        if match := re.search(rf"^\((\w)\) {key}$", text, re.MULTILINE):
            return match[1]
    return next(entry["answer"] for entry in QUESTIONS.values() if entry["question"] in text)
