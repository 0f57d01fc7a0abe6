# SPDX-License-Identifier: Apache-2.0
"""The engine that asks a server: a real one for text, and one that does what servers should not."""

import base64
import dataclasses
import math
import socket
import time

import cv2
import numpy as np
import pytest

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.remote import RemoteEngine
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import Query, QueryKind, Verdict
from tests.unit import bad_server, language_model_server
from tests.unit.bad_server import WELL
from tests.unit.export_files import NANO, window

WAIT_S = 30.0
ASKED = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=32)
AT_ONCE = dataclasses.replace(ASKED, think_tokens=0)
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=0)


@pytest.fixture
def server():
    with bad_server.served() as script:
        yield script


def engine(server, stall_s=WAIT_S, **options) -> RemoteEngine:
    spec = EngineSpec(str(NANO), kind="remote", remote_url=server.url, **options)
    return RemoteEngine(spec, read_model_spec(NANO), stall_s)


def request(*queries, **changes):
    return Request("r", changes.pop("windows", (window(0, 4),)), queries or (ASKED,), **changes)


def ended(engine, asked):
    events = list(engine.answer(asked))
    final = {event.branch: event for event in events if not isinstance(event, Token)}
    assert [event.branch for event in events if not isinstance(event, Token)] == list(dict.fromkeys(final))
    return final


def test_the_prompt_is_the_node_s(server):
    list(engine(server).answer(request(sampling=Sampling(0.6, 0.9, 7), max_answer_tokens=20)))
    (asked,) = server.asked
    system, user = asked["messages"]
    assert (asked["path"], asked["model"], asked["seed"]) == ("/v1/chat/completions", "one", 7)
    assert (asked["temperature"], asked["top_p"], asked["stream"]) == (0.6, 0.9, True)
    assert (asked["top_k"], asked["repetition_penalty"]) == (-1, 1.0)  # not the checkpoint's own
    assert system == {"role": "system", "content": prompt.SYSTEM}
    *media, text = user["content"]
    assert text == {"type": "text", "text": prompt.user_text(ASKED)}
    assert 52 <= asked["max_tokens"] <= 150
    assert len(media) == 4
    for part, frame in zip(media, window(0, 4).frames, strict=True):
        head, data = part["image_url"]["url"].split(",")
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert head == "data:image/jpeg;base64"
        assert np.abs(image.astype(int) - frame.image).mean() < 3


def test_a_window_as_one_video_carries_its_rate(server):
    list(engine(server, remote_video="video").answer(request()))
    part = server.asked[0]["messages"][1]["content"][0]
    head, *rest = part["video_url"]["url"].split(",")
    assert (head, len(rest)) == ("data:video/jpeg;base64", 4)
    assert server.asked[0]["mm_processor_kwargs"] == {"fps": 4.0}
    assert server.asked[0]["media_io_kwargs"] == {"video": {"fps": 4.0, "num_frames": -1}}
    slow = dataclasses.replace(window(0, 4, "side"), period_ns=500_000_000)
    refused = ended(engine(server, remote_video="video"), request(windows=(window(0, 4), slow)))[0]
    assert refused.error_code == ErrorCode.INVALID_REQUEST


def test_an_answer_is_parsed_streamed_and_weighed(server):
    events = list(engine(server).answer(request()))
    answer = events[-1].answer
    assert (answer.verdict, answer.answer, answer.reasoning) == (Verdict.YES, "yes", "the drawer is open")
    assert answer.confidence == pytest.approx(math.exp(-0.1) / (math.exp(-0.1) + math.exp(-2.5)))
    assert (answer.prompt_tokens, answer.output_tokens) == (500, 12)
    texts = [event for event in events if isinstance(event, Token) and event.text]
    assert "".join(event.text for event in texts) == "".join(bad_server.WELL)
    assert [event.thinking for event in texts] == [True, True, True, False, False]
    assert 0 < events[-1].latency.first_token_s < WAIT_S


def test_without_thinking_the_assistant_s_turn_is_begun(server):
    server.pieces = ("A", "\n</answer>")
    server.logprobs = {"A": math.log(0.6), "B": math.log(0.3)}
    done = ended(engine(server), request(OPTIONS))[0]
    assert server.asked[0]["messages"][-1] == {
        "role": "assistant",
        "content": "<think>\n\n</think>\n\n<answer>\n",
    }
    assert server.asked[0]["continue_final_message"] is True
    assert (done.answer.option_index, done.answer.answer) == (0, "A")
    assert done.answer.confidence == pytest.approx(2 / 3)
    server.logprobs = {"A": math.log(0.5), "B": math.log(0.5)}
    assert ended(engine(server), request(OPTIONS))[0].answer.verdict is Verdict.UNKNOWN


def test_confidence_is_calibrated_as_the_checkpoint_says(server):
    """2/3 and 1/3 at temperature 2, which keeps the order: as sampling.choose has it."""
    server.pieces = ("A", "\n</answer>")
    server.logprobs = {"A": math.log(0.6), "B": math.log(0.3)}
    asking = engine(server)
    asking.model = dataclasses.replace(asking.model, temperature={"next_action": 2.0})
    answer = ended(asking, request(OPTIONS))[0].answer
    assert (answer.answer, answer.confidence) == ("A", pytest.approx(2**0.5 / (2**0.5 + 1)))


def test_a_server_without_log_probabilities_is_believed_as_little_as_may_be(server):
    server.logprobs = {}
    answer = ended(engine(server, min_confidence=0.6), request())[0].answer
    assert (answer.verdict, answer.confidence) == (Verdict.YES, pytest.approx(0.6))


def test_the_answer_s_own_token_is_weighed_not_one_before_it(server, monkeypatch):
    """The line break before the answer has yes, no and a longer token among its alternatives."""
    before = {"\n": math.log(0.9), "No": math.log(0.08), "Yes": math.log(0.004), "</answer>": math.log(0.001)}
    own = {"Yes": math.log(0.95), "No": math.log(0.05)}

    def stream(self):
        for text, tops in (("\n", before), ("Yes", own), ("\n</answer>", {})):
            entries = [{"token": token, "logprob": value} for token, value in tops.items()]
            logprobs = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": entries}]}
            yield {"choices": [{"delta": {"content": text}, "logprobs": logprobs}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    answer = ended(engine(server), request(AT_ONCE))[0].answer
    assert (answer.verdict, answer.confidence) == (Verdict.YES, pytest.approx(0.95))


def test_thoughts_that_a_server_takes_out_are_put_back(server, monkeypatch):
    def stream(self):
        yield {"choices": [{"delta": {"reasoning_content": "it is open"}}]}
        yield {"choices": [{"delta": {"content": "<answer>no</answer>"}, "finish_reason": "stop"}]}

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    answer = ended(engine(server), request())[0].answer
    assert (answer.verdict, answer.reasoning) == (Verdict.NO, "it is open")


def test_confidence_is_not_read_off_a_thought(server, monkeypatch):
    """Its first word may well be a letter, or have yes and no among its alternatives."""
    thought = {"A": math.log(0.9), "B": math.log(0.05)}
    own = {"A": math.log(0.2), "B": math.log(0.8)}

    def piece(delta, token, tops):
        entries = [{"token": name, "logprob": value} for name, value in tops.items()]
        logprobs = {"content": [{"token": token, "logprob": -0.1, "top_logprobs": entries}]}
        return {"choices": [{"delta": delta, "logprobs": logprobs}]}

    def stream(self):
        yield piece({"reasoning_content": "A"}, "A", thought)
        yield piece({"reasoning_content": " drawer is open"}, " drawer is open", thought)
        yield piece({"content": "<answer>"}, "<answer>", {"<answer>": -0.1})
        yield piece({"content": "B"}, "B", own)
        yield piece({"content": "</answer>"}, "</answer>", {"</answer>": -0.1})
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    query = dataclasses.replace(OPTIONS, think_tokens=32)
    answer = ended(engine(server), request(query))[0].answer
    assert (answer.option_index, answer.confidence) == (1, pytest.approx(0.8))


def test_errors_are_those_that_are_one(server, monkeypatch):
    """Null is none; and a piece may be an error as a whole."""
    well = bad_server.BadServer.stream

    def stream(self):
        yield from ({**piece, "error": None} for piece in well(self))

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    assert isinstance(ended(engine(server), request())[0], Done)

    def broken(self):
        yield next(well(self))
        yield {"object": "error", "message": "CUDA out of memory", "code": 500}

    monkeypatch.setattr(bad_server.BadServer, "stream", broken)
    assert "CUDA out of memory" in ended(engine(server), request())[0].error_msg


def test_a_token_without_alternatives_is_one_without_probability(server, monkeypatch):
    def stream(self):
        for text in bad_server.WELL:
            logprobs = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": None}]}
            yield {"choices": [{"delta": {"content": text}, "logprobs": logprobs}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    answer = ended(engine(server, min_confidence=0.6), request())[0].answer
    assert (answer.verdict, answer.confidence) == (Verdict.YES, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("tops", "verdict", "confidence"),
    [
        ({"yes": math.log(0.9), "no": math.log(0.1), "the": None}, Verdict.YES, 0.9),
        ({"no": math.log(0.9), "the": None}, Verdict.UNKNOWN, 0.0),
    ],
)
def test_tokens_without_text_or_probability_are_what_they_are(server, monkeypatch, tops, verdict, confidence):
    """TensorRT Edge-LLM: no text for a token that is not among its likeliest, null for a forbidden one."""

    def piece(text, token, alternatives):
        entries = [{"token": name, "logprob": value} for name, value in alternatives.items()]
        logprobs = {"content": [{"token": token, "logprob": None, "top_logprobs": entries}]}
        return {"choices": [{"delta": {"content": text}, "logprobs": logprobs}]}

    def stream(self):
        yield piece("<think>\n\n</think>\n\n<answer>\n", "", {"Sure": -0.1})
        yield piece("yes", "yes" if "yes" in tops else "", tops)
        yield piece("\n</answer>", "\n</answer>", {"yes": math.log(0.5), "no": math.log(0.1)})
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}

    monkeypatch.setattr(bad_server.BadServer, "stream", stream)
    answer = ended(engine(server), request())[0].answer
    assert (answer.verdict, answer.confidence) == (verdict, pytest.approx(confidence))


def test_a_character_that_comes_in_halves_is_put_together(server):
    server.pieces = ("<think>\nseen by ", "\ud83e", "\udd16", " \ud83e\n</think><answer>", "yes", "</answer>")
    events = list(engine(server).answer(request()))
    assert events[-1].answer.reasoning == "seen by \U0001f916 \ufffd"
    "".join(event.text for event in events if isinstance(event, Token)).encode()  # messages can hold it


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fault": "stall"}, "sent nothing for 0.3 s"),
        ({"fault": "die"}, "ended in the middle"),
        ({"fault": "unfinished"}, "ended in the middle"),
        ({"fault": "garbage"}, "stream is damaged"),
        ({"fault": "error"}, "CUDA out of memory"),
        ({"fault": "status", "status": 404}, "check remote_url"),
        ({"fault": "status", "status": 429}, "it is busy"),
        ({"finish": "length"}, "cut at"),
        ({"finish": "abort"}, "broke the answer off (abort)"),
        ({"finish": "error"}, "broke the answer off (error)"),
        ({"usage": {"prompt_tokens": 40, "completion_tokens": 5}}, "samples or shrinks frames"),
        ({"usage": {"prompt_tokens": 0, "completion_tokens": 5}}, "samples or shrinks frames"),
        ({"usage": {"prompt_tokens": 500, "completion_tokens": 10**6}}, "wrote 1000000 tokens"),
        ({"usage": {"prompt_tokens": "many", "completion_tokens": 5}}, "make no sense"),
        ({"usage": {"prompt_tokens": 10**12, "completion_tokens": 5}}, "make no sense"),
        ({"pieces": ("I think so.",)}, "does not follow the format"),
        ({"pieces": ("<think>\n</think><answer>maybe</answer>",)}, "expected yes or no"),
    ],
)
def test_what_servers_do_wrong_is_named_and_the_next_request_is_answered(server, change, reason):
    remote = engine(server, stall_s=0.3 if change.get("fault") == "stall" else WAIT_S)
    for name, value in change.items():
        setattr(server, name, value)
    failed = ended(remote, request())[0]
    assert isinstance(failed, Failed)
    assert reason in failed.error_msg
    assert failed.error_code in (ErrorCode.ENGINE_FAILED, ErrorCode.BUSY)
    server.__dict__.update({**bad_server.BadServer().__dict__, "url": server.url})
    remote.stall_s = WAIT_S
    assert isinstance(ended(remote, request())[0], Done)


def test_a_deadline_ends_a_slow_answer(server):
    server.pause_s = 60.0
    started = time.monotonic()
    events = list(engine(server).answer(request(deadline_s=0.4)))
    assert (events[-1].branch, events[-1].error_code) == (-1, ErrorCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - started < WAIT_S


@pytest.mark.parametrize("end", ["deadline", "close"])
def test_a_server_that_does_not_say_its_models_holds_nobody_up(server, end):
    """It takes the connection and is silent: between events everything else goes on."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        if end == "deadline":
            events = list(engine(server, stall_s=60.0).answer(request(deadline_s=0.2)))
            assert (events[-1].branch, events[-1].error_code) == (-1, ErrorCode.DEADLINE_EXCEEDED)
            return
        steps = engine(server, stall_s=60.0).answer(request())
        assert isinstance(next(steps), Token)
        silent.settimeout(WAIT_S)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(WAIT_S)
            while b"\r\n\r\n" not in connection.recv(1 << 16):
                pass
            steps.close()
            assert connection.recv(1) == b""  # hung up


def test_a_seed_for_each_question_or_none(server):
    (event,) = engine(server).answer(request(ASKED, AT_ONCE, branch_seeds=(1,)))
    assert (event.branch, event.error_code) == (-1, ErrorCode.INVALID_REQUEST)
    assert isinstance(ended(engine(server), request(ASKED, branch_seeds=(5,)))[0], Done)
    assert server.asked[0]["seed"] == 5


def test_a_cancel_hangs_up(server):
    server.pause_s, server.pieces = 0.05, ("<think>\n", *["on and on "] * 200)
    steps = engine(server).answer(request(AT_ONCE, ASKED))
    events = [next(steps) for _ in range(20)]
    assert all(isinstance(event, Token) for event in events)
    steps.send(0)
    assert {next(steps).branch for _ in range(20)} == {1}
    steps.close()
    until = time.monotonic() + 5
    while server.hung_up < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert server.hung_up == 2


def test_one_bad_question_does_not_end_the_others(server):
    final = ended(engine(server), request(ASKED, dataclasses.replace(ASKED, task=" ")))
    assert isinstance(final[0], Done)
    assert final[1].error_code == ErrorCode.NO_TASK


def test_keys_come_from_the_environment_and_are_not_shown(server, monkeypatch):
    with pytest.raises(CosmosReasonError, match="COSMOS_TEST_KEY is not set"):
        engine(server, remote_key_env="COSMOS_TEST_KEY")
    monkeypatch.setenv("COSMOS_TEST_KEY", "sk-secret")
    server.fault, server.status = "status", 401
    failed = ended(engine(server, remote_key_env="COSMOS_TEST_KEY"), request())[0]
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in failed.error_msg
    assert "remote_key_env" in failed.error_msg


def test_addresses_and_names_that_do_not_do(server):
    bad = ["", "localhost:8000", "ftp://host/v1", "http://host:80800/v1", "http://host:8000a/v1"]
    for url in (*bad, "http://ho st:80/v1", "http://[::1/v1", "http://host:0/v1"):
        with pytest.raises(CosmosReasonError, match="remote_url must be"):
            load_engine(EngineSpec(str(NANO), kind="remote", remote_url=url))
    server.fault = "models"
    event = ended(engine(server), request())[0]
    assert "name one with remote_model" in event.error_msg
    server.url = "http://127.0.0.1:9/v1"
    event = ended(engine(server), request())[0]
    assert "see that the server runs" in event.error_msg


@pytest.mark.skipif(bool(language_model_server.missing()), reason=language_model_server.missing())
def test_a_real_server_answers(monkeypatch):
    """A language model without eyes: no windows, its raw text, streamed; twice the same with a seed."""
    monkeypatch.setenv("COSMOS_TEST_KEY", language_model_server.KEY)
    query = Query(QueryKind.QUESTION, question="Which color has the sky on a clear day?", think_tokens=24)
    with language_model_server.served() as url:
        spec = EngineSpec(str(NANO), kind="remote", remote_url=url, remote_key_env="COSMOS_TEST_KEY")
        remote = load_engine(spec)
        said = []
        for _ in range(2):
            events = list(remote.answer(Request("r", (), (query,), free=True, max_answer_tokens=8)))
            assert isinstance(events[-1], Done), events[-1]
            streamed = "".join(event.text for event in events if isinstance(event, Token))
            assert streamed == events[-1].answer.answer
            assert 0 < events[-1].answer.output_tokens <= 32
            said.append(streamed)
        assert said[0] == said[1] != ""
        assert remote.info.model_id == "smollm2-135m-instruct"
        limited = list(remote.answer(Request("r", (), (query,), free=True, deadline_s=0.001)))
        assert limited[-1].error_code == ErrorCode.DEADLINE_EXCEEDED


def test_a_request_that_the_server_keeps_waiting_holds_up_no_other(server, monkeypatch):
    """As behind another answer; the engine's thread takes turns between requests."""
    monkeypatch.setattr("cosmos_reason_node.engine.remote._POLL_S", 3600.0)
    server.waits_for = "close the window"
    server.pieces = [WELL[0], *["word "] * 50, *WELL[2:]]
    asking = engine(server, stall_s=3600.0)
    slow = asking.answer(request(dataclasses.replace(ASKED, task=server.waits_for), AT_ONCE))
    fast = asking.answer(request())
    texts, ended_fast = [], None
    assert isinstance(next(fast), Token)
    while ended_fast is None:
        assert not isinstance(next(slow), Failed)
        event = next(fast)
        if isinstance(event, Token):
            texts.append(event.text)
        else:
            ended_fast = event
    assert isinstance(ended_fast, Done)
    assert "".join(texts).count("word") >= 49
    server.release.set()
    slow.close()


def test_what_is_dropped_says_nothing_any_more(server):
    bad = dataclasses.replace(ASKED, options=("one",))
    for dropped_at in range(8):
        running = engine(server).answer(request(bad, ASKED, AT_ONCE))
        seen = []
        for number in range(1000):
            try:
                seen.append(running.send(1) if number == dropped_at + 1 else next(running))
            except StopIteration:
                break
        late = [event for event in seen[dropped_at + 1 :] if event.branch == 1]
        assert late == []
        assert {event.branch for event in seen if not isinstance(event, Token)} >= {0, 2}
