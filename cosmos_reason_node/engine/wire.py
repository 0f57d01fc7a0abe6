# SPDX-License-Identifier: Apache-2.0
"""Messages between the host and its engine process, and how they cross their socket.

A message is pickled with its arrays out of band: frames cross as the raw bytes they are, without a copy into
the pickle. The socket is an unnamed pair that only the two processes hold; nothing from a file or a network
is ever unpickled.

Layout: u32 number of parts, u64 size of each, the parts; part 0 is the pickle, the others its arrays.
"""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass

from ..errors import ErrorCode
from ..types import ModelInfo
from .base import Event, Request

_COUNT = struct.Struct("=I")
_SIZE = struct.Struct("=Q")
RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Submit:
    """Host to engine: answer this. ``submitted``: steady time, seconds, one clock for both processes."""

    request: Request
    priority: bool
    submitted: float


@dataclass(frozen=True)
class Cancel:
    """Host to engine: end a request, or one branch of it."""

    request_id: str
    branch: int | None


@dataclass(frozen=True)
class Stop:
    """Host to engine: exit."""


@dataclass(frozen=True)
class Ready:
    """Engine to host: loaded and tested."""

    info: ModelInfo
    max_prompt_tokens: int


@dataclass(frozen=True)
class Unusable:
    """Engine to host: it cannot go on (load failed, exception); the process exits."""

    error_code: ErrorCode
    error_msg: str


@dataclass(frozen=True)
class Reply:
    """Engine to host: an event of a request. ``event`` is None for a step of work with nothing to tell."""

    request_id: str
    event: Event | None


Message = Submit | Cancel | Stop | Ready | Unusable | Reply


def send(connection: socket.socket, message: Message) -> None:
    """Write a message; blocks until the other side has taken it, raises OSError when it is gone."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(body), *(array.raw() for array in arrays)]
    sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + sizes + (body if len(parts) == 1 else b""))
    if len(parts) > 1:
        for part in parts:
            connection.sendall(part)


class Decoder:
    """Bytes as they arrive to messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add received bytes; return the messages that are complete now."""
        self._buffer += data
        messages = []
        while (message := self._next()) is not None:
            messages.append(message)
        return messages

    def _next(self) -> Message | None:
        buffer = self._buffer
        if len(buffer) < _COUNT.size:
            return None
        (count,) = _COUNT.unpack_from(buffer)
        start = _COUNT.size + count * _SIZE.size
        if len(buffer) < start:
            return None
        sizes = [_SIZE.unpack_from(buffer, _COUNT.size + i * _SIZE.size)[0] for i in range(count)]
        end = start + sum(sizes)
        if len(buffer) < end:
            return None
        parts = []
        for size in sizes:
            parts.append(bytes(memoryview(buffer)[start : start + size]))
            start += size
        del buffer[:end]
        return pickle.loads(parts[0], buffers=parts[1:])
