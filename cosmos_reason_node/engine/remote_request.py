# SPDX-License-Identifier: Apache-2.0
"""What a server is asked about one query: windows, texts and options in the words that it takes.

    form        a window goes as                    answering at once           for
    images      one JPEG a frame                    the turn is begun           any server
    video       one JPEG sequence and its rate      the turn is begun           vLLM
    edge_llm    one clip, bit for bit, all of it    a grammar opens the turn    TensorRT Edge-LLM

TensorRT Edge-LLM refuses fields that it does not know and cannot go on with a turn that was begun, but writes
under a grammar: reasoning or none, then what the question allows. Its clips come with their number of frames
and without leave to resize, so it sees each frame as it is or refuses the request.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import simplejpeg

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.spec import ModelSpec
from ..types import Query, Window
from .base import Request
from .clip import encode_clip
from .grammar import YES_NO

FORMS = ("images", "video", "edge_llm")
_JPEG_QUALITY = 95
_TOP_LOGPROBS = 20  # vLLM's bound
_FORMAT_TOKENS = 48  # <think></think><answer></answer>, however they are spelt


@dataclass(frozen=True)
class RemoteRequest:
    """One query on the wire.

    Attributes:
        body: of the HTTP request, but for the model's name.
        opened: beginning of the assistant's turn that the server is given; "" for none.
        most: tokens that the server may write.
    """

    body: dict[str, Any]
    opened: str
    most: int


def remote_request(
    request: Request, index: int, media: Sequence[dict[str, Any]], form: str, default_think_tokens: int
) -> RemoteRequest:
    """Query ``index`` of a request, with its windows as ``media``.

    Raises:
        CosmosReasonError: INVALID_REQUEST, ``at_once``, or windows that this form cannot carry together.
    """
    query = request.queries[index]
    if request.free and request.at_once:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            "a remote engine cannot begin a free text with an empty thought",
        )
    think = query.think_tokens if query.think_tokens >= 0 else default_think_tokens
    most = think + request.max_answer_tokens + (0 if request.free else _FORMAT_TOKENS)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": prompt.SYSTEM},
        {"role": "user", "content": [*media, {"type": "text", "text": prompt.user_text(query)}]},
    ]
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": most,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
        # Off, as in the node: servers have defaults of their own, or take the checkpoint's.
        "top_k": -1,
        "repetition_penalty": 1.0,
        "seed": request.branch_seeds[index] if request.branch_seeds else request.sampling.seed + index,
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": _TOP_LOGPROBS,
    }
    opened = ""
    if form == "edge_llm":
        if not request.free:
            body["guided_decoding"] = {"regex": answer_pattern(query, think)}
    elif not (request.free or think):
        # vLLM's and SGLang's names for going on with a message; llama.cpp does it unasked.
        opened = prompt.THINK_OPEN + prompt.THINK_CLOSE
        messages.append({"role": "assistant", "content": opened})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if media and form == "video":
        rates = [window.fps for window in request.windows]
        if max(rates) != min(rates):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, "windows of different rates: remote_video images or edge_llm"
            )
        # The rate twice: newer versions take it where frames are read, older ones in the processor. And no
        # bound on the number of frames, else those beyond 32 are cut off.
        body["mm_processor_kwargs"] = {"fps": rates[0]}
        body["media_io_kwargs"] = {"video": {"fps": rates[0], "num_frames": -1}}
    return RemoteRequest(body, opened, most)


def answer_pattern(query: Query, think: int) -> str:
    """Regular expression of all that may be said to a query; see grammar.py for the engines here.

    A thought has no "<", so that it cannot close more than itself.
    """
    if query.options:
        answer = "|".join(prompt.letter(i) for i in range(len(query.options)))
    elif prompt.is_yes_no(query):
        answer = "|".join(dict.fromkeys(text.strip() for side in YES_NO for text in side))
    else:
        answer = "[^< \n][^<]*"
    return f"{prompt.THINK_OPEN}{'[^<]*' if think else ''}{prompt.THINK_CLOSE}({answer}){prompt.ANSWER_CLOSE}"


def window_parts(window: Window, form: str) -> list[dict[str, Any]]:
    """A window as content of a chat message.

    Raises:
        CosmosReasonError: NO_FRAMES, BAD_IMAGE.
    """
    if not window.frames:
        raise CosmosReasonError(ErrorCode.NO_FRAMES, f"the window of camera {window.camera!r} is empty")
    if form == "edge_llm":
        try:
            clip = encode_clip([frame.image for frame in window.frames], window.period_ns)
        except ValueError as error:
            raise CosmosReasonError(ErrorCode.BAD_IMAGE, str(error)) from error
        url = f"data:video/x-msvideo;base64,{_base64(clip)}"
        # With a number of frames the server samples none away, and without resizing it shrinks none.
        count = {"nframes": len(window.frames), "do_resize": False}
        return [{"type": "video_url", "video_url": {"url": url}, **count}]
    frames = [
        _base64(simplejpeg.encode_jpeg(frame.image, quality=_JPEG_QUALITY, colorspace="RGB"))
        for frame in window.frames
    ]
    if form == "video":
        return [{"type": "video_url", "video_url": {"url": "data:video/jpeg;base64," + ",".join(frames)}}]
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{frame}"}} for frame in frames
    ]


def fewest_tokens(window: Window, model: ModelSpec, form: str) -> int:
    """Fewest tokens that a server which looks at every frame can count.

    Raises:
        CosmosReasonError: BAD_IMAGE, a frame size that the model cannot take.
    """
    patches = model.patches
    height, width = window.frames[0].image.shape[:2]
    try:
        tokens = patches.visual_tokens(patches.grid(len(window.frames), height, width))
    except ValueError as error:
        raise CosmosReasonError(ErrorCode.BAD_IMAGE, str(error)) from error
    if form == "edge_llm":
        return 0  # whether its count has them is not documented; no frame can be missing, see above
    return tokens if form == "video" else tokens * patches.temporal_patch


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
