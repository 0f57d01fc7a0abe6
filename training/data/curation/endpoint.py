# SPDX-License-Identifier: Apache-2.0
"""Asking an OpenAI-compatible endpoint: each question once, within the budget, with bounded patience.

    ask ─> in the store? ─yes─> the answer kept there
             no ─> slot of the endpoint ─> budget ─> write down ─> send ─> settle ─┬─> answer
                          ^                                                        │
                          └── pause (Retry-After, else backoff) <── worth a retry ─┘

Failures: what may pass (408, 409, 429, 5xx, time-outs, broken connections, garbled answers) is tried again
and leaves the item unfinished in the end; what this one request has caused (other 4xx) rejects the item,
if the endpoint has answered another one before (else its settings may be wrong: the item stays unfinished);
what every request will meet (no key, no such model, no quota, failures in a row) stops the endpoint, and
what needs it stays unfinished.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import math
import os
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import openai

from .config import Budget, ConfigError, EndpointConfig
from .message import (
    Answer,
    Request,
    input_estimate,
    most_spent,
    read_answer,
    request_body,
    request_key,
    whole_characters,
)
from .outcome import Rejected, Unfinished
from .store import Spent, Store

_WORTH_A_RETRY = (408, 409, 429)
_STOPS = {
    401: "the key is not accepted; check the variable named by api_key_env",
    402: "the account has no credit",
    403: "this key may not use this model",
    404: "there is no such model or path; check model and base_url (it usually ends in /v1)",
}


class Meter:
    """Answers that a run used, by step: those asked for now, and those found in the store."""

    def __init__(self) -> None:
        self.fresh: dict[str, dict[str, Answer]] = {}
        self.kept: dict[str, dict[str, Answer]] = {}

    def note(self, step: str, key: str, answer: Answer, fresh: bool) -> None:
        """Count an answer under the key of its request; one that was asked for now stays counted as such."""
        if fresh:
            self.fresh.setdefault(step, {})[key] = answer
        elif key not in self.fresh.get(step, {}):
            self.kept.setdefault(step, {})[key] = answer


class Purse:
    """The budget of all endpoints together. A request reserves the most it may use up before it is sent.

    How much it reads is an estimate, so answers may pass the budget: ``exceeded`` says by how much.
    """

    def __init__(self, budget: Budget, store: Store) -> None:
        self._budget = budget
        self._store = store
        self._changed = asyncio.Condition()
        self._open = 0

    async def send(self, key: str, step: str, most: Callable[[], Spent]) -> tuple[int, Spent]:
        """Reserve ``most`` and write the request down; waits while requests under way may still leave enough.

        Args:
            key: of the request.
            step: of the pipeline.
            most: what it may use up, by what answers have told until then.

        Returns:
            The attempt, and what was reserved for it.

        Raises:
            Unfinished: the budget does not allow it.
        """
        async with self._changed:
            while (short := self._passed(self._store.spent + most())) and self._open:
                await self._changed.wait()
            if short:
                raise Unfinished(
                    "budget", f"budget.{next(iter(short))} does not allow another request; raise it to go on"
                )
            reserved = most()
            attempt = self._store.send(key, step, reserved)
            self._open += 1
            return attempt, reserved

    async def settle(self, attempt: int, state: str, most: Spent, used: Spent, answer: Any = None) -> None:
        """Note how a request ended and free what it did not use."""
        async with self._changed:
            self._open -= 1
            self._changed.notify_all()
            self._store.settle(attempt, state, most, used, answer)

    @property
    def exceeded(self) -> dict[str, float]:
        """By how much each limit was passed; only those that were."""
        return self._passed(self._store.spent)

    def _passed(self, spent: Spent) -> dict[str, float]:
        limits = {name: limit for name, limit in vars(self._budget).items() if limit}  # 0 = none
        over = {name: round(getattr(spent, name) - limit, 9) for name, limit in limits.items()}
        return {name: amount for name, amount in over.items() if amount > 0}


@dataclass
class _Failure(Exception):
    """A request without an answer.

    Attributes:
        state: what happened, for the store.
        detail: for people.
        retry: the same request may be answered later.
        stops: no request to this endpoint will be answered.
        wait: seconds that the endpoint asks for.
        charged: it may have been paid for all the same.
    """

    state: str
    detail: str
    retry: bool = False
    stops: bool = False
    wait: float | None = None
    charged: bool = False


class Endpoint:
    """One endpoint. Call ``close`` at the end.

    Raises:
        ConfigError: the variable that should hold the key is not set.
    """

    def __init__(self, name: str, config: EndpointConfig, store: Store, purse: Purse, meter: Meter) -> None:
        self.config = config
        self._name, self._store, self._purse, self._meter = name, store, purse, meter
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
        if config.api_key_env and not self._key:
            raise ConfigError(f"endpoints.{name}: the environment variable {config.api_key_env} is not set")
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=self._key or "none", max_retries=0, timeout=config.timeout_s
        )
        self._slots = asyncio.Semaphore(config.concurrency)
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._ratios: dict[str, float] = {}  # by step, the largest of tokens reported to tokens estimated
        self._not_before = 0.0  # on the event loop's clock
        self._failed_in_row = 0
        self._has_answered = False
        self._has_kept = False  # an answer of another run was used: it took such requests then
        self._stopped = ""

    async def close(self) -> None:
        """Close connections."""
        await self._client.close()

    async def ask(self, request: Request) -> Answer:
        """The answer, from the store or from the endpoint.

        Raises:
            Rejected: the endpoint refuses this request ("refused").
            Unfinished: no answer for now ("endpoint", "budget").
            StoreError: an answer cannot be kept or read.
        """
        key = request_key(request, self.config)
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:  # equal requests at the same time are one
            kept = self._store.get(key)
            if kept is None:
                async with self._slots:
                    answer = await self._try(key, request)
            elif "refused" in kept:
                raise Rejected("refused", kept["refused"])
            else:
                answer = Answer(**kept)
                self._has_kept = True
                self._learn(request, answer)
        self._meter.note(request.step, key, answer, fresh=kept is None)
        return answer

    async def _try(self, key: str, request: Request) -> Answer:
        """Send until there is an answer or no hope of one."""
        self._check_running()
        body = await asyncio.to_thread(request_body, request, self.config)
        for attempt in range(self.config.retries + 1):
            await self._pause()
            self._check_running()
            number, most = await self._purse.send(
                key,
                request.step,
                lambda: most_spent(request, self.config, self._ratio(request.step)),
            )
            try:
                answer = await self._send(key, request, body)
            except _Failure as failure:
                used = most if failure.charged else Spent(1)
                loss = None if self._again(failure, attempt) else self._lost(failure)
                refused = (
                    {"refused": loss.detail} if isinstance(loss, Rejected) and self._has_answered else None
                )
                await self._purse.settle(number, failure.state, most, used, refused)
                if loss:
                    raise loss from None
            else:
                self._learn(request, answer)
                used = Spent(1, answer.input_tokens + answer.output_tokens, answer.cost)
                await self._purse.settle(number, "answered", most, used, vars(answer))
                self._failed_in_row, self._has_answered = 0, True
                return answer
        raise AssertionError("the last attempt returns or raises")

    def _ratio(self, step: str) -> float:
        """Tokens that are read for each one estimated; until a step has its first answer, as in any other."""
        return self._ratios.get(step, max(self._ratios.values(), default=1.0))

    def _learn(self, request: Request, answer: Answer) -> None:
        """Have later requests of the step reserve what this answer tells that such a request reads."""
        ratio = answer.input_tokens / input_estimate(request, self.config)
        self._ratios[request.step] = max(ratio, self._ratios.get(request.step, 1.0))

    async def _send(self, key: str, request: Request, body: Mapping[str, Any]) -> Answer:
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        clock = time.monotonic()
        try:
            async with asyncio.timeout(self.config.timeout_s):  # of the whole; the client's own is per read
                raw = await self._client.chat.completions.with_raw_response.create(
                    # A gateway that knows this header answers a request sent again after a kill without a
                    # second bill.
                    extra_headers={"Idempotency-Key": key},
                    **body,
                )
            return read_answer(raw.text, request, started, time.monotonic() - clock, self.config)
        except (TimeoutError, openai.APITimeoutError):
            detail = f"no answer within {self.config.timeout_s:g} s"
            raise _Failure("timeout", detail, retry=True, charged=True) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            unreached = type(cause).__name__ == "ConnectError"
            detail = self._hide(f"{type(cause).__name__}: {cause}")
            raise _Failure("connection", detail, retry=True, charged=not unreached) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except ValueError as error:
            raise _Failure("garbled", self._hide(str(error)), retry=True, charged=True) from None

    def _refusal(self, error: openai.APIStatusError) -> _Failure:
        status = error.status_code
        detail = self._hide(f"HTTP {status}: {error.message}")[:300]
        if status in _STOPS or getattr(error, "code", None) == "insufficient_quota":
            return _Failure(f"http_{status}", f"{detail} ({_STOPS.get(status, 'no quota')})", stops=True)
        retry = status in _WORTH_A_RETRY or status >= 500
        wait = _retry_after(error.response.headers) if retry else None
        return _Failure(f"http_{status}", detail, retry, wait=wait)

    def _again(self, failure: _Failure, attempt: int) -> bool:
        """Whether to try once more; sets the time before which this endpoint is left alone."""
        if not failure.retry or attempt >= self.config.retries:
            return False
        wait = failure.wait
        if wait is None:
            wait = min(self.config.backoff_s * 2**attempt, self.config.max_wait_s) * random.uniform(0.75, 1.0)
        if wait > self.config.max_wait_s:
            return False
        self._not_before = max(self._not_before, asyncio.get_running_loop().time() + wait)
        return True

    def _lost(self, failure: _Failure) -> Rejected | Unfinished:
        """How the item ends; stops the endpoint when there is no point in going on."""
        where = f"endpoint {self._name}: {failure.detail}"
        # Refusing all from the first one on is no verdict on the items: the parameters are wrong.
        unproven = not (failure.retry or failure.stops or self._has_answered or self._has_kept)
        if unproven:
            where += (
                "; it had answered nothing before, so this rejects nothing: if it refuses all, correct "
                f"endpoints.{self._name} or the parameters of its calls; if only some, just run again"
            )
        if failure.retry or not self._has_answered:
            self._failed_in_row += 1
        if failure.stops or self._failed_in_row >= self.config.stop_after:
            self._stopped = where
        if failure.retry or unproven or self._stopped:
            return Unfinished("endpoint", where)
        return Rejected("refused", where)

    def _check_running(self) -> None:
        if self._stopped:
            raise Unfinished("endpoint", self._stopped)

    async def _pause(self) -> None:
        while (wait := self._not_before - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(wait)

    def _hide(self, text: str) -> str:
        """``text`` without the key, which some endpoints echo, and without half characters."""
        text = whole_characters(text)
        return text.replace(self._key, "[key]") if self._key else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks for, from a number or an HTTP date; None when it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
