# SPDX-License-Identifier: Apache-2.0
"""The engine on torch: what is shared is computed once, and not a token differs.

    observe:  a pair of frames arrives -> its visual features, before anyone asks        vision_cache.py
    answer:   windows -> pairs -> prefix (system text and videos), kept from before      prefix.py
              queries -> branches behind it, advanced together                            batch.py

Tokens are those of the network run whole on every prompt, with float32 down to the last bits of the logits.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Generator

import numpy as np
import torch

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.decoder import Decoder
from ..models.fixed_step import FixedStep
from ..models.mrope import MropeTime
from ..models.qwen2_5_vl import LoadedModel
from ..types import Latency, ModelInfo, Query, Window
from ..vision.patchify import patchify
from .base import Done, Event, Failed, Request, Sampling, Token
from .batch import Batch
from .drafts import Drafts
from .free import FreeBranch
from .grammar import Branch, Vocabulary
from .machine import Machine
from .prefix import PrefixPool, make_plan, video_of
from .sampling import branch_generator
from .spec import EngineStatistics
from .vision_cache import VisionCache
from .writing import Writing

MAX_THINK_TOKENS = 8192
MAX_ANSWER_TOKENS = 1024
# Room for the forced pieces of the output, which no budget counts.
_FORCED_TOKENS = 64
# Prefixes kept while no request uses them: one a camera, for about as many cameras.
_KEPT_PREFIXES = 4


class TorchEngine:
    """Answers requests with a loaded model.

    Args:
        model: see models.qwen2_5_vl.load.
        mrope_time: "float" or "legacy_zero".
        min_confidence: probability under which a verdict is UNKNOWN.
        default_think_tokens: budget of queries with ``think_tokens`` -1.
        max_prompt_tokens: bound on prompts, visual tokens included; 0: what the model's positions allow.
        refresh_every: windows that a sliding video is read anew after; 0 or 1: each. More is approximate
            (prefix.py).
        drafts: guess answers from those to the same question about earlier windows (drafts.py); only with
            ``kept_pairs``.
        run_ahead: decode with CUDA graphs, a step ahead of what is read (run_ahead.py), instead of guessing;
            None: on a GPU.
        kept_pairs: frame pairs of each camera whose features are kept from one request to the next, and
            whether prefixes are; 0: nothing outlives its requests. Whoever changes the network's weights
            while this is not 0 calls ``forget``; replacing parameters is not seen at all.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        mrope_time: MropeTime = "float",
        min_confidence: float,
        default_think_tokens: int = 0,
        max_prompt_tokens: int = 0,
        kept_pairs: int = 0,
        refresh_every: int = 0,
        drafts: bool = True,
        run_ahead: bool | None = None,
    ) -> None:
        run_ahead = model.device.type == "cuda" if run_ahead is None else run_ahead
        self.model: LoadedModel | None = model
        self.mrope_time = mrope_time
        self.min_confidence = min_confidence
        self.default_think_tokens = default_think_tokens
        self.context = model.spec.max_position
        longest = max(1, self.context - _FORCED_TOKENS)
        self._max_prompt_tokens = min(max_prompt_tokens or longest, longest)
        self.vocabulary = Vocabulary(model.tokenizer, model.network.lm_head.weight.shape[0])
        decoder = Decoder(model.network, join=kept_pairs > 0)
        masks = (self.vocabulary.in_text, self.vocabulary.no_end, self.vocabulary.at_answer_start)
        patches = model.spec.patches

        def encode(frames: np.ndarray) -> torch.Tensor:
            pixels, grid = patchify(frames, patches)
            return model.visual_features(torch.from_numpy(pixels), [grid])

        self.machine: Machine | None = Machine(
            model,
            decoder,
            VisionCache(encode, patches.temporal_patch, kept_pairs),
            PrefixPool(decoder, _KEPT_PREFIXES if kept_pairs else 0, refresh_every),
            {id(mask): torch.from_numpy(mask).to(model.device) for mask in masks},
            keep_spare=kept_pairs > 0,
            drafts=Drafts() if drafts and kept_pairs and not run_ahead else None,
            fixed=FixedStep(decoder, model.embed, model.device) if run_ahead else None,
        )
        self._batches: list[Batch] = []
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

    @property
    def statistics(self) -> EngineStatistics:
        """Work done and saved since the engine was made."""
        if self.machine is None:
            return EngineStatistics()
        vision, prefixes, counters = self.machine.vision, self.machine.prefixes, self.machine.counters
        return EngineStatistics(
            vision_hits=vision.hits,
            vision_misses=vision.misses,
            vision_bytes=max(vision.bytes_by_camera.values(), default=0),
            prefix_tokens_read=prefixes.read_tokens,
            prefix_tokens_reused=prefixes.reused_tokens,
            question_tokens=counters.question_tokens,
            decode_tokens=counters.decode_tokens,
            decode_steps=counters.decode_steps,
            guessed_tokens=counters.guessed_tokens,
            right_guesses=counters.right_guesses,
        )

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        self.machine = None
        self._batches.clear()
        _release_cached_memory()

    def forget(self) -> None:
        """Drop all that was kept: the network's weights have changed."""
        if self.machine is not None:
            self.machine.vision.forget()
            self.machine.prefixes.forget()
            if self.machine.drafts is not None:
                self.machine.drafts.forget()

    @torch.inference_mode()
    def observe(self, window: Window) -> None:
        """Encode the frames of ``window`` where they are not yet; see ``base.Observer``.

        What is wrong with them is for the requests to say.
        """
        if self.model is None or self.machine is None:
            return
        try:
            video_of(self.model, window)
            for pair in self.machine.vision.pairs(window):
                self.machine.vision.encode(pair)
        except CosmosReasonError:
            return
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _release_cached_memory()

    def answer(self, request: Request) -> Generator[Event, int | None, None]:
        """Answer ``request``; see ``Engine.answer``. ``send(branch)`` drops a branch without an event."""
        run: _Run | None = None
        try:
            run = _Run(self, request)
            while not run.finished:
                dropped = yield run.next()
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
            if run is not None:
                run.close()
                run = None
            _release_cached_memory()
            yield Failed(-1, ErrorCode.OUT_OF_MEMORY, message)
        finally:
            if run is not None:
                run.close()

    def batch(self, request: Request) -> Batch:
        """The batch of the request's windows: one that runs, or a new one.

        Raises:
            CosmosReasonError: the windows cannot be shown to the model.
        """
        if self.model is None or self.machine is None:
            raise CosmosReasonError(ErrorCode.ENGINE_NOT_READY, "the engine is closed")
        videos = [video_of(self.model, window) for window in request.windows]
        visual = sum(self.model.spec.patches.visual_tokens(video.grid) for video in videos)
        if visual > self._max_prompt_tokens:  # before the text of so many placeholders is made
            raise too_long(visual, self._max_prompt_tokens)
        pairs = [self.machine.vision.pairs(window) for window in request.windows]
        plan = make_plan(self.model, request.windows, videos, pairs, self.mrope_time)
        for batch in self._batches:
            if batch.failure is None and batch.plan.is_like(plan):
                return batch
        batch = Batch(self.machine, plan)
        self._batches.append(batch)
        return batch

    def leave(self, batch: Batch) -> None:
        """End a batch that nobody waits for any more."""
        if batch.empty and batch in self._batches:
            self._batches.remove(batch)
            batch.close()


class _Run:
    """One request: its branches in a batch, and the events that it has not handed over yet.

    Times are steady seconds.
    """

    def __init__(self, engine: TorchEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._started = time.monotonic()
        self._events: deque[Event] = deque()
        if len(request.branch_seeds) not in (0, len(request.queries)):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"give a seed for each of the {len(request.queries)} queries or none, not "
                f"{len(request.branch_seeds)}",
            )
        self._batch: Batch | None = engine.batch(request)
        self._prefix_tokens = len(self._batch.plan.tokens)
        # Per query its branches: one for each order of its options.
        self._open: dict[int, list[Writing]] = {}
        for index, query in enumerate(request.queries):
            try:
                self._open[index] = self._writings(index, query)
            except CosmosReasonError as error:
                self._events.append(Failed(index, error.code, error.message))
        for writings in self._open.values():
            for writing in writings:
                self._batch.add(writing)

    @property
    def finished(self) -> bool:
        """Whether every query has ended and all is said."""
        return not self._open and not self._events

    def next(self) -> Event:
        """Hand over an event, doing a step of work where there is none."""
        deadline = self._request.deadline_s
        if deadline > 0 and time.monotonic() - self._started > deadline:
            raise CosmosReasonError(
                ErrorCode.DEADLINE_EXCEEDED, f"not answered within its deadline of {deadline:g} s"
            )
        if not self._events:
            assert self._batch is not None
            self._batch.step()
        return self._events.popleft() if self._events else Token(min(self._open), "", False)

    def drop(self, index: int) -> None:
        """Forget a query."""
        for writing in self._open.pop(index, ()):
            assert self._batch is not None
            self._batch.drop(writing)
        self._events = deque(event for event in self._events if event.branch != index)

    def close(self) -> None:
        """Leave the batch."""
        for index in list(self._open):
            self.drop(index)
        if self._batch is not None:
            self._engine.leave(self._batch)
            self._batch = None

    def _say(self, writing: Writing, event: Token | Failed) -> None:
        if isinstance(event, Failed):
            self.drop(writing.index)
            self._events.append(event)
        elif writing in self._open.get(writing.index, ())[:1]:
            self._events.append(event)

    def _end(self, writing: Writing) -> None:
        """A branch is complete: its query is when all its orders are."""
        writings = self._open.get(writing.index, [])
        if not writings or not all(other.grammar.done for other in writings):
            return
        now, first, batch = time.monotonic(), writings[0], self._batch
        del self._open[writing.index]
        assert batch is not None
        if len(writings) > 1:
            _average(writings)
        seen = max(batch.seen_at, self._started)
        latency = Latency(
            vision_s=seen - self._started,
            prefill_s=first.prefilled - seen,
            decode_s=now - first.prefilled,
            first_token_s=first.prefilled - self._started,
        )
        prompt_tokens = self._prefix_tokens + len(first.suffix)
        answer = first.grammar.result(prompt_tokens, self._engine.min_confidence)
        answer = dataclasses.replace(answer, shares=tuple(first.shares))
        self._events.append(Done(writing.index, answer, latency))

    def _writings(self, index: int, query: Query) -> list[Writing]:
        """Check one query against the model's bounds and make its branches."""
        orders = max(1, min(self._request.option_orders, len(query.options)))
        turned = [query.options[order:] + query.options[:order] for order in range(orders)]
        return [self._writing(index, dataclasses.replace(query, options=options)) for options in turned]

    def _writing(self, index: int, query: Query) -> Writing:
        engine, request, model = self._engine, self._request, self._engine.model
        assert model is not None
        suffix = prompt.encode_suffix(model.tokenizer, query)
        length = self._prefix_tokens + len(suffix)
        if length > engine.max_prompt_tokens:
            raise too_long(length, engine.max_prompt_tokens)
        think = query.think_tokens if query.think_tokens >= 0 else engine.default_think_tokens
        if think > MAX_THINK_TOKENS or not 1 <= request.max_answer_tokens <= MAX_ANSWER_TOKENS:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"think_tokens may be up to {MAX_THINK_TOKENS}, max_answer_tokens 1 to {MAX_ANSWER_TOKENS}; "
                f"they are {think} and {request.max_answer_tokens}",
            )
        output = think + request.max_answer_tokens + _FORCED_TOKENS
        if length + output > engine.context:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"a prompt of {length} tokens, {think} of thought and {request.max_answer_tokens} of answer "
                f"do not fit into the model's {engine.context}: ask for less",
            )
        grammar = (
            FreeBranch(engine.vocabulary, think + request.max_answer_tokens, request.min_tokens)
            if request.free
            else Branch(engine.vocabulary, query, think, request.max_answer_tokens)
        )
        assert self._batch is not None
        drafts = self._batch.drafts
        seeds = request.branch_seeds
        generator = (
            branch_generator(Sampling(seed=seeds[index]), 0)
            if seeds
            else branch_generator(request.sampling, index)
        )
        return Writing(
            index=index,
            suffix=suffix,
            grammar=grammar,
            sampling=request.sampling,
            generator=generator,
            calibration=model.spec.calibration(query.kind),
            most=len(suffix) + output,
            say=self._say,
            end=self._end,
            draft=drafts.of(self._batch.question(suffix)) if drafts is not None else None,
        )


def _average(writings: list[Writing]) -> None:
    """Let the orders of one query's options decide together; the first branch gets the outcome.

    Order ``r`` shows option ``(i + r) % n`` in place ``i``.
    """
    n = len(writings[0].shares)
    means = [
        sum(writing.shares[(option - order) % n] for order, writing in enumerate(writings)) / len(writings)
        for option in range(n)
    ]
    best = max(range(n), key=means.__getitem__)
    writings[0].shares = means
    grammar = writings[0].grammar
    assert isinstance(grammar, Branch)
    grammar.settle(best, means[best])


def too_long(tokens: int, limit: int) -> CosmosReasonError:
    """The error of a prompt over its bound."""
    return CosmosReasonError(
        ErrorCode.QUESTION_TOO_LONG,
        f"the prompt has {tokens} tokens, the limit is {limit}: use shorter texts, fewer or smaller frames",
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _release_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
