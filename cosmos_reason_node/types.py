# SPDX-License-Identifier: Apache-2.0
"""The records that cross boundaries: frames, windows, queries, answers, decisions.

All are frozen. Times are integer nanoseconds: ``*_stamp_ns`` is capture time on the ROS clock (the camera
driver's ``header.stamp``); ``*_s`` are durations in seconds.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass, field

import numpy as np

from .errors import ErrorCode


class QueryKind(enum.IntEnum):
    """What is asked of a window. COMPLETION, AFFORDANCE and NEXT_ACTION are the paper's (section 3.2)."""

    QUESTION = 0  # any question in the user's own words
    COMPLETION = 1  # is the task complete?
    AFFORDANCE = 2  # is this action possible now?
    NEXT_ACTION = 3  # what is the next action?


class Verdict(enum.IntEnum):
    """The decision in one value. CHOICE: not a yes/no question; read ``answer`` and ``option_index``."""

    UNKNOWN = 0
    YES = 1
    NO = 2
    CHOICE = 3


class Source(enum.IntEnum):
    """Who asked."""

    MONITOR = 0
    SERVICE = 1
    ACTION = 2


@dataclass(frozen=True)
class Frame:
    """One sampled camera frame.

    Attributes:
        camera: name of the camera.
        stamp_ns: capture time.
        tick: index of the time-grid cell that holds ``stamp_ns`` (see window.TimeGrid).
        image: (H, W, 3) uint8 RGB, already at the model's frame size.
        frame_id: the message's tf frame, carried into the decision's header.
    """

    camera: str
    stamp_ns: int
    tick: int
    image: np.ndarray
    frame_id: str = ""


@dataclass(frozen=True)
class Window:
    """An even number of consecutive grid ticks of one camera, each filled with a frame; what the model sees.

    Attributes:
        camera: name of the camera.
        frames: oldest first. ``frames[i]`` fills tick ``first_tick + i``; a tick no camera frame fell into
            repeats the frame before it (so its ``tick`` is smaller), and ``held`` counts those.
        first_tick: index of the first tick; always even, so that pairs of frames (temporal patches) lie on
            one absolute grid whatever the window's start.
        period_ns: length of a tick.
        held: ticks filled by repetition.
        asked: number of frames a full window has; ``len(frames) < asked`` at start-up and after a reset.
    """

    camera: str
    frames: tuple[Frame, ...]
    first_tick: int
    period_ns: int
    held: int
    asked: int

    @property
    def start_ns(self) -> int:
        """Capture stamp of the oldest frame."""
        return self.frames[0].stamp_ns

    @property
    def end_ns(self) -> int:
        """Capture stamp of the newest frame: the moment the answer is about."""
        return self.frames[-1].stamp_ns

    @property
    def fps(self) -> float:
        """Frames per second on the grid."""
        return 1e9 / self.period_ns

    def pixels(self) -> np.ndarray:
        """Frames as one array, (T, H, W, 3) uint8 RGB."""
        return np.stack([frame.image for frame in self.frames])


@dataclass(frozen=True)
class Query:
    """A question about a window.

    Attributes:
        kind: which of the query kinds.
        task: what the robot is doing, in words ("open the drawer"). Needed by COMPLETION and NEXT_ACTION.
        action: the action whose possibility is asked (AFFORDANCE). Empty: the task itself.
        question: the user's own question (QUESTION).
        options: choices for a multiple-choice answer; empty for yes/no and free-form answers. At most 26.
        yes_no: for QUESTION without options: constrain the answer to yes or no.
        think_tokens: most tokens of reasoning before the answer; 0 answers at once; -1 takes the engine's
            default.
    """

    kind: QueryKind
    task: str = ""
    action: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    yes_no: bool = False
    think_tokens: int = -1


@dataclass(frozen=True)
class Answer:
    """What the model said to one query, parsed.

    Attributes:
        verdict: YES, NO or UNKNOWN for yes/no queries, else CHOICE (UNKNOWN when no option wins).
        answer: text inside <answer></answer>.
        option_index: index into ``Query.options``; -1 when there are none or none wins.
        confidence: probability in [0, 1] of the verdict (or option) token among the verdict (or option)
            tokens; for free-form answers the geometric mean probability of the answer's tokens.
        reasoning: text inside <think></think>.
        prompt_tokens, output_tokens: counts, the first including visual tokens.
        think_closed_by_budget: the reasoning was cut because ``think_tokens`` was spent.
        shares: calibrated probability of each choice (yes, no; or the options in order); () without a choice.
            Not compared: the last bits depend on what is computed beside it.
        token_ids: what was sampled, of answers without the grammar (engine.base.Request.free); () else.
        log_probs: of each of ``token_ids`` under the model at temperature 1, control tokens left out.
    """

    verdict: Verdict
    answer: str
    option_index: int
    confidence: float
    reasoning: str
    prompt_tokens: int
    output_tokens: int
    think_closed_by_budget: bool = False
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    shares: tuple[float, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class ModelInfo:
    """Which model answered.

    Attributes:
        model_id: name of the checkpoint directory or of the served model.
        digest: sha256 (hex) over weights, config and tokenizer files.
        prompt_id: digest of the prompt conventions (prompt.PROMPT_ID).
        engine: "torch", "tensorrt", "onnx" or "remote".
        device: e.g. "cpu", "cuda:0 (NVIDIA ...)".
        dtype: e.g. "float32".
    """

    model_id: str = ""
    digest: str = ""
    prompt_id: str = ""
    engine: str = ""
    device: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class Latency:
    """Where the time went, seconds; all but ``first_token_s`` add up to about the total.

    Attributes:
        window_s: newest frame's capture to the request being queued (transport, conversion, waiting for the
            pair).
        queue_s: queued to started by the engine.
        vision_s: preprocessing and vision tower.
        prefill_s: language model over system prompt, video and question.
        decode_s: reasoning and answer tokens.
        first_token_s: queued to the first output token.
    """

    window_s: float = 0.0
    queue_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0


@dataclass(frozen=True)
class Decision:
    """An answer tied to the moment it is about. Field meanings as in cosmos_reason_msgs/msg/Decision."""

    decision_id: str
    source: Source
    query: Query
    windows: tuple[Window, ...]
    answer: Answer | None
    model: ModelInfo
    latency: Latency
    published_ns: int
    valid_until_ns: int
    error_code: ErrorCode = ErrorCode.NONE
    error_msg: str = ""

    @property
    def stamp_ns(self) -> int:
        """Capture stamp of the newest frame the model saw; 0 when there was none."""
        return max((window.end_ns for window in self.windows), default=0)

    @property
    def age_s(self) -> float:
        """How old the newest frame was when the decision was published."""
        return (self.published_ns - self.stamp_ns) / 1e9 if self.windows else 0.0

    def with_error(self, code: ErrorCode, message: str) -> Decision:
        """The same decision, failed."""
        return dataclasses.replace(self, answer=None, error_code=code, error_msg=message)
