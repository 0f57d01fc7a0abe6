# SPDX-License-Identifier: Apache-2.0
import asyncio
import dataclasses
import email.utils
import json
import socket
import threading
import time

import pytest

from tests.unit.curation_server import Reply, serving
from training.data.curation.config import Budget, Call, EndpointConfig
from training.data.curation.endpoint import Endpoint, Meter, Purse
from training.data.curation.message import Request
from training.data.curation.outcome import Rejected, Unfinished
from training.data.curation.prompts import BLIND
from training.data.curation.store import Spent, Store

CALL = Call("local", 50, {"temperature": 0.5, "seed": 7})


def request(text="How many?", attempt=0, schema=None):
    return Request("blind", BLIND, (text,), CALL, attempt, schema)


def ask(folder, url, *requests, budget=None, **settings):
    """Ask all at once; answers or exceptions, and how the attempts ended."""

    async def run(store):
        values = {"model": "tiny", "timeout_s": 10.0, "backoff_s": 0.01, "retries": 3, **settings}
        purse = Purse(budget or Budget(), store)
        endpoint = Endpoint("local", EndpointConfig(url, **values), store, purse, Meter())
        try:
            return await asyncio.gather(*map(endpoint.ask, requests), return_exceptions=True)
        finally:
            await endpoint.close()

    with Store(folder / "curation.sqlite") as store:
        answers = asyncio.run(asyncio.wait_for(run(store), 60))
        return answers, store.attempts_by_state(), store.spent


def failing(times, reply):
    """Replies with ``reply`` so many times, then well."""
    return lambda seen: reply if seen.before < times else Reply("three")


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        (Reply("slow down", 429), "http_429"),
        (Reply("broken", 500), "http_500"),
        (Reply("overloaded", 503), "http_503"),
        (Reply("busy", 409), "http_409"),
        (Reply(raw="<html>proxy error</html>"), "garbled"),
        (Reply(raw='{"choices": ['), "garbled"),
        (Reply(raw='{"choices": []}'), "garbled"),
        (Reply(raw='{"error": {"message": "upstream"}}'), "garbled"),
        (Reply(raw='{"choices": [{"message": {"content": 7}}]}'), "garbled"),
        (Reply(raw="[]"), "garbled"),
        (Reply(drop=True), "connection"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_pass_is_tried_again(tmp_path, reply, state):
    with serving(failing(2, reply)) as server:
        (answer,), states, spent = ask(tmp_path, server.url, request())
    assert answer.text == "three"
    assert states == {"answered": 1, state: 2}
    assert spent.requests == len(server.arrived) == 3


@pytest.mark.parametrize("status", [429, 500])
def test_patience_ends_and_the_item_stays_unfinished(tmp_path, status):
    with serving(lambda _: Reply("no", status)) as server:
        (loss,), states, spent = ask(tmp_path, server.url, request(), retries=2)
        assert isinstance(loss, Unfinished)
        assert loss.reason == "endpoint"
        assert f"HTTP {status}" in loss.detail
        assert states == {f"http_{status}": 3}
        assert spent.tokens == 0, "an error is not charged"
        server.reply = lambda _: Reply("three")
        (answer,), _, _ = ask(tmp_path, server.url, request())
    assert answer.text == "three", "a later run tries again"


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured(tmp_path, as_date):
    arrivals = []

    def busy_once(seen):
        arrivals.append(time.time())
        after = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "0.5"
        return Reply("later", 429, headers={"Retry-After": after}) if seen.before == 0 else Reply("three")

    with serving(busy_once) as server:
        (answer,), _, _ = ask(tmp_path, server.url, request(), backoff_s=0.0)
    assert answer.text == "three"
    assert arrivals[1] - arrivals[0] >= (1.0 if as_date else 0.5)  # a date has whole seconds


def test_a_wait_that_is_too_long_is_not_waited(tmp_path):
    with serving(lambda _: Reply("tomorrow", 429, headers={"Retry-After": "86400"})) as server:
        (loss,), states, _ = ask(tmp_path, server.url, request())
    assert isinstance(loss, Unfinished)
    assert states == {"http_429": 1}


def test_one_that_asks_for_a_pause_is_left_alone_by_all(tmp_path):
    arrivals = []

    def busy_once(seen):
        arrivals.append(time.time())
        return Reply("later", 429, headers={"Retry-After": "0.6"}) if seen.before == 0 else Reply("three")

    with serving(busy_once) as server:
        questions = [request(f"Question {i}?") for i in range(3)]
        answers, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
    assert [answer.text for answer in answers] == ["three"] * 3
    assert all(later - arrivals[0] >= 0.6 for later in arrivals[1:])


def test_a_time_out_counts_as_if_it_had_been_paid_for(tmp_path):
    gate = threading.Event()

    def hangs(_):
        gate.wait(30)
        return Reply("late")

    with serving(hangs) as server:
        (loss,), states, spent = ask(
            tmp_path, server.url, request(), timeout_s=0.3, retries=1, output_price=1e6
        )
        gate.set()
    assert isinstance(loss, Unfinished)
    assert states == {"timeout": 2}
    assert spent.requests == 2
    assert spent.cost == pytest.approx(2 * 50), "the most that it may have written, at 1 a token"


def test_a_server_that_is_not_there_costs_nothing(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        (loss,), states, spent = ask(tmp_path, url, request(), retries=1)
    assert isinstance(loss, Unfinished)
    assert states == {"connection": 2}
    assert spent.tokens == 0


@pytest.mark.parametrize(("status", "hint"), [(401, "api_key_env"), (403, "may not use"), (404, "base_url")])
def test_what_every_request_would_meet_stops_the_endpoint(tmp_path, status, hint):
    with serving(lambda _: Reply("no", status)) as server:
        questions = [request(f"Question {i}?") for i in range(5)]
        losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
    assert len(server.arrived) == 1
    assert all(isinstance(loss, Unfinished) and hint in loss.detail for loss in losses)


def test_failures_in_a_row_stop_the_endpoint(tmp_path):
    with serving(lambda _: Reply("no", 500)) as server:
        questions = [request(f"Question {i}?") for i in range(6)]
        losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1, retries=0, stop_after=3)
    assert len(server.arrived) == 3
    assert all(isinstance(loss, Unfinished) for loss in losses)


def test_refusing_all_from_the_first_on_is_no_verdict_on_the_items(tmp_path):
    """A parameter that the endpoint does not know must not reject a whole data set for good."""
    with serving(lambda _: Reply("unknown parameter: seed", 400)) as server:
        questions = [request(f"Question {i}?") for i in range(6)]
        losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1, stop_after=3)
        assert len(server.arrived) == 3
        assert all(isinstance(loss, Unfinished) for loss in losses)
        server.reply = lambda _: Reply("three")
        answers, _, _ = ask(tmp_path, server.url, *questions)
    assert [answer.text for answer in answers] == ["three"] * 6


def test_refusing_all_is_no_verdict_where_there_is_little_to_ask_either(tmp_path):
    """Fewer requests than stop_after: they would all be rejected, and the run complete without a sample."""
    with serving(lambda _: Reply("unknown parameter: seed", 400)) as server:
        questions = [request(f"Question {i}?") for i in range(2)]
        losses, _, _ = ask(tmp_path, server.url, *questions, stop_after=5)
        for loss in losses:
            assert isinstance(loss, Unfinished)
            assert "unknown parameter: seed" in loss.detail
            assert "correct endpoints.local or the parameters of its calls" in loss.detail
        server.reply = lambda _: Reply("three")
        answers, _, _ = ask(tmp_path, server.url, *questions)
    assert [answer.text for answer in answers] == ["three"] * 2


def test_a_refusal_before_the_first_answer_is_final_when_the_run_is_repeated(tmp_path):
    def refuses_first(seen):
        return Reply("the content filter", 400) if "Question 0" in seen.text else Reply("three")

    questions = [request(f"Question {i}?") for i in range(3)]
    with serving(refuses_first) as server:
        losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
        assert isinstance(losses[0], Unfinished)
        assert losses[0].detail.endswith("if only some, just run again")
        losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
        assert isinstance(losses[0], Rejected)
        assert losses[0].reason == "refused"
        assert [answer.text for answer in losses[1:]] == ["three"] * 2
    assert len(server.arrived) == 4, "answers are not asked for again"


def test_a_refusal_of_one_request_is_final_and_kept(tmp_path):
    def refuses_one(seen):
        return Reply("the content filter", 400) if "Question 2" in seen.text else Reply("three")

    questions = [request(f"Question {i}?") for i in range(4)]
    with serving(refuses_one) as server:
        for _ in range(2):
            answers, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
            assert isinstance(answers[2], Rejected)
            assert answers[2].reason == "refused"
    assert len(server.arrived) == 4


def test_equal_requests_are_asked_once_and_others_apart(tmp_path):
    with serving(lambda _: Reply("three")) as server:
        asked = [request(), request(), request("How few?"), request(attempt=1)]
        answers, _, _ = ask(tmp_path, server.url, *asked)
    assert [answer.text for answer in answers] == ["three"] * 4
    assert len(server.arrived) == 3
    assert sorted(seen.body["seed"] for seen in server.arrived) == [7, 7, 8]
    assert all(seen.body["temperature"] == 0.5 and seen.body["max_tokens"] == 50 for seen in server.arrived)


def test_a_schema_is_sent_where_the_endpoint_takes_one(tmp_path):
    with serving(lambda _: Reply("{}")) as server:
        ask(
            tmp_path / "a",
            server.url,
            request(schema={"type": "object"}),
            token_limit="max_completion_tokens",
        )
        ask(tmp_path / "b", server.url, request(schema={"type": "object"}), structured=True)
    plain, structured = (seen.body for seen in server.arrived)
    assert "response_format" not in plain
    assert plain["max_completion_tokens"] == 50
    assert structured["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_what_is_not_reported_is_estimated(tmp_path):
    with serving(lambda _: Reply("a" * 300, usage=False, reasoning="b" * 30)) as server:
        (answer,), _, spent = ask(tmp_path, server.url, request())
    assert answer.reasoning == "b" * 30
    assert answer.output_tokens == 111
    assert spent.tokens == answer.input_tokens + answer.output_tokens > 111


def test_half_a_character_is_replaced_and_the_answer_kept(tmp_path):
    """JSON may hold half of a pair, as of an emoji that max_tokens cut in two; the store cannot."""
    half = "Done! \ud83d"
    message = {"content": half, "reasoning_content": half}
    body = {"model": "m\udc00", "choices": [{"message": message, "finish_reason": "length"}]}
    with serving(lambda _: Reply(raw=json.dumps(body))) as server:
        for _ in range(2):
            (answer,), states, _ = ask(tmp_path, server.url, request())
            assert answer.text == answer.reasoning == "Done! \ufffd"
            assert answer.model == "m\ufffd"
            assert states == {"answered": 1}
    assert len(server.arrived) == 1


def test_half_a_character_in_a_refusal_is_replaced_and_kept_too(tmp_path):
    def refuses_one(seen):
        return Reply("too long: \ud83d", 400) if "Question 1" in seen.text else Reply("three")

    questions = [request(f"Question {i}?") for i in range(2)]
    with serving(refuses_one) as server:
        for _ in range(2):
            losses, _, _ = ask(tmp_path, server.url, *questions, concurrency=1)
            assert isinstance(losses[1], Rejected)
            assert "too long: \ufffd" in losses[1].detail
    assert len(server.arrived) == 2


def test_the_budget_is_never_exceeded_and_used_up_to_the_last_request(tmp_path):
    questions = [request(f"Question {i}?") for i in range(20)]
    with serving(lambda _: Reply("three")) as server:
        answers, _, spent = ask(tmp_path, server.url, *questions, budget=Budget(requests=8), concurrency=6)
        assert len(server.arrived) == spent.requests == 8
        assert sum(isinstance(answer, Unfinished) and answer.reason == "budget" for answer in answers) == 12
        # An answer here uses 120 tokens; before it is known, more is set aside.
        _, _, spent = ask(tmp_path, server.url, *questions, budget=Budget(tokens=2000), concurrency=6)
    assert 1700 <= spent.tokens <= 2000


def test_what_answers_report_corrects_what_is_set_aside(tmp_path):
    """Each reads 4,000 tokens where some 100 are estimated: after one of them the budget allows no other."""
    usage = '"usage": {"prompt_tokens": 4000, "completion_tokens": 10}'
    said = f'{{"choices": [{{"message": {{"content": "three"}}}}], {usage}}}'
    questions = [request(f"Question {i}?") for i in range(6)]
    other = dataclasses.replace(request("Another step?"), step="trace")
    with serving(lambda _: Reply(raw=said)) as server:
        for asked in (questions, [questions[0], other]):  # the second run learns from the store
            answers, _, spent = ask(tmp_path, server.url, *asked, budget=Budget(tokens=6000), concurrency=1)
            assert [isinstance(answer, Unfinished) for answer in answers] == [False] + [True] * (
                len(asked) - 1
            )
            assert spent.tokens == 4010


def test_an_attempt_that_was_never_heard_of_counts_after_a_restart(tmp_path):
    with serving(lambda _: Reply("three")) as server:
        with Store(tmp_path / "curation.sqlite") as store:
            purse = Purse(Budget(), store)
            asyncio.run(purse.send("key", "blind", lambda: Spent(1, 500, 0.25)))  # and the process dies
        (answer,), states, spent = ask(tmp_path, server.url, request(), budget=Budget(tokens=501))
        assert isinstance(answer, Unfinished)
        assert states == {"sent": 1}
        assert (spent.requests, spent.tokens, spent.cost) == (1, 500, 0.25)
    assert json.dumps([seen.step for seen in server.arrived]) == "[]"
