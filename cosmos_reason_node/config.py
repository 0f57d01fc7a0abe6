# SPDX-License-Identifier: Apache-2.0
"""Settings of the node: the only schema.

One frozen dataclass; every field carries its meaning and bounds as metadata. ROS parameters
(``ros/parameters.py``), the table in the documentation and the checks below are all derived from it, so a
parameter cannot be declared and then ignored, nor documented and not exist. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import CosmosReasonError, ErrorCode

MONITORS = ("completion", "affordance", "next_action")
_CAMERA_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    live: bool = False,
) -> Any:
    """A documented, bounded field. ``live``: may change while the node is active."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": tuple(choices), "live": live}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """All settings. A default of 0 for a model-dependent setting takes the checkpoint's own value."""

    # Cameras
    cameras: tuple[str, ...] = setting(
        ("camera=image_raw",),
        "Cameras as name=topic. Topics that end in /compressed carry sensor_msgs/CompressedImage, others "
        "sensor_msgs/Image.",
    )
    qos_reliability: str = setting(
        "auto",
        "Reliability of camera subscriptions; auto matches the publisher.",
        choices=("auto", "best_effort", "reliable"),
    )
    qos_depth: int = setting(
        8, "Images kept by the middleware per camera while the node is busy.", low=1, high=100
    )

    # Model and engine
    model: str = setting(
        "",
        "Directory of the checkpoint (Hugging Face layout, safetensors); empty = the bundled nano, which "
        "knows one simulated scene (engine torch only).",
    )
    engine: str = setting(
        "torch",
        "Which engine runs the model. tensorrt and onnx take a folder that training.export has written as "
        "the model, remote asks the server of remote_url.",
        choices=("torch", "tensorrt", "onnx", "remote"),
    )
    engine_fallback: str = setting(
        "",
        "Checkpoint that engine torch loads when the engine asked for cannot run here; empty = do not fall "
        "back.",
    )
    remote_url: str = setting("", "Base URL of an OpenAI-compatible server, with /v1 (engine remote).")
    remote_model: str = setting("", "The server's name for the model; empty = the only one it serves.")
    remote_key_env: str = setting("", "Environment variable that holds the server's key; empty = no key.")
    remote_video: str = setting(
        "images",
        "How the server is asked: images (frames one by one, any server), video (one JPEG sequence, as vLLM "
        "takes it), edge_llm (one exact clip and a grammar, as TensorRT Edge-LLM takes them).",
        choices=("images", "video", "edge_llm"),
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    dtype: str = setting(
        "auto",
        "Weights and activations; auto is float32 on CPU, bfloat16 on CUDA.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantize: str = setting(
        "none",
        "Weights of the language model's layers (engine torch): int8 halves them, int4 (CUDA, bfloat16) "
        "quarters them; needs requirements/quantize.txt.",
        choices=("none", "int8", "int4"),
    )
    threads: int = setting(
        0,
        "CPU threads of the engine process; 0 = one less than it may use cores, at least 1.",
        low=0,
        high=256,
    )
    mrope_time: str = setting(
        "float",
        "Temporal position ids: float follows the paper's formula, legacy_zero reproduces transformers "
        "before 5.",
        choices=("float", "legacy_zero"),
    )
    load_timeout_s: float = setting(
        600.0, "Longest time for loading and warming up the model, seconds.", low=1.0, high=7200.0
    )
    step_timeout_s: float = setting(
        120.0,
        "A single step of the engine that takes longer is taken for a hang: the process is restarted. "
        "Seconds.",
        low=1.0,
        high=3600.0,
    )

    # Window
    fps: float = setting(
        0.0, "Frames per second of the window's time grid; 0 = the model's.", low=0.0, high=60.0
    )
    window_frames: int = setting(0, "Frames of a full window, even; 0 = the model's.", low=0, high=128)
    window_mode: str = setting(
        "sliding",
        "sliding: the newest window_frames frames. anchored: the window starts at a fixed point and grows up "
        "to window_frames, then starts anew with its newer half; only what it grows by is computed.",
        choices=("sliding", "anchored"),
    )
    encode_ahead: bool = setting(
        True,
        "Compute the visual features of a pair of frames when it arrives, not when a query comes.",
    )
    approximate_slide: int = setting(
        0,
        "Approximate mode (engine torch): read a sliding video whole only every so many windows, and move "
        "what is kept of it in between; 0 = exact. Measure what it costs first: training.eval --slide.",
        low=0,
        high=64,
    )
    min_frames: int = setting(2, "Fewest frames to answer from (start-up, after a reset).", low=2, high=128)
    frame_width: int = setting(
        0, "Frame width given to the model, pixels, multiple of 28; 0 = the model's.", low=0, high=1792
    )
    frame_height: int = setting(
        0, "Frame height given to the model, pixels, multiple of 28; 0 = the model's.", low=0, high=1792
    )
    max_hold_s: float = setting(
        1.0,
        "Longest hole in a camera's stream that is bridged by repeating a frame, seconds; longer ones "
        "restart the window.",
        low=0.0,
        high=60.0,
    )
    max_backward_s: float = setting(
        1.0,
        "Stamps older than the newest by at most this are dropped; beyond it the clock has jumped. Seconds.",
        low=0.0,
        high=60.0,
    )

    # What is asked
    task: str = setting("", "Task at start-up; see the set_task service.")
    affordance_action: str = setting("", "Action of the affordance monitor; empty = the task.")
    action_options: tuple[str, ...] = setting((), "Choices of the next-action monitor; empty = free-form.")
    monitors: tuple[str, ...] = setting(
        MONITORS, "Queries asked continuously while there is a task; may be empty.", choices=MONITORS
    )
    monitor_stride: int = setting(
        2,
        "Ask again once the window has moved by this many frames, even. Windows the engine has no time for "
        "are superseded.",
        low=2,
        high=128,
    )
    monitor_think_tokens: int = setting(
        64, "Most reasoning tokens of a monitor's answer; 0 = answer at once.", low=0, high=4096, live=True
    )
    monitors_at_once: tuple[str, ...] = setting(
        (),
        "Monitors that answer without reasoning, whatever monitor_think_tokens is: small models answer some "
        "questions better so, and all models sooner.",
        choices=MONITORS,
    )
    query_think_tokens: int = setting(
        512,
        "Most reasoning tokens of a service or action query that does not say.",
        low=0,
        high=4096,
        live=True,
    )
    max_answer_tokens: int = setting(48, "Most tokens of a free-form answer.", low=1, high=1024, live=True)
    option_orders: int = setting(
        1,
        "Ask about options under this many orders of them and average their probabilities, so that no place "
        "in the list is favoured.",
        low=1,
        high=26,
        live=True,
    )
    min_confidence: float = setting(
        0.55,
        "A yes or no of lower probability becomes UNKNOWN; options need the same share above chance.",
        low=0.0,
        high=1.0,
    )
    temperature: float = setting(0.0, "Sampling temperature; 0 = greedy.", low=0.0, high=2.0, live=True)
    top_p: float = setting(0.95, "Nucleus mass when sampling.", low=0.01, high=1.0, live=True)
    seed: int = setting(0, "Seed of sampling.", low=0, high=2**31 - 1, live=True)
    deadline_s: float = setting(
        30.0, "Deadline of a query that does not say, seconds.", low=0.1, high=3600.0, live=True
    )
    max_queries: int = setting(
        8, "Service and action queries that may wait; more are refused as BUSY.", low=1, high=1000
    )
    max_stale_s: float = setting(
        2.0,
        "A camera whose newest image is older than this is not answered from (STALE_FRAMES), seconds.",
        low=0.05,
        high=3600.0,
        live=True,
    )
    valid_for_s: float = setting(
        5.0,
        "A decision's valid_until is this long after its newest frame, seconds.",
        low=0.0,
        high=3600.0,
        live=True,
    )
    debug_image: bool = setting(False, "Publish debug_image/compressed: the newest window with the verdicts.")

    # Recording
    record_dir: str = setting("", "Directory for bags; empty = ~/.ros/cosmos_reason.")
    record_continuous: bool = setting(
        False,
        "Record cameras and decisions all the time, as bags of record_split_s. When it stops (disk full), it "
        "goes on by itself once there is room.",
    )
    record_memory_s: float = setting(
        60.0,
        "How far the past in memory reaches, seconds, as far as record_buffer_mb allows: what capture and "
        "correct can still write. At least record_before_s.",
        low=0.0,
        high=600.0,
        live=True,
    )
    record_before_s: float = setting(
        10.0, "Past that capture writes by default, seconds.", low=0.0, high=600.0, live=True
    )
    record_after_s: float = setting(
        5.0, "Future that capture writes by default, seconds.", low=0.0, high=600.0, live=True
    )
    record_split_s: float = setting(
        300.0, "Length of a bag of the continuous recording, seconds.", low=1.0, high=86400.0
    )
    record_buffer_mb: int = setting(
        256,
        "Memory for the past of all cameras together, MiB. When it is short, the oldest images go first; the "
        "second half of it holds, farther back, the images that the model samples.",
        low=0,
        high=65536,
    )
    record_budget_mb: int = setting(
        4096,
        "Disk for all bags in record_dir, MiB; recording stops at it, nothing is deleted.",
        low=1,
        high=16777216,
    )

    # Node
    autostart: bool = setting(
        True, "Configure and activate at start-up; false leaves it to a lifecycle manager."
    )
    status_period_s: float = setting(1.0, "Period of status and diagnostics, seconds.", low=0.1, high=60.0)

    def __post_init__(self) -> None:
        """Check every bound and every rule between fields; all problems are named at once."""
        problems = [*self._bound_problems(), *self._rule_problems()]
        if problems:
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "bad settings: " + "; ".join(problems))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Config:
        """Build from plain values (lists for tuples); unknown names are an error."""
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - names)
        if unknown:
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, f"unknown settings: {', '.join(unknown)}")
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items()
        }
        return cls(**fields)

    @property
    def camera_topics(self) -> dict[str, str]:
        """Camera name -> topic, in order."""
        return dict(entry.split("=", 1) for entry in self.cameras)

    def _bound_problems(self) -> list[str]:
        problems = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            low, high, choices = (f.metadata[key] for key in ("low", "high", "choices"))
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{f.name} is {value}")
            elif low is not None and not low <= value <= high:
                problems.append(f"{f.name} must be between {low} and {high}, not {value}")
            elif choices:
                wrong = [v for v in (value if isinstance(value, tuple) else (value,)) if v not in choices]
                if wrong:
                    problems.append(
                        f"{f.name} must be of {', '.join(choices)}, not {', '.join(map(str, wrong))}"
                    )
        return problems

    def _rule_problems(self) -> list[str]:
        problems = []
        for name in ("window_frames", "monitor_stride", "min_frames"):
            if getattr(self, name) % 2:
                problems.append(f"{name} must be even (frames come in pairs), not {getattr(self, name)}")
        for name in ("frame_width", "frame_height"):
            if getattr(self, name) % 28:
                problems.append(
                    f"{name} must be a multiple of 28 (patch 14, merged 2x2), not {getattr(self, name)}"
                )
        if (self.frame_width == 0) != (self.frame_height == 0):
            problems.append("frame_width and frame_height must be given together")
        if 0 < self.fps < 0.1:
            problems.append(f"fps must be 0 or at least 0.1, not {self.fps}")
        if not self.cameras:
            problems.append("cameras is empty")
        seen: dict[str, str] = {}
        for entry in self.cameras:
            name, _, topic = entry.partition("=")
            if not _CAMERA_NAME.match(name) or not topic:
                problems.append(f"camera {entry!r} is not name=topic (the name of letters, digits and _)")
            elif name in seen:
                problems.append(f"camera name {name!r} is used twice")
            elif topic in seen.values():
                other = next(first for first, taken in seen.items() if taken == topic)
                problems.append(f"cameras {other!r} and {name!r} have one topic, {topic}: name it once")
            seen[name] = topic
        if len(self.action_options) == 1:
            problems.append("action_options needs at least two choices, or none")
        if not re.match(r"(auto|cpu|cuda(:\d+)?)\Z", self.device):
            problems.append(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        return problems
