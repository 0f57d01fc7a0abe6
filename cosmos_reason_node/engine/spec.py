# SPDX-License-Identifier: Apache-2.0
"""What an engine process is told, and the states it goes through. Imports nothing heavy."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ..decision import DEFAULT_MIN_CONFIDENCE
from ..errors import ErrorCode
from ..types import ModelInfo


@dataclass(frozen=True)
class EngineSpec:
    """Which model to load and how to run it.

    Attributes:
        model_dir: local directory in Hugging Face format.
        kind: implementation; "torch", "tensorrt" and "onnx" (both on a folder that training.export has
            written), "remote".
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1".
        dtype: "auto" (float32 on cpu, bfloat16 on cuda), "float32", "bfloat16", "float16".
        quantize: weights of the language model's layers: "none", "int8", "int4" (torch).
        threads: CPU threads of the engine process; 0: one less than it may use, at least 1.
        mrope_time: "float" or "legacy_zero", see models/mrope.py.
        min_confidence: probability under which a verdict is UNKNOWN.
        default_think_tokens: thinking budget of queries that do not set one.
        max_prompt_tokens: bound on prompts, visual tokens included; 0: what the model's positions allow.
        window_frames: frames of the longest windows; 0: the model's. Visual features of as many are kept.
        refresh_every: approximate mode of sliding windows, see engine/prefix.py; 0: off (torch).
        max_active: requests that advance in turns; the rest wait. One interactive request more may advance.
        warm_up: run the self-test on a window of full size, so that the first request is not slower.
        niceness: added to the process's priority value, so that cameras are served before inference.
        fallback_dir: checkpoint that torch loads when the engine asked for cannot be had here; "": say so and
            end.
        remote_url: of an OpenAI-compatible server, "http://host:8000/v1" ("remote").
        remote_model: its name for the model; "": the only one it serves.
        remote_key_env: environment variable that holds the key; "": none.
        remote_video: how windows are sent, see remote.py.
    """

    model_dir: str
    kind: str = "torch"
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "none"
    threads: int = 0
    mrope_time: str = "float"
    min_confidence: float = DEFAULT_MIN_CONFIDENCE
    default_think_tokens: int = 0
    max_prompt_tokens: int = 0
    window_frames: int = 0
    refresh_every: int = 0
    max_active: int = 4
    warm_up: bool = True
    niceness: int = 5
    fallback_dir: str = ""
    remote_url: str = ""
    remote_model: str = ""
    remote_key_env: str = ""
    remote_video: str = "images"


class EngineState(enum.Enum):
    """State of the engine process as its host sees it."""

    STOPPED = "stopped"  # not started, or stopped by stop()
    LOADING = "loading"  # first start: process up, model loading and testing itself
    READY = "ready"  # accepts requests
    RESTARTING = "restarting"  # it died; waiting out the back-off or loading again
    FAILED = "failed"  # given up: the model cannot be loaded; start() tries again


@dataclass(frozen=True)
class EngineStatus:
    """A state with its circumstances.

    Attributes:
        state: the state.
        error_code: why the engine is not ready; NONE in STOPPED, LOADING and READY.
        error_msg: the same in words, with what to do.
        info: the loaded model; None before the first READY.
        max_prompt_tokens: most tokens of prompt a request may have; 0 before the first READY.
        pid: of the engine process; 0 when there is none.
        restarts: times the process was started again since start().
    """

    state: EngineState
    error_code: ErrorCode = ErrorCode.NONE
    error_msg: str = ""
    info: ModelInfo | None = None
    max_prompt_tokens: int = 0
    pid: int = 0
    restarts: int = 0


@dataclass(frozen=True)
class EngineStatistics:
    """Work of an engine process since it was loaded.

    Attributes:
        vision_hits: frame pairs of windows whose features were there already.
        vision_misses: frame pairs that were encoded.
        vision_bytes: features and frames kept, of the camera with the most.
        prefix_tokens_read: tokens of system text and video taken through the language model.
        prefix_tokens_reused: the same, found in a kept prefix.
        question_tokens: tokens of questions.
        decode_tokens: tokens of answers, forced ones included.
        decode_steps: passes through the language model, for however many branches.
        guessed_tokens: fed ahead of being chosen, see drafts.py.
        right_guesses: those of them that were then chosen.
        requests: ended.
        queue_s: sum of the times that they had waited before they began.
        queue_max_s: the longest of these.
    """

    vision_hits: int = 0
    vision_misses: int = 0
    vision_bytes: int = 0
    prefix_tokens_read: int = 0
    prefix_tokens_reused: int = 0
    question_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    requests: int = 0
    queue_s: float = 0.0
    queue_max_s: float = 0.0
