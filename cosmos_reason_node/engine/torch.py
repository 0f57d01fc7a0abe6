# SPDX-License-Identifier: Apache-2.0
"""The engine on transformers' classes: exact and simple; the reference for faster ones.

    answer:  see        patches -> visual features of all windows
             read       system text and videos -> key/value cache, shared by all queries
             begin      per query: question + <think> (+ </think><answer>) -> its own branch of the cache
             write      per query in turn: one token, or a forced chunk

Each line is one step of work, a ``next()`` of the generator. A branch of the cache shares the prefix's
tensors: growing it makes new ones and leaves the prefix alone.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.mrope import VideoGrid, text_positions
from ..models.qwen2_5_vl import LoadedModel
from ..types import Latency, ModelInfo, Query, Window
from ..vision.patchify import patchify
from .base import Done, Event, Failed, Request, Sampling, Token
from .free import FreeBranch
from .grammar import Branch, ChoiceStep, Vocabulary
from .sampling import branch_generator, choose, sample_token

MAX_THINK_TOKENS = 8192
MAX_ANSWER_TOKENS = 1024
# Room for the forced pieces of the output, which no budget counts.
_FORCED_TOKENS = 64


class TorchEngine:
    """Answers requests with a loaded model.

    Args:
        model: see models.qwen2_5_vl.load.
        mrope_time: "float" or "legacy_zero".
        min_confidence: probability under which a verdict is UNKNOWN.
        default_think_tokens: budget of queries with ``think_tokens`` -1.
        max_prompt_tokens: bound on prompts, visual tokens included; 0: what the model's positions allow.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        mrope_time: str = "float",
        min_confidence: float,
        default_think_tokens: int = 0,
        max_prompt_tokens: int = 0,
    ) -> None:
        self.model: LoadedModel | None = model
        self.mrope_time = mrope_time
        self.min_confidence = min_confidence
        self.default_think_tokens = default_think_tokens
        self._context = model.spec.max_position
        longest = max(1, self._context - _FORCED_TOKENS)
        self._max_prompt_tokens = min(max_prompt_tokens or longest, longest)
        self.vocabulary = Vocabulary(model.tokenizer, model.network.lm_head.weight.shape[0])
        self._masks = {
            id(mask): torch.from_numpy(mask).to(model.device)
            for mask in (self.vocabulary.in_text, self.vocabulary.at_answer_start)
        }
        device = str(model.device)
        if model.device.type == "cuda":
            device += f" ({torch.cuda.get_device_name(model.device)})"
        self._info = ModelInfo(
            model_id=model.spec.model_id,
            digest=model.digest,
            prompt_id=prompt.PROMPT_ID,
            engine="torch",
            device=device,
            dtype=str(model.dtype).removeprefix("torch."),
        )

    @property
    def info(self) -> ModelInfo:
        """Which model, where."""
        return self._info

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of prompt, visual included."""
        return self._max_prompt_tokens

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        self._masks.clear()
        _release_cached_memory()

    def answer(self, request: Request) -> Generator[Event, int | None, None]:
        """Answer ``request``; see ``Engine.answer``. ``send(branch)`` drops a branch without an event."""
        run: _Run | None = None
        try:
            run = _Run(self, request)
            while not run.finished:
                for event in run.step():
                    dropped = yield event
                    if dropped is not None:
                        run.drop(dropped)
        except CosmosReasonError as error:
            yield Failed(-1, error.code, error.message)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            message = (
                f"out of memory on {self._info.device}: use smaller frames, fewer of them, or fewer cameras"
            )
            # The traceback holds the tensors of the failed step.
            error.__traceback__ = None
            run = None
            _release_cached_memory()
            yield Failed(-1, ErrorCode.OUT_OF_MEMORY, message)
        finally:
            run = None


@dataclass(eq=False)
class _Writing:
    """A branch on its way."""

    index: int
    suffix: list[int]
    grammar: Branch | FreeBranch
    generator: torch.Generator
    calibration: float
    cache: Any = None
    position: int = 0
    prefilled: float = 0.0
    first_token: float = 0.0


class _Run:
    """One request on its way: what ``answer`` steps through. Times are steady seconds."""

    def __init__(self, engine: TorchEngine, request: Request) -> None:
        if engine.model is None:
            raise CosmosReasonError(ErrorCode.ENGINE_NOT_READY, "the engine is closed")
        self._engine = engine
        self._model = engine.model
        self._request = request
        self._started = time.monotonic()
        self._seen = 0.0
        self._failures: list[Event] = []
        if len(request.branch_seeds) not in (0, len(request.queries)):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"give a seed for each of the {len(request.queries)} queries or none, not "
                f"{len(request.branch_seeds)}",
            )
        self._videos = [_video(self._model, window) for window in request.windows]
        spec = self._model.spec
        visual = [spec.patches.visual_tokens(video.grid) for video in self._videos]
        if sum(visual) > engine.max_prompt_tokens:  # before the text of so many placeholders is made
            raise _too_long(sum(visual), engine.max_prompt_tokens)
        self._prefix = prompt.encode_prefix(self._model.tokenizer, visual)
        self._positions, self._following = spec.positions(
            self._prefix,
            self._videos,
            mrope_time=engine.mrope_time,  # type: ignore[arg-type]
        )
        self._queue: deque[_Writing] = deque()
        for index, query in enumerate(request.queries):
            try:
                self._queue.append(self._writing(index, query))
            except CosmosReasonError as error:
                self._failures.append(Failed(index, error.code, error.message))
        self._features: Tensor | None = None
        self._cache: Any = None

    @property
    def finished(self) -> bool:
        """Whether every branch has ended."""
        return not self._queue and not self._failures

    def drop(self, branch: int) -> None:
        """Forget a branch."""
        self._queue = deque(writing for writing in self._queue if writing.index != branch)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Do one step of work."""
        deadline = self._request.deadline_s
        if deadline > 0 and time.monotonic() - self._started > deadline:
            raise CosmosReasonError(
                ErrorCode.DEADLINE_EXCEEDED, f"not answered within its deadline of {deadline:g} s"
            )
        if self._failures:
            events, self._failures = self._failures, []
            return events
        first = self._queue[0].index
        if self._features is None:
            self._see()
            return [Token(first, "", False)]
        if self._cache is None:
            self._read()
            return [Token(first, "", False)]
        writing = self._queue.popleft()
        events = self._write(writing)
        if not writing.grammar.done:
            self._queue.append(writing)
        return events

    def _see(self) -> None:
        """Windows to visual features."""
        pieces = [patchify(window.pixels(), self._model.spec.patches)[0] for window in self._request.windows]
        if pieces:
            patches = torch.from_numpy(np.concatenate(pieces))
            self._features = self._model.visual_features(patches, [video.grid for video in self._videos])
        else:
            self._features = torch.empty(0)
        _wait(self._model.device)
        self._seen = time.monotonic()

    def _read(self) -> None:
        """The shared prefix into a cache."""
        self._cache = DynamicCache()
        self._feed(self._prefix, self._positions, self._cache, self._features if self._videos else None)
        self._features = torch.empty(0)  # not needed any more
        _wait(self._model.device)

    def _write(self, writing: _Writing) -> list[Event]:
        """One token of a branch: feed what it has pending, choose the next."""
        grammar = writing.grammar
        begins = writing.cache is None
        chunk = grammar.take()
        if begins:
            writing.cache = _fork(self._cache)
            writing.position = self._following
            chunk = writing.suffix + chunk
        hidden = self._feed(chunk, text_positions(writing.position, len(chunk)), writing.cache)
        writing.position += len(chunk)
        logits = self._model.logits(hidden[0, -1])
        if not torch.isfinite(logits.max()):
            raise CosmosReasonError(
                ErrorCode.ENGINE_FAILED,
                "the model's output is not finite: try dtype float32 or another model",
            )
        event = self._choose(writing, logits)
        now = time.monotonic()
        if begins:
            writing.prefilled = writing.first_token = now
        if not grammar.done:
            return [event]
        writing.cache = None
        return [event, self._done(writing, now)]

    def _feed(
        self, tokens: Sequence[int], positions: np.ndarray, cache: Any, features: Tensor | None = None
    ) -> Tensor:
        """Tokens through the language model into ``cache``; (1, L, D) hidden states."""
        device = self._model.device
        embedded = self._model.embed(torch.tensor([tokens], device=device), features)
        return self._model.decode(embedded, torch.from_numpy(positions)[:, None].to(device), cache)

    def _choose(self, writing: _Writing, logits: Tensor) -> Token:
        grammar, sampling = writing.grammar, self._request.sampling
        thinking = grammar.thinking
        step = grammar.step()
        if isinstance(step, ChoiceStep):
            assert isinstance(grammar, Branch)  # only a grammar asks for choices
            text = grammar.choose(
                *choose(logits, step.groups, sampling, writing.generator, writing.calibration)
            )
        else:
            mask = self._engine._masks[id(step.forbidden)]
            text = grammar.push(*sample_token(logits, mask, sampling, writing.generator))
        return Token(writing.index, text, thinking)

    def _done(self, writing: _Writing, now: float) -> Done:
        answer = writing.grammar.result(len(self._prefix) + len(writing.suffix), self._engine.min_confidence)
        latency = Latency(
            vision_s=self._seen - self._started,
            prefill_s=writing.prefilled - self._seen,
            decode_s=now - writing.prefilled,
            first_token_s=writing.first_token - self._started,
        )
        return Done(writing.index, answer, latency)

    def _writing(self, index: int, query: Query) -> _Writing:
        """Check one query against the model's bounds and make it ready."""
        engine, request = self._engine, self._request
        suffix = prompt.encode_suffix(self._model.tokenizer, query)
        length = len(self._prefix) + len(suffix)
        if length > engine.max_prompt_tokens:
            raise _too_long(length, engine.max_prompt_tokens)
        think = query.think_tokens if query.think_tokens >= 0 else engine.default_think_tokens
        if think > MAX_THINK_TOKENS or not 1 <= request.max_answer_tokens <= MAX_ANSWER_TOKENS:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"think_tokens may be up to {MAX_THINK_TOKENS}, max_answer_tokens 1 to {MAX_ANSWER_TOKENS}; "
                f"they are {think} and {request.max_answer_tokens}",
            )
        if length + think + request.max_answer_tokens + _FORCED_TOKENS > engine._context:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"a prompt of {length} tokens, {think} of thought and {request.max_answer_tokens} of answer "
                f"do not fit into the model's {engine._context}: ask for less",
            )
        grammar = (
            FreeBranch(engine.vocabulary, think + request.max_answer_tokens)
            if request.free
            else Branch(engine.vocabulary, query, think, request.max_answer_tokens)
        )
        seeds = request.branch_seeds
        generator = (
            branch_generator(Sampling(seed=seeds[index]), 0)
            if seeds
            else branch_generator(request.sampling, index)
        )
        return _Writing(
            index,
            suffix,
            grammar,
            generator,
            self._model.spec.temperature.get(query.kind.name.lower(), 1.0),
        )


def _video(model: LoadedModel, window: Window) -> VideoGrid:
    if not window.frames:
        raise CosmosReasonError(ErrorCode.NO_FRAMES, f"the window of camera {window.camera!r} is empty")
    shapes = {(frame.image.shape, frame.image.dtype.str) for frame in window.frames}
    ((shape, dtype), *others) = shapes
    if others or len(shape) != 3 or shape[2] != 3 or dtype != "|u1":
        raise CosmosReasonError(
            ErrorCode.BAD_IMAGE, f"frames must all be (H, W, 3) uint8 of one size, got {sorted(shapes)}"
        )
    try:
        return model.spec.video_grid(len(window.frames), shape[0], shape[1], window.fps)
    except ValueError as error:
        raise CosmosReasonError(ErrorCode.BAD_IMAGE, str(error)) from error


def _too_long(tokens: int, limit: int) -> CosmosReasonError:
    return CosmosReasonError(
        ErrorCode.QUESTION_TOO_LONG,
        f"the prompt has {tokens} tokens, the limit is {limit}: use shorter texts, fewer or smaller frames",
    )


def _fork(cache: Any) -> Any:
    """A branch of a cache: its own layers on the same tensors, which growing replaces and never changes."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch


def _wait(device: torch.device) -> None:
    """Let the device finish, so that times are true and a step is a step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _release_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
