# SPDX-License-Identifier: Apache-2.0
"""The engine that asks a server, before TensorRT Edge-LLM: its own server, where its wheel is installed."""

import dataclasses
import io
import re
import time

import av
import numpy as np
import pytest

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.clip import encode_clip
from cosmos_reason_node.engine.remote import RemoteEngine
from cosmos_reason_node.engine.remote_request import answer_pattern, remote_request, window_parts
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import Query, QueryKind, Verdict, Window
from tests.unit import edge_llm_server
from tests.unit.export_files import NANO, window

ASKED = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=32)
AT_ONCE = dataclasses.replace(ASKED, think_tokens=0)
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=0)
OPEN = Query(QueryKind.QUESTION, question="What is there?", think_tokens=8)
# Fields of a chat request in 0.11.0; it answers any other with HTTP 400.
FIELDS = {
    *("messages", "model", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
    *("max_tokens", "max_completion_tokens", "n", "seed", "stop", "stream", "stream_options", "temperature"),
    *("top_p", "top_k", "min_p", "repetition_penalty", "tools", "tool_choice", "parallel_tool_calls"),
    *("response_format", "guided_decoding", "modalities", "audio", "apply_chat_template"),
    *("add_generation_prompt", "enable_thinking", "reasoning_effort", "chat_template_kwargs"),
    *("disable_spec_decode", "reuse_context", "cache_generated_tokens"),
}
real = pytest.mark.skipif(bool(edge_llm_server.missing()), reason=edge_llm_server.missing())


def decoded(data):
    """Frames, number of them in the header, rate; by the library that TensorRT Edge-LLM decodes with."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.frames, float(stream.average_rate)


@pytest.mark.parametrize("width", [112, 85, 1])
@pytest.mark.parametrize("period_ns", [250_000_000, 33_333_333, 10_000_000_000])
def test_a_clip_is_the_frames_to_the_bit(width, period_ns):
    draw = np.random.default_rng(width)
    frames = [draw.integers(0, 256, (56, width, 3), np.uint8) for _ in range(6)]
    seen, counted, rate = decoded(encode_clip(frames, period_ns))
    assert counted == len(seen) == 6
    assert all(np.array_equal(a, b) for a, b in zip(seen, frames, strict=True))
    assert rate == pytest.approx(1e9 / period_ns, rel=2e-5)


def test_what_cannot_be_a_clip_is_refused():
    with pytest.raises(ValueError, match="all of one size"):
        encode_clip([np.zeros((28, 28, 3), np.uint8), np.zeros((28, 56, 3), np.uint8)], 1)
    with pytest.raises(ValueError, match="needs frames"):
        encode_clip([], 1)
    one, other = window(0, 2), np.zeros((56, 56, 3), np.uint8)
    mixed = dataclasses.replace(one, frames=(one.frames[0], dataclasses.replace(one.frames[1], image=other)))
    with pytest.raises(CosmosReasonError) as caught:
        window_parts(mixed, "edge_llm")
    assert caught.value.code == ErrorCode.BAD_IMAGE
    with pytest.raises(CosmosReasonError) as caught:
        window_parts(Window("front", (), 0, 1, 0, 2), "edge_llm")
    assert caught.value.code == ErrorCode.NO_FRAMES


def test_a_text_that_is_begun_for_the_model_is_refused():
    asked = Request("r", (window(0, 4),), (ASKED,), free=True, at_once=True)
    with pytest.raises(CosmosReasonError, match="empty thought") as caught:
        remote_request(asked, 0, window_parts(window(0, 4), "edge_llm"), "edge_llm", 16)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("query", [ASKED, AT_ONCE, OPTIONS, OPEN])
@pytest.mark.parametrize("free", [False, True])
def test_only_fields_that_it_knows_are_sent(query, free):
    asked = Request("r", (window(0, 4),), (query,), free=free)
    made = remote_request(asked, 0, window_parts(window(0, 4), "edge_llm"), "edge_llm", 16)
    assert set(made.body) <= FIELDS
    assert [message["role"] for message in made.body["messages"]] == ["system", "user"]
    assert ("guided_decoding" in made.body, made.opened) == (not free, "")


@pytest.mark.parametrize(
    ("query", "reasoning", "said", "refused"),
    [
        (ASKED, "it is 3 > 2\nopen", "Yes", "maybe"),
        (AT_ONCE, "", "no", "unknown"),
        (OPTIONS, "", "B", "C"),
        (OPEN, "a cup", "a red cup", "<answer>"),
        (OPEN, "a cup", "7", "\n "),
    ],
)
def test_the_grammar_allows_answers_and_nothing_else(query, reasoning, said, refused):
    pattern = re.compile(answer_pattern(query, query.think_tokens))
    text = prompt.target(reasoning, said).removesuffix(prompt.END_OF_TURN)
    assert pattern.fullmatch(text)
    assert decision.parse_output(text, query).answer == said
    assert not pattern.fullmatch(text.replace(f"\n{said}\n", f"\n{refused}\n"))
    assert not pattern.fullmatch(text + "\n")
    assert bool(pattern.fullmatch(prompt.target("why", said)[: -len(prompt.END_OF_TURN)])) == bool(reasoning)


@pytest.fixture
def server(tmp_path):
    with edge_llm_server.served(tmp_path) as (url, runtime):
        yield url, runtime


def engine(url, form="edge_llm", **options):
    spec = EngineSpec(str(NANO), kind="remote", remote_url=url, remote_video=form, **options)
    return RemoteEngine(spec, read_model_spec(NANO), 5.0)


def ended(remote, *queries, windows=None, **changes):
    events = list(remote.answer(Request("r", windows or (window(0, 8),), queries or (AT_ONCE,), **changes)))
    return {event.branch: event for event in events if not isinstance(event, Token)}


@real
def test_the_windows_reach_the_runtime_as_they_are(server):
    url, runtime = server
    shown = (window(3, 8), dataclasses.replace(window(0, 4, "side"), period_ns=500_000_000))
    done = ended(engine(url), ASKED, windows=shown, sampling=Sampling(0.6, 0.9, 7), max_answer_tokens=20)
    assert isinstance(done[0], Done), done
    (asked,) = runtime.requests
    (query,) = asked.requests
    for video, one in zip(query.image_buffers, shown, strict=True):
        assert np.array_equal(video.pixels, one.pixels())
        assert (video.fps, video.do_resize) == (one.fps, False)
        assert video.timestamps == [i / one.fps for i in range(len(one.frames))]
    system, user = query.messages
    assert [content.args for content in system.contents] == [("text", prompt.SYSTEM)]
    texts = [("video", ""), ("video", ""), ("text", prompt.user_text(ASKED))]
    assert (user.role, [content.args for content in user.contents]) == ("user", texts)
    assert query.guided_decoding.args[1] == answer_pattern(ASKED, 32)
    assert (asked.temperature, asked.top_p, asked.top_k, query.sampling_seed) == (0.6, 0.9, -1, 7)
    assert (asked.apply_chat_template, asked.add_generation_prompt) == (True, True)
    assert asked.max_generate_length == 100


@real
def test_its_answer_is_read_and_weighed(server):
    """Its log probabilities leave out the text of unlikely tokens, and have null for forbidden ones."""
    url, runtime = server
    answer = ended(engine(url))[0].answer
    assert (answer.verdict, answer.answer, answer.reasoning) == (Verdict.YES, "yes", "")
    assert answer.confidence == pytest.approx(0.8)
    assert (answer.prompt_tokens, answer.output_tokens) == (40, 4)
    runtime.prompt_tokens = -1
    assert ended(engine(url))[0].answer.prompt_tokens == 0


@real
def test_queries_wait_for_each_other_and_all_are_answered(server):
    url, runtime = server
    runtime.pause_s = 0.05
    assert all(isinstance(event, Done) for event in ended(engine(url), ASKED, AT_ONCE, ASKED).values())
    assert len(runtime.requests) == 3


@real
def test_a_cancel_ends_the_generation(server):
    url, runtime = server
    runtime.pieces, runtime.pause_s = ("<think>\n", *["on and on "] * 400), 0.02
    remote = engine(url)
    steps = remote.answer(Request("r", (window(0, 4),), (ASKED,)))
    while not next(steps).text:
        pass
    steps.close()
    until = time.monotonic() + 10
    while not runtime.cancelled and time.monotonic() < until:
        time.sleep(0.02)
    assert runtime.cancelled == 1
    runtime.pieces, runtime.pause_s = edge_llm_server.Runtime().pieces, 0.0
    assert isinstance(ended(remote)[0], Done)


@real
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fault": "EDGELLM_INPUT_TOO_LONG"}, "EDGELLM_INPUT_TOO_LONG"),
        ({"fault": "out of memory"}, "out of memory"),
        ({"reason": edge_llm_server.FinishReason.ERROR}, "broke the answer off \\(error\\)"),
        ({"reason": edge_llm_server.FinishReason.LENGTH}, "was cut at 96 tokens"),
        ({"pieces": ("I think so.",)}, "does not follow the format"),
    ],
)
def test_what_goes_wrong_there_is_named_and_the_next_request_is_answered(server, change, reason):
    url, runtime = server
    runtime.__dict__.update(change)
    remote = engine(url)
    failed = ended(remote)[0]
    assert isinstance(failed, Failed)
    assert failed.error_code == ErrorCode.ENGINE_FAILED
    assert re.search(reason, failed.error_msg)
    runtime.__dict__.update(edge_llm_server.Runtime().__dict__)
    assert isinstance(ended(remote)[0], Done)


@real
def test_a_window_beyond_what_it_was_built_for_is_refused_not_thinned(tmp_path):
    with edge_llm_server.served(tmp_path, max_image_tokens=63) as (url, runtime):
        failed = ended(engine(url), windows=(window(0, 8),))[0]
        assert isinstance(failed, Failed)
        assert "HTTP 400" in failed.error_msg
        assert "needs ~64 visual tokens but only 63" in failed.error_msg
        assert not runtime.requests
        assert isinstance(ended(engine(url), windows=(window(0, 6),))[0], Done)


@real
@pytest.mark.parametrize("form", ["images", "video"])
def test_asked_as_other_servers_are_it_refuses_and_the_error_says_what_to_set(server, form):
    failed = ended(engine(server[0], form))[0]
    assert isinstance(failed, Failed)
    assert "remote_video edge_llm" in failed.error_msg


@real
def test_the_fields_above_are_those_of_its_requests():
    from experimental.server.api.protocol import ChatCompletionRequest

    assert set(ChatCompletionRequest.model_fields) == FIELDS
