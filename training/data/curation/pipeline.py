# SPDX-License-Identifier: Apache-2.0
"""The stages in their order, for all videos at once: what enters them, what is asked, what leaves them.

Concurrency is bounded twice: each endpoint has its slots, and only so many videos are under way that the
slots are full. Results are put together in the order of videos, sets and questions, so a run's output does
not depend on which answer came first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cosmos_reason_node.video import VideoError

from ..problems import FieldErrors
from ..schema import Provenance, QuestionKind, Sample, Scalar, Step, Style, Video
from . import prompts, questions
from .agreement import decided, plain_answer, same_words, spoken, take_apart, words
from .cleaning import RULES, check_caption, check_trace, rewrite
from .clip import Clip, pictures
from .config import Call, CurationConfig, QuestionSet
from .endpoint import Endpoint
from .message import Answer, Part, Request
from .outcome import Books, Rejected, Unfinished
from .questions import Question
from .sidecar import read_caption

T = TypeVar("T")
PROGRAM = "training.data.curation"


@dataclass(frozen=True)
class _Written:
    """What a writer gave for a set: its list, and the steps that led to it."""

    asked_for: QuestionSet
    entries: list[Any]
    steps: tuple[Step, ...]


@dataclass
class BlindScore:
    """How well questions were guessed without their video, at the first trial."""

    asked: int = 0
    right: int = 0
    chance: float = 0.0  # expected number of right guesses

    def add(self, right: bool, choices: int) -> None:
        """Count a question with so many choices; 0 = a free one, which chance does not answer."""
        self.asked += 1
        self.right += right
        self.chance += 1 / choices if choices else 0.0


class Pipeline:
    """Makes samples from selected clips.

    Args:
        config: of the run.
        endpoints: by name.
        books: where every item is counted.
        progress: told after each video how many are done.
    """

    def __init__(
        self,
        config: CurationConfig,
        endpoints: Mapping[str, Endpoint],
        books: Books,
        progress: Callable[[int], None],
    ) -> None:
        self._config, self._endpoints, self._books, self._progress = config, endpoints, books, progress
        self.blind_score = BlindScore()
        self._done = 0

    async def run(self, clips: Iterable[Clip]) -> list[Sample]:
        """The samples of all clips, in their order.

        Raises:
            StoreError: an answer cannot be kept; everything else is counted.
        """
        slots = asyncio.Semaphore(2 * sum(end.config.concurrency for end in self._endpoints.values()))

        async def bounded(clip: Clip) -> list[Sample]:
            async with slots:
                samples = await self._video(clip)
            self._done += 1
            self._progress(self._done)
            return samples

        return [sample for samples in await _together(map(bounded, clips)) for sample in samples]

    async def _video(self, clip: Clip) -> list[Sample]:
        try:
            with self._books.item("caption", str(clip.path), str(clip.path)):
                caption, steps = await self._caption(clip)
        except (Rejected, Unfinished):
            return []
        sets = self._config.write.sets
        written = await _together(self._set(clip, caption, asked_for) for asked_for in sets)
        found: list[tuple[Question, tuple[Step, ...]]] = []
        for result in written:
            if result is not None:
                self._check(clip, result, found)
        samples = await _together(
            self._question(clip, caption, question, steps + wrote) for question, wrote in found
        )
        return [sample for sample in samples if sample is not None]

    # --- caption ------------------------------------------------------------------------------------------

    async def _caption(self, clip: Clip) -> tuple[str, tuple[Step, ...]]:
        settings = self._config.caption
        if settings.call is None:
            caption = read_caption(clip.path, settings)
            step = Step("caption", prompt=f"sidecar {settings.sidecar}")
        else:
            content: list[Part] = []
            for time_s, picture in pictures(clip, self._config.frames):
                content += [f"{time_s:.1f} s", picture]
            request = Request("caption", prompts.CAPTION, (*content, prompts.CAPTION.fill()), settings.call)
            try:
                answer = await self._ask(request)
            except VideoError as error:
                raise Rejected("unreadable", str(error)) from error
            if answer.finish == "length":
                raise Rejected("truncated", f"cut off after {answer.output_tokens} tokens")
            caption, step = spoken(answer.text).strip(), _step(request, answer)
        check_caption(caption, settings.min_words)
        return caption, (step,)

    # --- question writing ---------------------------------------------------------------------------------

    async def _set(self, clip: Clip, caption: str, asked_for: QuestionSet) -> _Written | None:
        try:
            with self._books.item("write", f"{clip.path} {asked_for.name}", str(clip.path)):
                return await self._write(caption, asked_for)
        except (Rejected, Unfinished):
            return None

    async def _write(self, caption: str, asked_for: QuestionSet) -> _Written:
        """Ask the writer until it gives a list; what the last attempt gave counts."""
        settings = self._config.write
        prompt = prompts.write_prompt(asked_for.style, asked_for.form)
        text = prompt.fill(
            caption=caption, count=str(asked_for.count), categories=", ".join(questions.labels(asked_for))
        )
        steps: list[Step] = []
        for attempt in range(settings.attempts):
            schema = questions.schema(asked_for)
            request = Request("write", prompt, (text,), settings.call, attempt, schema)
            answer = await self._ask(request)
            steps.append(_step(request, answer))
            try:
                if answer.finish == "length":
                    raise Rejected("truncated", f"cut off after {answer.output_tokens} tokens")
                return _Written(asked_for, questions.read_list(answer.text), tuple(steps))
            except Rejected:
                if attempt + 1 == settings.attempts:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _check(self, clip: Clip, written: _Written, found: list[tuple[Question, tuple[Step, ...]]]) -> None:
        """Append to ``found`` what passes the rules and was not asked about this clip before."""
        settings = self._config.write
        for number, entry in enumerate(written.entries):
            name = f"{clip.digest[:16]}-{written.asked_for.name}-{number}"
            try:
                with self._books.item("check", name, str(clip.path)):
                    if number >= written.asked_for.count:
                        raise Rejected("surplus", f"{written.asked_for.count} questions were asked for")
                    question = questions.make_question(
                        entry, name, written.asked_for, settings.max_key_ratio, self._config.seed
                    )
                    asked = words(question.query.question)
                    if any(words(other.query.question) == asked for other, _ in found):
                        raise Rejected("duplicate", question.query.question[:80])
                    self._sample(clip, question, "a trace", ())  # what the schema refuses is not paid for
            except Rejected:
                continue
            found.append((question, written.steps))

    # --- one question -------------------------------------------------------------------------------------

    async def _question(
        self, clip: Clip, caption: str, question: Question, steps: tuple[Step, ...]
    ) -> Sample | None:
        reasoning = ""
        try:
            with self._books.item("blind", question.name, str(clip.path)):
                steps += await self._blind(question)
            if question.asked_for.style == "reasoning":
                with self._books.item("trace", question.name, str(clip.path)):
                    trace, traced = await self._trace(caption, question)
                with self._books.item("clean", question.name, str(clip.path)):
                    reasoning = rewrite(trace)
                    check_trace(reasoning, question.text, question.answer, self._config.clean)
                steps += traced
        except (Rejected, Unfinished):
            return None
        rules = dataclasses.asdict(self._config.clean) | {"seed": self._config.seed}
        steps += (Step("rules", model=PROGRAM, version=RULES, parameters=rules),)
        return self._sample(clip, question, reasoning, steps)

    async def _blind(self, question: Question) -> tuple[Step, ...]:
        """Ask without the video; options move on with each trial, so that a favourite letter is no knowledge.

        Raises:
            Rejected: it was answered right every time.
        """
        settings = self._config.blind
        steps: list[Step] = []
        options = len(question.query.options)
        for trial in range(min(settings.trials, options) or 1):
            shown = question.rotated(trial)
            request = Request(
                "blind", prompts.BLIND, (prompts.BLIND.fill(question=shown.text),), settings.call
            )
            answer = await self._ask(request)
            steps.append(_step(request, answer))
            right, judged = await self._is_right(shown, plain_answer(answer, shown.query))
            steps += judged
            if trial == 0:
                self.blind_score.add(right, options or (2 if question.query.yes_no else 0))
            if not right:
                return tuple(steps)
        raise Rejected("answered_blind", f"right without the video: {question.query.question[:80]!r}")

    async def _trace(self, caption: str, question: Question) -> tuple[str, tuple[Step, ...]]:
        """A reasoning trace whose answer agrees with the key."""
        assert self._config.trace is not None  # checked with the configuration
        text = prompts.TRACE.fill(caption=caption, question=question.text)
        request = Request("trace", prompts.TRACE, (text,), self._config.trace)
        answer = await self._ask(request)
        trace, said = take_apart(answer, question.query)
        if not trace:
            raise Rejected("no_reasoning", f"only an answer: {said[:60]!r}")
        right, judged = await self._is_right(question, said)
        if not right:
            raise Rejected("disagrees", f"says {said[:60]!r}, the key is {question.key[:60]!r}")
        return trace, (_step(request, answer), *judged)

    async def _is_right(self, question: Question, said: str) -> tuple[bool, tuple[Step, ...]]:
        """Whether an answer is the key; of free answers with other words a judge decides, if there is one."""
        if not question.free:
            return decided(said, question.query) == question.answer, ()
        same = same_words(question.key, said, self._config.clean.min_overlap)
        if self._config.judge is None or words(question.key) == words(said):
            return same, ()
        text = prompts.JUDGE.fill(question=question.query.question, key=question.key, answer=said)
        request = Request("judge", prompts.JUDGE, (text,), self._config.judge)
        answer = await self._ask(request)
        verdict = words(spoken(answer.text))
        return verdict[:1] == ["yes"], (_step(request, answer),)

    def _sample(self, clip: Clip, question: Question, reasoning: str, steps: tuple[Step, ...]) -> Sample:
        """The sample.

        Raises:
            Rejected: "invalid": the schema refuses it.
        """
        config, common_sense = self._config, question.asked_for.ontology == "common_sense"
        provenance = Provenance(
            config.source, str(clip.path), episode=clip.digest[:16], made_by=PROGRAM, steps=steps
        )
        try:
            return Sample(
                sample_id=question.name,
                media=(Video(video_path(clip)),),
                kind=QuestionKind.COMMON_SENSE if common_sense else QuestionKind.EMBODIED,
                answer=question.answer,
                provenance=provenance,
                split=config.split,
                question=question.query.question,
                options=question.query.options,
                yes_no=question.query.yes_no,
                reasoning=reasoning,
                style=Style(question.asked_for.style),
                category=question.label if common_sense else "",
                capability="" if common_sense else question.label,
                embodiment=config.embodiment,
                licence=config.licence,
                extra={"whole": True},  # the models that wrote it saw frames of all of the clip
            )
        except FieldErrors as error:
            raise Rejected("invalid", str(error)) from error

    async def _ask(self, request: Request) -> Answer:
        return await self._endpoints[request.call.endpoint].ask(request)


def video_path(clip: Clip) -> str:
    """Where a clip lies in the data set."""
    return f"videos/{clip.digest[:16]}{clip.path.suffix.lower() or '.mp4'}"


def calls(config: CurationConfig) -> list[Call]:
    """Every model call of a configuration."""
    found = (config.caption.call, config.write.call, config.blind.call, config.trace, config.judge)
    return [call for call in found if call is not None]


async def _together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first error cancels the rest."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _step(request: Request, answer: Answer) -> Step:
    given = request.call.parameters.items()
    parameters: dict[str, Scalar] = {
        **{name: value if isinstance(value, Scalar) else json.dumps(value) for name, value in given},
        "max_tokens": request.call.max_tokens,
        "attempt": request.attempt,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
    }
    return Step(
        request.step,
        model=answer.model,
        prompt=request.prompt.label,
        version=str(request.prompt.version),
        parameters=parameters,
        started=answer.started,
        seconds=answer.seconds,
        cost=answer.cost,
    )
