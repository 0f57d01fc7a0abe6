# SPDX-License-Identifier: Apache-2.0
"""Messages between the host and its engine process, and how they cross their socket.

A message is pickled with its images out of band: frames cross as the raw bytes they are, without a copy into
the pickle, and an image that crossed a short while ago crosses as its number. Both sides keep the same images
and let go of them by the same rule. The socket is an unnamed pair that only the two processes hold; nothing
from a file or a network is ever unpickled.

Layout: u32 number of parts, u64 size of each, the parts; part 0 is the pickle, the others its images.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ErrorCode
from ..types import ModelInfo, Window
from .base import Event, Request
from .spec import EngineStatistics

_COUNT = struct.Struct("=I")
_SIZE = struct.Struct("=Q")
RECEIVE_BYTES = 1 << 20
# Images that both sides keep: the windows of a few cameras.
MAX_KEPT = 512
MAX_KEPT_BYTES = 128 << 20


@dataclass(frozen=True)
class Submit:
    """Host to engine: answer this. ``submitted``: steady time, seconds, one clock for both processes."""

    request: Request
    priority: bool
    submitted: float


@dataclass(frozen=True)
class Observe:
    """Host to engine: frames that requests will be about."""

    window: Window


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


@dataclass(frozen=True)
class Report:
    """Engine to host: its work so far."""

    statistics: EngineStatistics


Message = Submit | Observe | Cancel | Stop | Ready | Unusable | Reply | Report


class KeptImages:
    """Images by number, the longest unused go first.

    Each end counts the numbers and lets go of images by itself, so both have to call ``keep`` and ``use`` for
    the same images in the same order.
    """

    def __init__(self) -> None:
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._numbers: dict[int, int] = {}  # id of an image that is kept: nothing else can have it
        self._bytes = 0
        self._next = 0

    def number(self, image: np.ndarray) -> int | None:
        """The number of an image that is kept."""
        return self._numbers.get(id(image))

    def keep(self, image: np.ndarray) -> None:
        """Give an image the next number."""
        self._images[self._next] = image
        self._numbers[id(image)] = self._next
        self._next += 1
        self._bytes += image.nbytes
        while len(self._images) > MAX_KEPT or (self._bytes > MAX_KEPT_BYTES and len(self._images) > 1):
            _, old = self._images.popitem(last=False)
            del self._numbers[id(old)]
            self._bytes -= old.nbytes

    def use(self, number: int) -> np.ndarray:
        """The image of that number, which is now the last to go."""
        self._images.move_to_end(number)
        return self._images[number]


class _Pickler(pickle.Pickler):
    """Takes images out of the pickle."""

    def __init__(self, file: io.BytesIO, images: KeptImages) -> None:
        super().__init__(file, protocol=5)
        self.parts: list[memoryview] = []
        self._images = images

    def persistent_id(self, thing: object) -> Any:
        if not isinstance(thing, np.ndarray) or thing.dtype != np.uint8:
            return None
        number = self._images.number(thing)
        if number is not None:
            self._images.use(number)
            return number
        self._images.keep(thing)
        self.parts.append(np.ascontiguousarray(thing).data.cast("B"))
        return len(self.parts), thing.shape


class _Unpickler(pickle.Unpickler):
    """Puts them back; they are not writable."""

    def __init__(self, parts: list[bytes], images: KeptImages) -> None:
        super().__init__(io.BytesIO(parts[0]))
        self._parts = parts
        self._images = images

    def persistent_load(self, pid: Any) -> np.ndarray:
        if isinstance(pid, int):
            return self._images.use(pid)
        part, shape = pid
        image = np.frombuffer(self._parts[part], np.uint8).reshape(shape)
        self._images.keep(image)
        return image


def send(connection: socket.socket, message: Message, images: KeptImages | None = None) -> None:
    """Write a message; blocks until the other side has taken it, raises OSError when it is gone.

    ``images`` are those kept for this direction of this connection; None when none ever cross in it.
    """
    file = io.BytesIO()
    pickler = _Pickler(file, images or KeptImages())
    pickler.dump(message)
    parts = [file.getbuffer(), *pickler.parts]
    sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + sizes + (bytes(parts[0]) if len(parts) == 1 else b""))
    if len(parts) > 1:
        for part in parts:
            connection.sendall(part)


class Decoder:
    """Bytes as they arrive to messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._images = KeptImages()

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
        message: Message = _Unpickler(parts, self._images).load()
        return message
