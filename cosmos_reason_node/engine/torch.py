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
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.decoder import Decoder
from ..models.fixed_step import FixedStep
from ..models.mrope import MropeTime
from ..models.qwen2_5_vl import LoadedModel
from ..types import ModelInfo, Window
from ..vision.patchify import patchify
from .base import Event, Failed, Request
from .batch import Batch
from .drafts import Drafts
from .grammar import Vocabulary
from .machine import Machine
from .prefix import PrefixPool, make_plan, video_of
from .run import FORCED_TOKENS, Run, too_long
from .spec import EngineStatistics
from .together import Together
from .vision_cache import VisionCache

# Prefixes kept while no request uses them: one a camera, for about as many cameras.
_KEPT_PREFIXES = 4
# Memory of branches kept likewise: monitors and a query about an older window are written side by side.
_KEPT_REGIONS = 2


class TorchEngine:
    """Answers requests with a loaded model.

    Args:
        model: see models.load.
        mrope_time: "float" or "legacy_zero".
        min_confidence: probability under which a verdict is UNKNOWN.
        default_think_tokens: budget of queries with ``think_tokens`` -1.
        max_prompt_tokens: bound on prompts, visual tokens included; 0: what the model's positions allow.
        refresh_every: windows that a sliding video is read anew after; 0 or 1: each. More is approximate
            (prefix.py).
        drafts: guess answers from those to the same question about earlier windows (drafts.py); only with
            ``kept_pairs``.
        run_ahead: decode with CUDA graphs, a step ahead of what is read (run_ahead.py), instead of guessing;
            None: on a GPU. Never with a hybrid model.
        kept_pairs: frame pairs of each camera whose features are kept from one request to the next, and
            whether prefixes are; 0: nothing outlives its requests. Whoever changes the network's weights
            while this is not 0 calls ``forget``; replacing parameters is not seen at all.
        join: put weights that share their input behind one another in memory (models/decoder.py); None: with
            ``kept_pairs``. Weights may then be changed in place only.
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
        join: bool | None = None,
    ) -> None:
        decoder = model.decoder(join=kept_pairs > 0 if join is None else join)
        recurrent = getattr(decoder, "recurrent", False)
        if recurrent and refresh_every > 1:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                "approximate_slide moves keys and values of a window that slides; a hybrid model's states "
                "cannot be moved: set it to 0",
            )
        run_ahead = (model.device.type == "cuda" if run_ahead is None else run_ahead) and not recurrent
        patches = model.spec.patches

        def encode(frames: np.ndarray) -> torch.Tensor:
            pixels, grid = patchify(frames, patches)
            return model.visual_features(torch.from_numpy(pixels), [grid])

        self._set_up(
            model,
            decoder,
            VisionCache(encode, patches.temporal_patch, kept_pairs, joint=not kept_pairs),
            PrefixPool(decoder, _KEPT_PREFIXES if kept_pairs else 0, refresh_every),
            Vocabulary(model.tokenizer, model.network.lm_head.weight.shape[0]),
            model.spec.max_position - FORCED_TOKENS,
            mrope_time=mrope_time,
            min_confidence=min_confidence,
            default_think_tokens=default_think_tokens,
            max_prompt_tokens=max_prompt_tokens,
            kept_pairs=kept_pairs,
            drafts=drafts and not run_ahead,
            fixed=FixedStep(decoder, model.embed, model.device) if run_ahead else None,
        )
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

    def _set_up(
        self,
        model: LoadedModel,
        decoder: Decoder,
        vision: VisionCache,
        prefixes: PrefixPool,
        vocabulary: Vocabulary,
        longest: int,
        longest_own: int = 0,
        *,
        mrope_time: MropeTime,
        min_confidence: float,
        default_think_tokens: int,
        max_prompt_tokens: int,
        kept_pairs: int,
        drafts: bool,
        fixed: FixedStep | None,
    ) -> None:
        """All that does not depend on what runs the network.

        Prompts have up to ``longest`` tokens, a question with its answer up to ``longest_own`` (0: no bound).
        """
        self.model: LoadedModel | None = model
        self.mrope_time = mrope_time
        self.min_confidence = min_confidence
        self.default_think_tokens = default_think_tokens
        self.context = model.spec.max_position
        self.max_own_tokens = longest_own
        self._max_prompt_tokens = min(max_prompt_tokens or max(1, longest), max(1, longest))
        self.vocabulary = vocabulary
        masks = (vocabulary.in_text, vocabulary.no_end, vocabulary.at_answer_start)
        self.machine: Machine | None = Machine(
            model,
            decoder,
            vision,
            prefixes,
            {id(mask): torch.from_numpy(mask).to(model.device) for mask in masks},
            most_spare=_KEPT_REGIONS if kept_pairs else 0,
            drafts=Drafts() if drafts and kept_pairs else None,
            fixed=fixed,
        )
        self._batches: list[Batch] = []

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
        run: Run | None = None
        try:
            run = Run(self, request)
            while not run.finished:
                dropped = yield run.next()
                if dropped is not None:
                    run.drop(dropped)
        except (CosmosReasonError, torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            failed = self._failed(error)
            if run is not None and failed.error_code is ErrorCode.OUT_OF_MEMORY:
                run.close()
                run = None
                _release_cached_memory()
            yield failed
        finally:
            if run is not None:
                run.close()

    def answer_together(self, requests: Sequence[Request]) -> Iterator[tuple[int, Event]]:
        """Answer requests in step (together.py): each event with the place of its request.

        Nothing else may be answered meanwhile. A request's failure ends that request alone, unless memory is
        short. One after the other where the decoder cannot do it, as with hybrid models; deadlines count from
        the first one's start there too.
        """
        if len(requests) < 2 or not getattr(self._decoder(), "can_interleave", False):
            began = time.monotonic()
            for place, request in enumerate(requests):
                left = request.deadline_s and max(request.deadline_s - (time.monotonic() - began), 1e-3)
                for event in self.answer(dataclasses.replace(request, deadline_s=left)):
                    # The first one's message names the whole deadline already.
                    if (
                        place
                        and isinstance(event, Failed)
                        and event.error_code is ErrorCode.DEADLINE_EXCEEDED
                    ):
                        what = f"not answered within {request.deadline_s:g} s, one of {len(requests)} in turn"
                        event = dataclasses.replace(event, error_msg=what)
                    yield place, event
            return
        runs: dict[int, Run] = {}
        together: Together | None = None
        try:
            for place, request in enumerate(requests):
                try:
                    runs[place] = Run(self, request)
                except CosmosReasonError as error:
                    yield place, Failed(-1, error.code, error.message)
            while runs:
                for place, run in list(runs.items()):
                    try:
                        run.keep_deadline()
                    except CosmosReasonError as error:
                        runs.pop(place).close()
                        yield place, Failed(-1, error.code, error.message)
                        continue
                    for event in run.said():
                        yield place, event
                    if run.finished:
                        runs.pop(place).close()
                if runs and together is None:
                    assert self.machine is not None
                    batches = dict.fromkeys(run.batch for run in runs.values())
                    together = Together(self.machine, list(batches))
                if runs and together is not None:
                    together.step()
        except (CosmosReasonError, torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            failed = self._failed(error)
            ended, runs = runs, {}
            for run in ended.values():
                run.close()
            together = None
            _release_cached_memory()
            for place in ended:
                yield place, failed
        finally:
            for run in runs.values():
                run.close()

    def _decoder(self) -> Decoder | None:
        return None if self.machine is None else self.machine.decoder

    def _failed(self, error: Exception) -> Failed:
        """The event of a request that ends with ``error``; raises it where it is nobody's fault but ours."""
        if isinstance(error, CosmosReasonError):
            return Failed(-1, error.code, error.message)
        if not _is_out_of_memory(error):
            raise error
        error.__traceback__ = None  # it holds the tensors of the failed step
        message = f"out of memory on {self._info.device}: use smaller frames, fewer of them, or fewer cameras"
        return Failed(-1, ErrorCode.OUT_OF_MEMORY, message)

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


def _is_out_of_memory(error: BaseException) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _release_cached_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
