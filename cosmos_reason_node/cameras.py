# SPDX-License-Identifier: Apache-2.0
"""The cameras' windows and how fresh they are. Ages are in node time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .config import Config
from .errors import CosmosReasonError, ErrorCode
from .types import Frame, Window
from .window import TimeGrid, WindowBuffer


@dataclass
class _Camera:
    buffer: WindowBuffer
    topic: str
    shape: tuple[int, ...] = ()
    last_tick: int | None = None  # of the newest window
    taken_tick: int | None = None  # of the newest frame that ``arrived`` has given
    fresh_ns: int | None = None  # the earlier of the newest frame's capture and arrival
    arrived_ns: int = 0  # arrival of the newest frame
    ahead_ns: int = 0  # newest frame's capture minus its arrival
    bad_ns: int | None = None  # arrival of the last image that cannot be used
    bad_reason: str = ""
    lacking_ns: int | None = None  # since when there are frames, but not enough for a window
    resized_ns: int | None = None  # arrival of the last frame whose size was another than before


class CameraWindows:
    """One window buffer a camera.

    Args:
        config: settings with the model's defaults filled in.
        clock: node time, nanoseconds.
    """

    def __init__(self, config: Config, clock: Callable[[], int]) -> None:
        self._config = config
        self._clock = clock
        grid = TimeGrid.from_fps(config.fps)
        self._cameras = {
            name: _Camera(
                WindowBuffer(
                    name,
                    grid,
                    config.window_frames,
                    config.max_hold_s,
                    config.max_backward_s,
                    anchored=config.window_mode == "anchored",
                ),
                topic,
            )
            for name, topic in config.camera_topics.items()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def buffer(self, name: str) -> WindowBuffer:
        """Window buffer of camera ``name``; its ``offer`` decides about a frame before it is decoded."""
        return self._cameras[name].buffer

    def added(self, frame: Frame) -> int | None:
        """A sampled frame was put into its buffer.

        Returns:
            Last grid tick of the newest window when that has moved; else None.
        """
        camera = self._cameras[frame.camera]
        camera.arrived_ns = self._clock()
        if camera.shape and camera.shape != frame.image.shape:
            # The camera changed its size: frames of two sizes never share a window.
            camera.buffer.clear()
            camera.buffer.put(frame)
            camera.resized_ns = camera.arrived_ns
        camera.shape = frame.image.shape
        camera.ahead_ns = frame.stamp_ns - camera.arrived_ns
        camera.fresh_ns = min(frame.stamp_ns, camera.arrived_ns)
        window = camera.buffer.window(self._config.min_frames)
        if window is not None:
            camera.lacking_ns = None
        elif camera.lacking_ns is None:
            camera.lacking_ns = camera.arrived_ns
        last_tick = None if window is None else window.first_tick + len(window.frames) - 1
        moved = last_tick is not None and last_tick != camera.last_tick
        camera.last_tick = last_tick
        return last_tick if moved else None

    def arrived(self, name: str, last_tick: int) -> Window:
        """The frames of the newest window, ending at ``last_tick``, that this has not given before."""
        camera = self._cameras[name]
        before, camera.taken_tick = camera.taken_tick, last_tick
        window = camera.buffer.window(2)
        assert window is not None  # it has just moved
        count = len(window.frames)
        if before is not None and before < last_tick:
            count = min(count, last_tick - before)
        return dataclasses.replace(
            window, frames=window.frames[-count:], first_tick=last_tick + 1 - count, held=0, asked=count
        )

    def bad_image(self, name: str, reason: str) -> None:
        """An image of ``name`` arrived that cannot be used."""
        camera = self._cameras[name]
        camera.bad_ns = self._clock()
        camera.bad_reason = reason

    def clear(self) -> None:
        """Node time was set back: what the windows hold is no longer the recent past."""
        for camera in self._cameras.values():
            camera.buffer.clear()
            camera.buffer.counters.clock_jumps += 1
            camera.fresh_ns = camera.bad_ns = camera.lacking_ns = camera.resized_ns = None
            camera.last_tick = camera.taken_tick = None

    def ahead_s(self, name: str) -> float:
        """Seconds that the newest frame's stamp was ahead of node time when it came; negative: behind."""
        return self._cameras[name].ahead_ns / 1e9

    def newest(self, name: str) -> tuple[Window, ...]:
        """The newest window of ``name``, however old; empty when there is none."""
        window = self.buffer(name).window(self._config.min_frames)
        return () if window is None else (window,)

    def fresh(self, name: str, max_stale_s: float) -> Window:
        """The newest window of ``name``.

        Raises:
            CosmosReasonError: NO_FRAMES, STALE_FRAMES or BAD_IMAGE, with what to look at.
        """
        self.check_fresh(name, max_stale_s)
        window = self.buffer(name).window(self._config.min_frames)
        if window is None:
            raise self._no_window(name)
        return window

    def _no_window(self, name: str) -> CosmosReasonError:
        return CosmosReasonError(
            ErrorCode.NO_FRAMES,
            f"camera {name!r} has not given {self._config.min_frames} frames in a row yet: try again in "
            f"{self._config.min_frames / self._config.fps:.1f} s{self._why_waiting_may_not_help(name)}",
        )

    def _why_waiting_may_not_help(self, name: str) -> str:
        """For a camera that may be too slow for any window, or is two."""
        camera = self._cameras[name]
        if camera.resized_ns is not None and camera.resized_ns == camera.arrived_ns:
            return f"; its images change their size: does more than one camera publish {camera.topic}?"
        hole_s = camera.buffer.hole_ns / 1e9
        if not hole_s:
            return ""
        return (
            f"; its newest images came {hole_s:.1f} s apart, and max_hold_s bridges "
            f"{self._config.max_hold_s:g} s: raise it, or lower fps, for a camera that is so slow"
        )

    def check_fresh(self, name: str, max_stale_s: float) -> None:
        """Raise NO_FRAMES, STALE_FRAMES or BAD_IMAGE unless the newest image of ``name`` is recent.

        Also NO_FRAMES when images come, but for longer than ``max_stale_s`` have never made a window.
        """
        camera = self._cameras[name]
        age_s = self._age_s(camera)
        if age_s is not None and age_s <= max_stale_s:
            fill_s = max_stale_s + self._config.min_frames / self._config.fps
            if camera.lacking_ns is not None and self._clock() - camera.lacking_ns > fill_s * 1e9:
                raise self._no_window(name)
            return
        if camera.bad_ns is not None and (age_s is None or camera.bad_ns > camera.arrived_ns):
            raise CosmosReasonError(
                ErrorCode.BAD_IMAGE, f"images of camera {name!r} cannot be used: {camera.bad_reason}"
            )
        if age_s is None:
            raise CosmosReasonError(
                ErrorCode.NO_FRAMES,
                f"no image of camera {name!r} has arrived: is {camera.topic} published?",
            )
        raise CosmosReasonError(
            ErrorCode.STALE_FRAMES,
            f"the newest image of camera {name!r} is {age_s:.1f} s old by the node's clock (limit "
            f"{max_stale_s:g} s): is {camera.topic} still published, and is its clock in step?",
        )

    def _age_s(self, camera: _Camera) -> float | None:
        """Of the newest image, also of one between two frames: on a slow grid frames are rare."""
        fresh_ns, usable_ns = camera.fresh_ns, camera.buffer.usable_ns
        if fresh_ns is None:
            return None
        if usable_ns is not None:
            # By a clock that runs ahead of the node's: about when it arrived.
            fresh_ns = max(fresh_ns, usable_ns - max(0, camera.ahead_ns))
        return (self._clock() - fresh_ns) / 1e9
