# SPDX-License-Identifier: Apache-2.0
"""The engine on exported graphs, with ONNX Runtime executing them, against the engine on torch."""

import contextlib
import dataclasses
import re
import weakref

import numpy as np
import pytest
import torch

from cosmos_reason_node.engine import loading
from cosmos_reason_node.engine.base import Done, Failed, Request, Token
from cosmos_reason_node.engine.graphs import OnnxExecutor
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.manifest import read_manifest, write_manifest
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.export_files import NANO, exported, onnx_engine, window

COMPLETION = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=12)
FREE = Query(QueryKind.NEXT_ACTION, task="open the drawer", think_tokens=0)
OPTIONS = dataclasses.replace(FREE, options=("reach", "pull", "wait"))
QUERIES = (COMPLETION, OPTIONS, FREE)


@pytest.fixture(scope="module")
def reference() -> TorchEngine:
    torch.set_num_threads(1)
    model = qwen2_5_vl.load(NANO, device="cpu", dtype="float32")
    return TorchEngine(model, min_confidence=0.0, kept_pairs=64)


@pytest.fixture(scope="module")
def engine():
    return onnx_engine(exported())


def asked(*queries, windows=None, **changes):
    return Request("r", windows or (window(),), queries, **{"max_answer_tokens": 12, **changes})


def answers(engine, request):
    ended = {event.branch: event for event in engine.answer(request) if not isinstance(event, Token)}
    assert all(isinstance(event, Done) for event in ended.values()), ended
    return [ended[branch].answer for branch in sorted(ended)]


def same(one, other):
    confidences = [(a.confidence, b.confidence) for a, b in zip(one, other, strict=True)]
    assert all(a == pytest.approx(b, abs=1e-3) for a, b in confidences)
    return [facts(a) for a in one] == [facts(a) for a in other]


def facts(answer):
    """All but what is rounded differently."""
    return (answer.verdict, answer.answer, answer.option_index, answer.reasoning, answer.output_tokens)


def test_greedy_tokens_equal_those_of_torch_on_100_windows(engine, reference):
    """Without the grammar, which would hide differences: every token is the model's own choice."""
    for first in range(0, 200, 2):
        request = asked(*QUERIES, windows=(window(first),), free=True)
        assert [a.answer for a in answers(engine, request)] == [a.answer for a in answers(reference, request)]
    # Sliding by one pair, all but the new pair's features were there.
    assert engine.statistics.vision_misses < 100 + 8


def test_answers_under_the_grammar_equal_those_of_torch(engine, reference):
    for windows in (
        (window(0, 32),),
        (window(40, 2),),
        (window(0, 6), window(50, 8, camera="wrist")),
    ):
        request = asked(*QUERIES, windows=windows, max_answer_tokens=24)
        assert same(answers(engine, request), answers(reference, request))


def test_what_is_kept_from_before_does_not_change_an_answer(engine):
    fresh = [answers(onnx_engine(exported()), asked(*QUERIES, windows=(window(f, 8),))) for f in (60, 62)]
    before = engine.statistics
    kept = [answers(engine, asked(*QUERIES, windows=(window(f, n),))) for f, n in ((60, 6), (60, 8), (62, 8))]
    assert [same(a, b) for a, b in zip(fresh, kept[1:], strict=True)] == [True, True]
    # The window that grew took over the tokens of its first three pairs.
    assert engine.statistics.prefix_tokens_reused > before.prefix_tokens_reused + 3 * 16


class Small(OnnxExecutor):
    """Notes what it is called with."""

    def __init__(self, directory, manifest):
        super().__init__(directory, manifest)
        self.calls, self.is_beside, self.joined = [], False, 0

    @contextlib.contextmanager
    def beside(self):
        self.is_beside = True
        yield
        self.is_beside = False

    def join(self, result):
        self.joined += 1
        return result

    def run(self, part, inputs, outputs):
        assert self.is_beside == (part == "vision")
        tensors = {**inputs, **outputs}
        self.calls.append((part, {name: (t.data_ptr(), tuple(t.shape)) for name, t in tensors.items()}))
        super().run(part, inputs, outputs)


def small_engine(tmp_path, executor=None, **dimensions):
    """An engine on the same graphs with tighter bounds."""
    manifest = read_manifest(exported())
    for path in exported().iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "manifest.json").unlink()
    changed = dataclasses.replace(manifest.dimensions, **dimensions)
    write_manifest(tmp_path, dataclasses.replace(manifest, dimensions=changed))
    return onnx_engine(tmp_path, (executor or OnnxExecutor)(tmp_path, manifest))


def test_chunks_and_groups_do_not_change_an_answer(engine, tmp_path):
    small = small_engine(tmp_path, max_rows=16, max_own=320, max_prefix=256)
    request = asked(*QUERIES, *QUERIES)
    assert same(answers(small, request), answers(engine, request))


def test_a_decode_step_meets_few_shapes_in_always_the_same_buffers(tmp_path):
    executors = []

    def make(directory, manifest):
        executors.append(Small(directory, manifest))
        return executors[0]

    engine = small_engine(tmp_path, make)
    answers(engine, asked(*[dataclasses.replace(COMPLETION, think_tokens=40)] * 3, free=True))
    steps = [call for part, call in executors[0].calls if part == "decoder" and call["embeds"][1][0] <= 4]
    assert len(steps) >= 10
    assert len({tuple(sorted(step.items())) for step in steps}) <= 3  # 3, 2, 1 branches: buckets of 4, 2, 1
    assert all(pointer % 64 == 0 for step in steps for pointer, _ in step.values())
    most = read_manifest(tmp_path).dimensions
    for part, call in executors[0].calls:
        if part == "decoder":
            rows = call["embeds"][1][0]
            prefix, own = call["prefix_key_0"][1][0], call["own_key_0"][1][0]
            assert rows <= most.max_rows
            assert prefix % most.cache_step == own % most.cache_step == 0
            assert prefix <= most.max_prefix
            assert own <= most.max_own
            assert call["mask"][1] == (rows, prefix + own + rows)
        elif part == "vision":
            assert call["pixels"][1][0] == 1


def test_frames_are_encoded_as_they_arrive_and_waited_for_when_they_are_read(engine, tmp_path):
    small = small_engine(tmp_path, Small)
    executor = small._executor
    for length in (2, 4, 6, 8):
        small.observe(window(30, length))
    assert [part for part, _ in executor.calls] == ["vision"] * 4
    assert executor.joined == 0
    request = asked(*QUERIES, windows=(window(30, 8),))
    assert same(answers(small, request), answers(engine, request))
    assert sum(part == "vision" for part, _ in executor.calls) == 4
    assert executor.joined == 4


@pytest.mark.parametrize("kind", ["prefix", "question"])
def test_what_is_too_long_for_the_graphs_is_refused_and_the_engine_goes_on(tmp_path, kind):
    limits = {"max_prefix": 128} if kind == "prefix" else {"max_own": 64}
    small = small_engine(tmp_path, **limits)
    shown = (window(0, 32),) if kind == "prefix" else (window(0, 2),)
    events = list(small.answer(asked(COMPLETION, windows=shown)))
    assert isinstance(events[-1], Failed)
    assert events[-1].error_code == ErrorCode.QUESTION_TOO_LONG
    if kind == "prefix":
        assert len(answers(small, asked(FREE, windows=(window(0, 4),)))) == 1


def test_frames_of_another_size_are_refused(engine):
    shown = window(0, 4)
    image = np.zeros((112, 140, 3), np.uint8)
    wide = dataclasses.replace(
        shown, frames=tuple(dataclasses.replace(frame, image=image) for frame in shown.frames)
    )
    (event,) = engine.answer(asked(FREE, windows=(wide,)))
    assert event.error_code == ErrorCode.BAD_IMAGE
    assert "112x140" in event.error_msg
    assert "--frame-size" in event.error_msg


def test_a_canceled_branch_leaves_the_others_as_they_were(engine):
    whole = answers(engine, asked(*QUERIES))
    steps = engine.answer(asked(*QUERIES))
    events = [next(steps), steps.send(0)]
    events += list(steps)
    ended = {event.branch: event.answer for event in events if isinstance(event, Done)}
    assert sorted(ended) == [1, 2]
    assert same([ended[1], ended[2]], whole[1:])


def test_half_precision_answers(reference):
    half = onnx_engine(exported("fp16", 23))
    assert half.info.dtype == "fp16"
    pairs = [
        (a, b)
        for first in range(0, 40, 4)
        for a, b in zip(
            *(answers(e, asked(COMPLETION, OPTIONS, windows=(window(first),))) for e in (half, reference)),
            strict=True,
        )
    ]
    assert sum(a.answer == b.answer for a, b in pairs) >= 0.9 * len(pairs)


def test_the_loader_makes_it_and_says_which_model_answers():
    engine = load_engine(EngineSpec(str(exported()), kind="onnx", warm_up=False, threads=1))
    assert engine.info.model_id == "nano"
    assert engine.info.engine == "onnx"
    assert engine.info.digest == read_manifest(exported()).model_digest
    engine.close()
    engine.close()
    (event,) = engine.answer(asked(FREE))
    assert event.error_code == ErrorCode.ENGINE_NOT_READY


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_is_refused_or_torch_taken_when_told(monkeypatch):
    said = []
    monkeypatch.setattr(loading._log, "warning", lambda text, *values: said.append(text % values))
    spec = EngineSpec(str(exported()), kind="tensorrt", warm_up=False, threads=1, dtype="float32")
    with pytest.raises(CosmosReasonError, match="needs a CUDA device") as refused:
        load_engine(spec)
    assert refused.value.code == ErrorCode.NOT_AVAILABLE
    engine = load_engine(dataclasses.replace(spec, fallback_dir=str(NANO)))
    assert engine.info.engine == "torch"
    (warning,) = said
    assert "Falling back" in warning


def test_a_folder_is_a_model_directory_with_its_frame_size():
    assert read_model_spec(exported()).frame_size == (112, 112)


def test_what_is_not_finite_stays_with_the_window_that_it_came_from(tmp_path):
    """Graphs see whole buffers: a NaN that is left in one would be in every later answer."""

    class Overflows(OnnxExecutor):
        on = True

        def run(self, part, inputs, outputs):
            super().run(part, inputs, outputs)
            if part == "vision" and self.on:
                outputs["features"].fill_(float("nan"))

    executor = Overflows(exported(), read_manifest(exported()))
    engine = onnx_engine(exported(), executor)
    events = list(engine.answer(asked(*QUERIES, windows=(window(0, 16),))))
    assert {event.error_code for event in events if isinstance(event, Failed)} == {ErrorCode.ENGINE_FAILED}
    executor.on = False
    request = asked(*QUERIES, windows=(window(20, 4),))
    assert same(answers(engine, request), answers(onnx_engine(exported()), request))


def test_features_of_windows_longer_than_the_models_are_kept():
    long = 80
    engine = load_engine(
        EngineSpec(str(exported()), kind="onnx", warm_up=False, threads=1, window_frames=long)
    )
    answers(engine, asked(OPTIONS, windows=(window(0, long),)))
    before = engine.statistics.vision_misses
    answers(engine, asked(OPTIONS, windows=(window(2, long),)))
    assert engine.statistics.vision_misses == before + 1


def test_a_device_that_is_none_is_named():
    with pytest.raises(CosmosReasonError, match="device must be") as refused:
        load_engine(EngineSpec(str(exported()), kind="onnx", device="gpu0", warm_up=False))
    assert refused.value.code == ErrorCode.INVALID_REQUEST


def test_a_question_that_is_too_long_fails_alone(engine, tmp_path):
    small = small_engine(tmp_path, max_own=320)
    whole = answers(small, asked(*QUERIES))
    running = small.answer(asked(*QUERIES))
    events = [next(running) for _ in range(3)]
    long = dataclasses.replace(FREE, think_tokens=300)
    beside = list(small.answer(asked(long, FREE)))
    events += list(running)
    ended = {event.branch: event.answer for event in events if isinstance(event, Done)}
    assert same([ended[branch] for branch in range(3)], whole)
    (failed,) = [event for event in beside if isinstance(event, Failed)]
    assert (failed.branch, failed.error_code) == (0, ErrorCode.QUESTION_TOO_LONG)
    most = int(re.search(r"at most (\d+) think_tokens", failed.error_msg)[1])
    assert [event.branch for event in beside if isinstance(event, Done)] == [1]
    assert len(answers(small, asked(dataclasses.replace(FREE, think_tokens=most)))) == 1
    (event,) = small.answer(asked(dataclasses.replace(FREE, think_tokens=most + 1)))
    assert event.error_code == ErrorCode.QUESTION_TOO_LONG


def test_what_failed_is_gone_before_its_fallback_is_loaded(monkeypatch):
    held = []

    def load(spec):
        if spec.kind == "torch":
            return held[0]()
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        raise RuntimeError("the driver is too old")

    monkeypatch.setattr(loading, "_load", load)
    spec = EngineSpec("export", kind="tensorrt")
    assert load_engine(dataclasses.replace(spec, fallback_dir="model")) is None
    with pytest.raises(RuntimeError, match="driver"):
        load_engine(spec)
