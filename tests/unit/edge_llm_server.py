# SPDX-License-Identifier: Apache-2.0
"""TensorRT Edge-LLM's own server in a thread, from its wheel, around a stand-in for its compiled runtime.

Real: the HTTP application, what it accepts and refuses, its media, messages, queue, streams and cancellation.
Stand-in: the compiled module, which needs TensorRT and a GPU; it keeps what reaches it, answers by a script.
"""

from __future__ import annotations

import enum
import importlib.util
import json
import math
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

PACKAGES = ("tensorrt_edgellm", "experimental", "fastapi", "uvicorn", "av")
_START_S = 30.0


def missing() -> str:
    """Why there is no server; "" when there can be one."""
    if all(importlib.util.find_spec(name) for name in PACKAGES):
        return ""
    return "no TensorRT Edge-LLM: pip install -r requirements/test-edge-llm.txt"


class Record:
    """Anything that the server fills in."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        self.args = args
        self.__dict__.update(fields)


FinishReason = enum.Enum("FinishReason", "NOT_FINISHED END_ID LENGTH CANCELLED ERROR STOP_WORDS")


class StreamChannel:
    """Pieces from the runtime's thread to the server's."""

    def __init__(self) -> None:
        self._chunks: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self._is_cancelled = threading.Event()

    create = classmethod(lambda cls: cls())

    def set_skip_special_tokens(self, skip: bool) -> None:
        self.skip_special_tokens = skip

    def push(self, chunk: Record) -> None:
        self._chunks.put(chunk)

    def wait_pop(self, timeout_ms: int) -> Record | None:
        try:
            return self._chunks.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            return None

    def is_finished(self) -> bool:
        return False

    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        self._is_cancelled.set()


class Runtime:
    """Answers by a script, a token a piece.

    Attributes:
        pieces: of text; ``pause_s`` before each.
        tops: likeliest tokens in place of the piece that is one of them.
        prompt_tokens: as reported; -1: not known.
        reason: of the end.
        fault: raised after the second piece; "" for none.
        requests: what reached it.
        cancelled: requests whose client went away.
    """

    def __init__(self) -> None:
        self.pieces = ("<think>\n\n", "</think>\n\n<answer>\n", "yes", "\n</answer>")
        self.tops = {"yes": math.log(0.8), "no": math.log(0.2), " the": -math.inf}
        self.prompt_tokens = 40
        self.reason = FinishReason.END_ID
        self.pause_s = 0.0
        self.fault = ""
        self.requests: list[Any] = []
        self.cancelled = 0

    def handle_request(self, request: Any) -> None:
        self.requests.append(request)
        (channel,) = request.stream_channels
        for number, text in enumerate(self.pieces):
            time.sleep(self.pause_s)
            if channel.is_cancelled():
                self.cancelled += 1
                return
            if self.fault and number == 2:
                raise RuntimeError(self.fault)
            # Other tokens are not among their likeliest, as one that a grammar forces need not be.
            tops = self.tops if text in self.tops else {"Sure": -0.1}
            entries = [
                Record(token_id=i, logprob=p, piece=t.encode()) for i, (t, p) in enumerate(tops.items())
            ]
            token = list(tops).index(text) if text in tops else 99
            channel.push(self._chunk(text, [token], [entries]))
        channel.push(self._chunk("", [], [], self.reason))

    def _chunk(self, text: str, tokens: list[int], logprobs: list[Any], reason: Any = None) -> Record:
        return Record(
            text=text,
            token_ids=tokens,
            logprobs=logprobs,
            prompt_token_count=self.prompt_tokens,
            finished=reason is not None,
            reason=reason,
        )

    def capture_decoding_cuda_graph(self) -> None:
        pass

    def has_draft_model(self) -> bool:
        return False


def _native(runtime: Runtime) -> Any:
    """The compiled module, as far as chat with images and video uses it."""
    module = mock.Mock()
    names = ("Message", "Request", "LLMGenerationRequest", "ContextCacheConfig", "ToolChoice")
    for name in (*names, "MessageContent", "GuidedDecodingParams"):
        setattr(module, name, Record)
    module.FinishReason, module.StreamChannel = FinishReason, StreamChannel
    module.SubmitError = None
    module.LLMRuntime = lambda *args: runtime
    module.validate_guided_decoding_params = lambda params: (True, "")
    module.load_video_from_array = lambda frames, fps, timestamps: Record(
        frames=len(frames), pixels=frames, fps=fps, timestamps=timestamps
    )
    module.load_image_from_bytes = lambda data: Record(data=data)
    return module


def _bundle(folder: Path, max_image_tokens: int) -> None:
    """Files of a built Qwen2.5-VL that the server reads; its engines are empty."""
    visual = folder / "visual"
    visual.mkdir(parents=True)
    sizes = {"max_input_len": 4608, "max_batch_size": 1, "max_kv_cache_capacity": 8192}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "builder_config": sizes}))
    tokens = {"min_image_tokens": 4, "max_image_tokens": max_image_tokens, "max_image_tokens_per_image": 256}
    (visual / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "builder_config": tokens}))
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    (visual / "preprocessor_config.json").write_text(json.dumps(patches))
    for engine in (folder / "llm.engine", visual / "visual.engine"):
        engine.touch()


@contextmanager
def served(folder: Path, max_image_tokens: int = 4096) -> Iterator[tuple[str, Runtime]]:
    """Base URL and the runtime behind it. ``folder``: an empty one of the test's."""
    import uvicorn
    from experimental.server.api.app import create_app
    from experimental.server.config import ApiConfig
    from experimental.server.runtime import engine, engine_build
    from experimental.server.runtime.engine_client import EngineClient

    runtime, built = Runtime(), folder / "bundle"
    _bundle(built, max_image_tokens)
    prepared = engine_build.PreparedModel(bundle_dir=str(built), model_dir=str(built))
    with (
        mock.patch.object(engine_build, "prepare_model", return_value=prepared),
        mock.patch.object(engine, "_import_runtime", return_value=_native(runtime)),
    ):
        application = create_app(EngineClient(engine.LLM("cosmos-reason"), ApiConfig()))
        server = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            until = time.monotonic() + _START_S
            while not server.started:
                if not thread.is_alive() or time.monotonic() > until:
                    raise RuntimeError("TensorRT Edge-LLM's server does not start")
                time.sleep(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}/v1", runtime
        finally:
            server.should_exit = True
            thread.join(_START_S)
