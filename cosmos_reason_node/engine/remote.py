# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible server (vLLM, SGLang, NIM, llama.cpp, TensorRT Edge-LLM) as an engine.

    answer:  per query a request of its own, streamed      thread: HTTP -> queue
             the generator takes pieces as they come, and looks at the deadline every 50 ms

The texts are the prompt builder's, in the server's chat template; with a thinking budget of 0 the assistant's
turn begins with an empty thought, so that the answer comes at once (remote_request.py). Most servers write
without a grammar: what they say is parsed, and what does not parse is an error, not a guess. Confidence comes
from the server's log probabilities of the answer's first token; from a server without any, every verdict
stands with the least confidence that lets it stand.

What the engine checks, because servers have been seen to do otherwise: that something arrives within
``STALL_S``; that the stream ends as it should; that the answer was not cut; that the numbers of tokens it
reports can be true. A prompt shorter than the frames alone means that the server samples frames anew.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.spec import ModelSpec
from ..types import Latency, ModelInfo
from .base import Done, Event, Failed, Request, Token
from .remote_request import FORMS, fewest_tokens, remote_request, window_parts
from .remote_text import CUT_OFF, RemoteText, failed
from .spec import EngineSpec

STALL_S = 30.0
_POLL_S = 0.05
_CONNECT_S = 10.0
_MAX_LINE = 1 << 22
_EXPLAINED = {
    400: "it refuses the request (too many images: a larger --limit-mm-per-prompt; TensorRT Edge-LLM: "
    "remote_video edge_llm)",
    401: "the key is not accepted: check the variable named by remote_key_env",
    403: "the key is not accepted: check the variable named by remote_key_env",
    404: "there is no such model or path: check remote_url (it ends in /v1) and remote_model",
    413: "the request is longer than it was built for: fewer or smaller frames, or a larger --max-input-len",
    429: "it is busy: ask again",
}


class RemoteEngine:
    """Answers requests by asking a server.

    Args:
        spec: remote_url, remote_model, remote_key_env, remote_video, min_confidence, default_think_tokens.
        model: description of the checkpoint that the server serves: frame size, window.

    Raises:
        CosmosReasonError: INVALID_REQUEST for an address that is none, or a key that is not set.
    """

    def __init__(self, spec: EngineSpec, model: ModelSpec, stall_s: float = STALL_S) -> None:
        parts = parse_address(spec.remote_url)
        self.key = os.environ.get(spec.remote_key_env, "") if spec.remote_key_env else ""
        if spec.remote_key_env and not self.key:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, f"the environment variable {spec.remote_key_env} is not set"
            )
        if spec.remote_video not in FORMS:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"remote_video must be one of {', '.join(FORMS)}, not {spec.remote_video!r}",
            )
        self.spec, self.model, self.stall_s = spec, model, stall_s
        self.address = parts
        self._served = spec.remote_model
        self._asking = threading.Lock()  # for the model's name
        self.news = threading.Condition()  # some server has sent something
        self._calls: set[_Call] = set()  # of all requests
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """Which model, where; the digest of what a server has loaded is not known."""
        return ModelInfo(
            model_id=self._served or self.model.model_id,
            prompt_id=prompt.PROMPT_ID,
            engine="remote",
            device=self.address.netloc.rpartition("@")[2],
        )

    @property
    def max_prompt_tokens(self) -> int:
        """What the model's positions allow; the server may allow less, and says so."""
        return self.model.max_position

    def close(self) -> None:
        """Nothing is held between requests."""
        self._closed = True

    def answer(self, request: Request) -> Generator[Event, int | None, None]:
        """See Engine.answer."""
        started = time.monotonic()
        calls: dict[int, _Call] = {}
        dropped: set[int] = set()

        def drop(index: int | None) -> None:
            if index is not None:
                dropped.add(index)
                if index in calls:
                    self._end(calls.pop(index))

        try:
            if self._closed:
                raise CosmosReasonError(ErrorCode.ENGINE_NOT_READY, "the engine is closed")
            if len(request.branch_seeds) not in (0, len(request.queries)):
                raise CosmosReasonError(
                    ErrorCode.INVALID_REQUEST,
                    f"give a seed for each of the {len(request.queries)} queries or none, not "
                    f"{len(request.branch_seeds)}",
                )
            form = self.spec.remote_video
            media = [part for window in request.windows for part in window_parts(window, form)]
            visual = sum(fewest_tokens(window, self.model, form) for window in request.windows)
            for index, query in enumerate(request.queries):
                if index in dropped:
                    continue
                try:
                    prompt.check_query(query)
                    calls[index] = _Call(self, index, request, media, visual, started)
                except CosmosReasonError as error:
                    drop((yield Failed(index, error.code, error.message)))
                    continue
                with self.news:
                    self._calls.add(calls[index])
                calls[index].start()
            while calls:
                if 0 < request.deadline_s <= time.monotonic() - started:
                    raise CosmosReasonError(
                        ErrorCode.DEADLINE_EXCEEDED,
                        f"not answered within its deadline of {request.deadline_s:g} s",
                    )
                with self.news:  # of any request: who waits here holds up what others have been sent
                    self.news.wait_for(lambda: any(call.has_news for call in self._calls), _POLL_S)
                events = [call.next() for call in calls.values() if call.has_news or call.is_stalled]
                for event in events or [Token(min(calls), "", False)]:
                    if event.branch not in calls:
                        continue  # dropped while another's was handed over
                    if not isinstance(event, Token):
                        self._end(calls.pop(event.branch))
                    drop((yield event))
        except CosmosReasonError as error:
            yield Failed(-1, error.code, error.message)
        finally:
            for call in calls.values():
                self._end(call)

    def _end(self, call: _Call) -> None:
        with self.news:
            self._calls.discard(call)
        call.stop()

    def connect(self) -> http.client.HTTPConnection:
        """A new connection; whatever was wrong with an earlier one is no concern of this one."""
        kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
        return kind(self.address.hostname or "", self.address.port, timeout=_CONNECT_S)

    def headers(self) -> dict[str, str]:
        """Of every request."""
        authority = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return {"Content-Type": "application/json", "Accept": "text/event-stream", **authority}

    def path(self, name: str) -> str:
        """Path of an endpoint."""
        return f"{self.address.path.rstrip('/')}/{name}"

    def hide(self, text: str) -> str:
        """``text`` without the key, which some servers echo."""
        return text.replace(self.key, "[key]") if self.key else text

    def name(self, opened: Callable[[http.client.HTTPConnection], bool]) -> str:
        """The model's name on the server; asked for once. Blocks.

        Args:
            opened: connects, so that who waits can hang up; false when nobody wants to know any more.

        Raises:
            CosmosReasonError: it cannot be told.
        """
        with self._asking:
            if not self._served:
                self._served = self._asked_name(opened)
            return self._served

    def _asked_name(self, opened: Callable[[http.client.HTTPConnection], bool]) -> str:
        connection = self.connect()
        try:
            if not opened(connection):
                raise CosmosReasonError(ErrorCode.CANCELED, "canceled")
            connection.request("GET", self.path("models"), headers=self.headers())
            reply = connection.getresponse()
            body = reply.read(_MAX_LINE)
            if reply.status != 200:
                raise refusal(self, reply.status, body)
            names = [str(entry["id"]) for entry in json.loads(body)["data"]]
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise failed(f"the server lists no models ({error}): name one with remote_model") from error
        finally:
            connection.close()
        if len(names) != 1:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"the server has {len(names)} models: name one with remote_model",
            )
        return names[0]


class _Call:
    """One query on its way; its thread reads, the engine's polls."""

    def __init__(
        self,
        engine: RemoteEngine,
        index: int,
        request: Request,
        media: Sequence[dict[str, Any]],
        visual: int,
        started: float,
    ) -> None:
        self._index, self._started, self._engine = index, started, engine
        spec = engine.spec
        asked = remote_request(request, index, media, spec.remote_video, spec.default_think_tokens)
        query = request.queries[index]
        calibration = engine.model.calibration(query.kind)
        self._said = RemoteText(
            query, asked.opened, request.free, asked.most, visual, spec.min_confidence, calibration
        )
        self._first = 0.0
        self._body = asked.body
        self._pieces: deque[dict[str, Any] | CosmosReasonError | None] = deque()
        self._connection = engine.connect()
        self._socket: socket.socket | None = None
        self._is_stopped = False
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="remote", daemon=True)

    def start(self) -> None:
        """Send the request."""
        self._thread.start()

    def stop(self) -> None:
        """Hang up: servers end the generation then."""
        self._is_stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def has_news(self) -> bool:
        """Whether the server has sent something that ``next`` has not given yet."""
        return bool(self._pieces)

    @property
    def is_stalled(self) -> bool:
        """Whether it has sent nothing for too long."""
        return not self._pieces and time.monotonic() - self._heard > self._engine.stall_s

    def next(self) -> Token | Done | Failed:
        """The oldest news, or that there is none."""
        try:
            if not self._pieces:
                raise failed(
                    f"the server has sent nothing for {self._engine.stall_s:g} s: it is stuck or overloaded; "
                    "look at its log, ask again"
                )
            piece = self._pieces.popleft()
            if isinstance(piece, CosmosReasonError):
                raise piece
            if piece is None:
                return self._done()
            thinking = self._said.thinking
            text = self._said.take(piece)
            if text and not self._first:
                self._first = time.monotonic()
            return Token(self._index, text, thinking)
        except CosmosReasonError as error:
            return Failed(self._index, error.code, error.message)

    def _put(self, piece: dict[str, Any] | CosmosReasonError | None) -> None:
        with self._engine.news:
            self._heard = time.monotonic()
            self._pieces.append(piece)
            self._engine.news.notify_all()

    def _read(self) -> None:
        """Thread: the stream, piece by piece, then None or what went wrong."""
        try:
            self._put(None if self._stream() else failed(CUT_OFF))
        except CosmosReasonError as error:
            self._put(error)
        except (OSError, http.client.HTTPException) as error:
            self._put(unreachable(self._engine, error))
        except Exception as error:  # nothing that a server sends may leave a request without an end
            self._put(failed(f"the server's stream is damaged ({type(error).__name__}: {error})"))
        finally:
            self._connection.close()

    def _stream(self) -> bool:
        """Whether the stream ended as it should."""
        body = json.dumps({"model": self._engine.name(self._open), **self._body}).encode()
        connection = self._connection
        if not self._open(connection):
            return True
        connection.sock.settimeout(2 * self._engine.stall_s)  # the poll notices first and says it better
        connection.request("POST", self._engine.path("chat/completions"), body, self._engine.headers())
        reply = connection.getresponse()
        if reply.status != 200:
            raise refusal(self._engine, reply.status, reply.read(_MAX_LINE))
        while line := reply.readline(_MAX_LINE):
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return True
                piece = json.loads(data)
                # vLLM has also said it without a word "error" of its own, and others say that there is none.
                error = piece.get("error") or (piece if piece.get("object") == "error" else None)
                if error:
                    raise failed(f"the server ends with an error: {self._engine.hide(str(error))[:200]}")
                self._put(piece)
        return False

    def _open(self, connection: http.client.HTTPConnection) -> bool:
        """Connect; false when ``stop`` was called before there was anything to hang up."""
        connection.connect()
        self._socket = connection.sock  # the connection forgets it when the reply has begun
        return not self._is_stopped

    def _done(self) -> Done:
        answer = self._said.answer()
        now = time.monotonic()
        first = self._first or now
        latency = Latency(
            prefill_s=first - self._started, decode_s=now - first, first_token_s=first - self._started
        )
        return Done(self._index, answer, latency)


def parse_address(url: str) -> urllib.parse.SplitResult:
    """Parts of ``remote_url``.

    Raises:
        CosmosReasonError: INVALID_REQUEST, it is no address.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, a bracket that is left open
        usable = False
    if not usable or any(character.isspace() or not character.isprintable() for character in url):
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"remote_url must be http(s)://host:port/v1, not {url!r}"
        )
    return parts


def refusal(engine: RemoteEngine, status: int, body: bytes) -> CosmosReasonError:
    """The error of an HTTP status."""
    text = engine.hide(body.decode(errors="replace").strip())[:300]
    code = ErrorCode.BUSY if status in (429, 503) else ErrorCode.ENGINE_FAILED
    why = _EXPLAINED.get(status, "look at its log")
    return CosmosReasonError(code, f"the server answers HTTP {status}: {why}. {text}")


def unreachable(engine: RemoteEngine, error: Exception) -> CosmosReasonError:
    """The error of a connection."""
    where = engine.address.netloc.rpartition("@")[2]
    return CosmosReasonError(
        ErrorCode.ENGINE_FAILED,
        f"the connection to {where} failed ({type(error).__name__}: {error}): see that the server runs and "
        "can be reached",
    )
