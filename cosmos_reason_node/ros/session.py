# SPDX-License-Identifier: Apache-2.0
"""What exists between activation and deactivation: cameras, pipeline, recorder, and how they are connected.

camera topics ─> Camera ─> window buffer ─> Pipeline <─> EngineHost
                   │ bytes                     │ Decision
                   └────> Recorder <───────────┴─> decisions (topic)
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import InvalidTopicNameException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.validate_full_topic_name import validate_full_topic_name

from ..config import Config
from ..deployment import bundled_model
from ..engine.host import EngineHost
from ..engine.loading import check_model_dir
from ..engine.spec import EngineSpec
from ..errors import CosmosReasonError, ErrorCode
from ..models.spec import ModelSpec, read_model_spec
from ..monitors import Task
from ..pipeline import Pipeline
from ..queries import check_task
from ..types import Decision, Verdict
from ..window import TimeGrid
from .camera import Camera
from .corrections import Corrections
from .executor import caught
from .messages import decision_msg
from .outlets import Outlets
from .recorder import DEFAULT_DIRECTORY, Recorder

_MIB = 1 << 20
# The folder that an engine needs as the model; only torch can do with the bundled checkpoint.
_EXPORTED = "the folder that training.export has written"
_MODEL_FOLDER = {
    "tensorrt": _EXPORTED,
    "onnx": _EXPORTED,
    "remote": "a folder with the configuration files of the checkpoint that the server serves (no weights)",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """Checked settings: nothing the model leaves open is open any more.

    Attributes:
        config: settings; fps, window_frames, model and record_dir are filled in.
        spec: the checkpoint's description.
    """

    config: Config
    spec: ModelSpec

    @classmethod
    def check(cls, config: Config) -> Setup:
        """Fill in and check everything that can be wrong before anything is started.

        Raises:
            CosmosReasonError: with what is wrong and what to do.
        """
        for name in ("model", "engine_fallback", "record_dir"):
            _check_home(name, getattr(config, name))
        if not config.model and config.engine in _MODEL_FOLDER:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"model is empty: engine {config.engine} needs {_MODEL_FOLDER[config.engine]}",
            )
        try:
            model = config.model or str(bundled_model())
        except FileNotFoundError as error:
            raise CosmosReasonError(ErrorCode.MODEL_NOT_FOUND, str(error)) from error
        spec = read_model_spec(model)
        check_model_dir(Path(model).expanduser(), config.engine, spec)
        config = dataclasses.replace(
            config,
            model=model,
            fps=config.fps or spec.fps,
            window_frames=config.window_frames or spec.window_frames,
            record_dir=_record_dir(config),
        )
        if config.min_frames > config.window_frames:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"min_frames ({config.min_frames}) is more than window_frames ({config.window_frames})",
            )
        if config.window_mode == "anchored" and config.min_frames > config.window_frames // 2:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"an anchored window starts anew with half of its {config.window_frames} frames: min_frames "
                f"({config.min_frames}) must not be more",
            )
        check_task(Task(config.task, config.affordance_action, config.action_options), config)
        return cls(config, spec)

    def with_live(self, config: Config) -> Setup:
        """The same with the live settings of ``config``; the others stay as they were checked."""
        live = [field.name for field in dataclasses.fields(config) if field.metadata["live"]]
        changed = {name: getattr(config, name) for name in live}
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **changed))

    def engine_spec(self) -> EngineSpec:
        """What the engine process is told."""
        config = self.config
        return EngineSpec(
            model_dir=config.model,
            kind=config.engine,
            device=config.device,
            dtype=config.dtype,
            quantize=config.quantize,
            # Of those it may use: under taskset or in a container there are fewer than the machine has.
            threads=config.threads or max(1, len(os.sched_getaffinity(0)) - 1),
            mrope_time=config.mrope_time,
            min_confidence=config.min_confidence,
            default_think_tokens=config.query_think_tokens,
            window_frames=config.window_frames,
            refresh_every=config.approximate_slide,
            fallback_dir=config.engine_fallback,
            remote_url=config.remote_url,
            remote_model=config.remote_model,
            remote_key_env=config.remote_key_env,
            remote_video=config.remote_video,
        )

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the frames made of a camera's images."""
        if self.config.frame_height:
            return self.config.frame_height, self.config.frame_width
        return self.spec.frame_size_for(height, width)


class Session:
    """One activation. Everything runs in the executor's thread.

    Args:
        node: owner of the subscriptions.
        setup: checked settings.
        host: the engine, ready.
        outlets: where decisions go.
        task: what the monitors ask about; None = as in the settings.
        before: a session that was handed over to this one; its recordings go on.

    Raises:
        CosmosReasonError: a message type's definition is not installed, which the recorder needs.
    """

    def __init__(
        self,
        node: Node,
        setup: Setup,
        host: EngineHost,
        outlets: Outlets,
        task: Task | None = None,
        before: Session | None = None,
    ) -> None:
        config = setup.config
        clock = node.get_clock()
        self.setup = setup
        self.host = host
        self._continued = before is not None
        self.recorder: Recorder = before.recorder if before else _recorder(node, config)
        self.recorder.sample(TimeGrid.from_fps(config.fps).period_ns)
        self.corrections: Corrections = before.corrections if before else Corrections(config.record_dir)
        self._node = node
        self._outlets = outlets
        # Who asked is answered also when a decision cannot be published.
        publish = caught(node, self._publish)
        self.pipeline = Pipeline(config, host, publish, lambda: clock.now().nanoseconds)
        if task is not None:
            self.pipeline.set_task(task)
        backward = Duration(nanoseconds=-max(1_000_000, round(config.max_backward_s * 1e9)))
        threshold = JumpThreshold(min_forward=None, min_backward=backward, on_clock_change=True)
        self._jumps = clock.create_jump_callback(threshold, post_callback=self._jumped)
        self.cameras: dict[str, Camera] = {}
        try:
            self._start(config)
        except BaseException:
            self.hand_over() if before else self.close()
            raise

    def set_task(self, task: Task) -> None:
        """Monitors ask about ``task``; CosmosReasonError when they cannot."""
        self.pipeline.set_task(task)
        self._node.get_logger().info(
            f"task: {task.text!r}" if task.text.strip() else "no task: monitors stop"
        )

    def capture(self, before_s: float, after_s: float, label: str) -> tuple[Path, float]:
        """Write a bag of the moments around now; negative times take the defaults.

        Returns:
            The bag, and how many seconds of the past it holds.
        """
        config = self.pipeline.config
        before_s = config.record_before_s if before_s < 0 else before_s
        reach_s = self.recorder.report().buffered_s
        path = self.recorder.capture(before_s, config.record_after_s if after_s < 0 else after_s, label)
        return path, min(before_s, reach_s)

    def correct(self, decision_id: str, verdict: Verdict, answer: str, note: str) -> tuple[Path | None, str]:
        """Keep an operator's label, and the images that it is about while they are in memory.

        Returns:
            The bag with the images, None when there is none of its own, and what became of them.

        Raises:
            CosmosReasonError: the label does not fit, or cannot be written.
        """
        known = self.corrections.correct(decision_id, verdict, answer, note)
        first = {self.cameras[camera].topic: stamp_ns for camera, stamp_ns in known.first}
        try:
            path = self.recorder.capture_corrected(first, known.published_s)
        except CosmosReasonError as error:
            self._node.get_logger().warning(
                f"the correction of {decision_id} is kept, its images are not captured: {error.message}"
            )
            return None, f"kept, images not captured: {error.message}"
        return path, f"kept, images in {path or 'the continuous recording'}"

    def update(self, config: Config) -> None:
        """Take over live settings."""
        self.pipeline.update(config)
        self.recorder.keep(_memory_s(config))

    def refresh(self) -> None:
        """Look after cameras and recordings; about once a second."""
        for camera in self.cameras.values():
            camera.refresh()
            # It may have subscribed anew, with another reliability.
            self.recorder.add_topic(camera.topic, camera.type, [camera.profile])
        self.recorder.tend()

    def close(self) -> None:
        """End all queries with NOT_ACTIVE, unsubscribe, finish the bags. The engine stays."""
        self._end(ErrorCode.NOT_ACTIVE, "the node was deactivated")
        self._outlets.record_with(None)
        self.recorder.close()

    def hand_over(self) -> None:
        """End all queries with CANCELED and unsubscribe; the next session goes on with the recorder."""
        self._end(ErrorCode.CANCELED, "the model was replaced meanwhile: ask again")

    def _end(self, code: ErrorCode, message: str) -> None:
        self._jumps.unregister()
        for camera in self.cameras.values():
            camera.close()
        self.cameras.clear()
        self.pipeline.close(code, message)

    def _start(self, config: Config) -> None:
        self._outlets.record_with(self.recorder)
        if config.record_continuous and not self._continued:
            self.recorder.start_continuous(config.record_split_s)
        for name, topic in config.camera_topics.items():
            camera = Camera(
                self._node,
                name,
                topic,
                self.pipeline.buffer(name),
                self.setup.frame_size,
                reliability=config.qos_reliability,
                depth=config.qos_depth,
                on_frame=caught(self._node, self.pipeline.frame_added),
                on_bad_image=self.pipeline.bad_image,
                tap=self.recorder.record,
            )
            self.cameras[name] = camera
            self.recorder.add_topic(camera.topic, camera.type, [camera.profile])  # no message came yet

    def _publish(self, decision: Decision) -> None:
        self.corrections.add(decision)
        self._outlets.publish_decision(decision_msg(decision))
        if self.setup.config.debug_image:
            self._outlets.publish_debug_image(decision)

    def _jumped(self, jump: TimeJump) -> None:
        self._node.get_logger().warning(
            f"the node's clock was set by {jump.delta.nanoseconds / 1e9:+.3f} s: windows start anew"
        )
        self.pipeline.clock_jumped()


def _memory_s(config: Config) -> float:
    """How far the past in memory reaches: capture writes record_before_s of it by default."""
    return max(config.record_memory_s, config.record_before_s)


def _recorder(node: Node, config: Config) -> Recorder:
    return Recorder(
        config.record_dir,
        keep_s=_memory_s(config),
        buffer_bytes=config.record_buffer_mb * _MIB,
        budget_bytes=config.record_budget_mb * _MIB,
        now_ns=lambda: node.get_clock().now().nanoseconds,
        warn=lambda text: node.get_logger().warning(f"recorder: {text}"),
    )


def check_topics(node: Node, config: Config) -> None:
    """Refuse camera topics that ROS would refuse later, and one topic under two names or spellings.

    Raises:
        CosmosReasonError: INVALID_REQUEST.
    """
    taken: dict[str, str] = {}
    for name, topic in config.camera_topics.items():
        try:
            full = expand_topic_name(topic, node.get_name(), node.get_namespace())
            validate_full_topic_name(full)
        except (InvalidTopicNameException, ValueError) as error:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, f"the topic of camera {name!r} is not a topic name: {error}"
            ) from error
        resolved = node.resolve_topic_name(topic)
        if resolved in taken:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"cameras {taken[resolved]!r} and {name!r} have one topic, {resolved}: name it once",
            )
        taken[resolved] = name


def _check_home(name: str, path: str) -> None:
    """Refuse ``~somebody/...`` of somebody whom this machine does not know."""
    try:
        Path(path).expanduser()
    except RuntimeError as error:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"{name} {path!r} begins with the home of a user who is not known here; write the whole path",
        ) from error


def _record_dir(config: Config) -> str:
    """The directory for bags, which can be written when the user has named it or records all the time."""
    path = Path(config.record_dir or DEFAULT_DIRECTORY).expanduser()
    if config.record_dir or config.record_continuous:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CosmosReasonError(
                ErrorCode.RECORDING_FAILED, f"record_dir {str(path)!r} cannot be made: {error}"
            ) from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise CosmosReasonError(
                ErrorCode.RECORDING_FAILED,
                f"record_dir {str(path)!r} cannot be written: choose another or change its permissions",
            )
    return str(path)
