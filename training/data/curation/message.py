# SPDX-License-Identifier: Apache-2.0
"""What is asked of an endpoint and what it answers, to and from the wire format of chat completions."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from .config import Call, EndpointConfig
from .prompts import Prompt
from .store import Spent

_BYTES_PER_TOKEN = 3  # estimate on the safe side, until an answer tells
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Picture:
    """A frame to send.

    Attributes:
        name: of its content: which video, time, size, quality. It stands for the bytes in the key of an
            answer, so that neither decoding nor the encoder's version matters to what has been paid for.
        load: gives the JPEG file's bytes.
    """

    name: str
    load: Callable[[], bytes]


Part: TypeAlias = str | Picture


@dataclass(frozen=True)
class Request:
    """A question to a model.

    Attributes:
        step: of the pipeline, for the books.
        prompt: whose words these are.
        content: the user's turn.
        call: model parameters.
        attempt: tells equal requests apart that are to be answered anew; added to a ``seed`` among the
            parameters.
        schema: of the JSON object wanted, for endpoints with ``structured``.
    """

    step: str
    prompt: Prompt
    content: tuple[Part, ...]
    call: Call
    attempt: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What a model said, and what is kept of how.

    Attributes:
        text: of the assistant's message.
        reasoning: what reasoning models give apart from it, else "".
        finish: why it ended: "stop", "length", ...
        model: name that the endpoint gave back.
        started: ISO 8601, UTC.
        seconds: of the request that was answered.
        input_tokens, output_tokens: as reported; estimated where the endpoint reports none.
        cost: in the currency of the prices.
    """

    text: str
    reasoning: str
    finish: str
    model: str
    started: str
    seconds: float
    input_tokens: int
    output_tokens: int
    cost: float


def request_key(request: Request, config: EndpointConfig) -> str:
    """Under which the answer is kept: a digest of model, prompt, parameters and content."""
    content = [part if isinstance(part, str) else {"picture": part.name} for part in request.content]
    what = {
        "model": config.model,
        "prompt": request.prompt.label,
        "content": content,
        "parameters": dict(request.call.parameters),
        "max_tokens": request.call.max_tokens,
        "attempt": request.attempt,
        "schema": request.schema if config.structured else None,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def request_body(request: Request, config: EndpointConfig) -> dict[str, Any]:
    """Arguments of the client's ``chat.completions.create``. Decodes the pictures: call it in a thread.

    Raises:
        VideoError: a picture cannot be loaded.
    """
    parts: list[dict[str, Any]] = []
    for part in request.content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            data = base64.b64encode(part.load()).decode("ascii")
            parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}})
    plain = len(parts) == 1 and parts[0]["type"] == "text"  # servers without vision often know text only
    messages = [
        {"role": "system", "content": request.prompt.system},
        {"role": "user", "content": parts[0]["text"] if plain else parts},
    ]
    extra: dict[str, Any] = dict(request.call.parameters)
    if "seed" in extra:
        extra["seed"] = int(extra["seed"]) + request.attempt
    extra[config.token_limit] = request.call.max_tokens
    if request.schema is not None and config.structured:
        schema = {"name": request.step, "strict": True, "schema": dict(request.schema)}
        extra["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {"model": config.model, "messages": messages, "extra_body": extra}


def most_spent(request: Request, config: EndpointConfig, ratio: float = 1.0) -> Spent:
    """The most a request may use up, where ``ratio`` times the estimated tokens are read."""
    read = math.ceil(input_estimate(request, config) * ratio)
    return Spent(1, read + request.call.max_tokens, _cost(read, request.call.max_tokens, config))


def whole_characters(text: str) -> str:
    """``text`` with U+FFFD for each half of a surrogate pair.

    JSON can hold one: an emoji that ``max_tokens`` has cut in two. Neither files nor requests can.
    """
    return _HALF.sub("\ufffd", text)


def read_answer(text: str, request: Request, started: str, seconds: float, config: EndpointConfig) -> Answer:
    """The answer in the body of a response.

    Args:
        text: the body.
        request: what was asked, for endpoints that report no usage.
        started: when it was sent.
        seconds: it took.
        config: of the endpoint.

    Raises:
        ValueError: the body is no chat completion.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        message = choice["message"]
        said = message.get("content") or ""
        if isinstance(said, list):
            said = "".join(part.get("text", "") for part in said)
        thought = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(said, str) or not isinstance(thought, str):
            raise TypeError("the message is no text")
        said, thought = whole_characters(said), whole_characters(thought)
        usage = body.get("usage") or {}
        written = usage.get("completion_tokens")
        written = _estimate(said + thought) if written is None else int(written)
        read = usage.get("prompt_tokens")
        read = input_estimate(request, config) if read is None else int(read)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"no chat completion ({type(error).__name__} {error}): {' '.join(text[:80].split())!r}"
        ) from error
    return Answer(
        text=said,
        reasoning=thought,
        finish=whole_characters(str(choice.get("finish_reason") or "")),
        model=whole_characters(str(body.get("model") or config.model)),
        started=started,
        seconds=round(seconds, 3),
        input_tokens=read,
        output_tokens=written,
        cost=_cost(read, written, config),
    )


def _cost(read: int, written: int, config: EndpointConfig) -> float:
    return round((read * config.input_price + written * config.output_price) / 1e6, 9)


def input_estimate(request: Request, config: EndpointConfig) -> int:
    """Number of tokens of a request, before an answer tells."""
    pictures = sum(not isinstance(part, str) for part in request.content)
    text = request.prompt.system + "".join(part for part in request.content if isinstance(part, str))
    return _estimate(text) + pictures * config.image_tokens + 50


def _estimate(text: str) -> int:
    """Number of tokens, on the safe side."""
    return len(text.encode()) // _BYTES_PER_TOKEN + 1
