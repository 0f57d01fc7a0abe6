# SPDX-License-Identifier: Apache-2.0
"""A script's world under MuJoCo: run, recorded, looked at.

A frame of the clip is ``Script.frame_s`` of simulated time, played as 1/4 s: slow motion, as the robot
episodes are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import mujoco
import numpy as np

from cosmos_reason_node.vision.resize import resize

from ..look import Split
from .canvas import Canvas
from .clip import FRAME_SIDE, Clip
from .mjcf import RENDER_SIDE, STEP_S, xml
from .palette import surroundings
from .script import CLIP_FRAMES, Script, View


@dataclass
class _Recording:
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, **values: np.ndarray) -> None:
        for name, value in values.items():
            self.rows.setdefault(name, []).append(value)


class World:
    """A script's world.

    Args:
        script: what happens.
        split: where looks are drawn from.
        rng: source of looks.
        render: whether frames are wanted.
    """

    def __init__(
        self, script: Script, split: Split, rng: np.random.Generator, *, render: bool = True
    ) -> None:
        self.script = script
        look = surroundings(split, rng)
        self.model = mujoco.MjModel.from_xml_string(xml(script, look, split, rng))
        self.data = mujoco.MjData(self.model)
        self.present = np.ones(len(script.things), bool)
        self._bodies = np.array([self.model.body(f"thing{i}").id for i in range(len(script.things))])
        self._thing_of_geom = np.full(self.model.ngeom, -1)
        for i, body in enumerate(self._bodies):
            self._thing_of_geom[self.model.geom_bodyid == body] = i
        self._table = self.model.geom("table").id
        self._start()
        self._canvas = Canvas(self.model, RENDER_SIDE) if render else None

    def _start(self) -> None:
        for i, thing in enumerate(self.script.things):
            if thing.motion != "free":
                continue
            address = self.model.jnt_dofadr[self.model.body_jntadr[self._bodies[i]]]
            velocity = np.array(thing.velocity)
            self.data.qvel[address : address + 3] = velocity
            if thing.kind == "ball" and thing.rolls:
                rolling = np.cross([0.0, 0.0, 1.0], velocity) / thing.half[0]
                turned = np.zeros(3)  # angular velocity of a free joint is in the body's frame
                inverse = np.zeros(4)
                mujoco.mju_negQuat(inverse, self.model.body_quat[self._bodies[i]])
                mujoco.mju_rotVecQuat(turned, rolling, inverse)
                self.data.qvel[address + 3 : address + 6] = turned
        mujoco.mj_forward(self.model, self.data)

    def index(self, name: str) -> int:
        """Index of a thing by its name."""
        return [thing.name for thing in self.script.things].index(name)

    def drive(self, index: int, place: float, speed: float) -> None:
        """Put a driven thing at ``place`` (m or rad along its axis) at ``speed``: nothing can stop it."""
        joint = self.model.body_jntadr[self._bodies[index]]
        self.data.qpos[self.model.jnt_qposadr[joint]] = place
        self.data.qvel[self.model.jnt_dofadr[joint]] = speed

    def push(self, index: int, acceleration: tuple[float, float, float]) -> None:
        """An outside force on a free thing, as the acceleration it causes (m/s^2); holds until changed."""
        body = self._bodies[index]
        self.data.xfrc_applied[body, :3] = self.model.body_mass[body] * np.array(acceleration)

    def put(self, index: int, shift: np.ndarray) -> None:
        """Move a free thing by (3,) metres at once."""
        address = self.model.jnt_qposadr[self.model.body_jntadr[self._bodies[index]]]
        self.data.qpos[address : address + 3] += shift
        mujoco.mj_forward(self.model, self.data)

    def remove(self, index: int) -> None:
        """Take a thing away for good: it is neither drawn nor touched any more."""
        self.present[index] = False
        mine = self._thing_of_geom == index
        self.model.geom_rgba[mine, 3] = 0.0
        self.model.geom_contype[mine] = 0
        self.model.geom_conaffinity[mine] = 0

    def hidden_behind(self, index: int, screen: int, view: View, margin: float = 1.15) -> bool:
        """Whether all of a thing's bounding box, grown by ``margin``, lies in the shadow of a convex thing.

        The shadow of a convex body from a point is convex, so testing the corners decides it exactly.
        """
        return all(
            self._first_hit(view.eye(), corner, index) == screen for corner in self._corners(index, margin)
        )

    def _corners(self, index: int, scale: float) -> np.ndarray:
        """(8, 3) corners of a thing's bounding box, scaled about its centre."""
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
        corners = signs * np.array(self.script.things[index].half) * scale
        turn = self.data.xmat[self._bodies[index]].reshape(3, 3)
        return self.data.xpos[self._bodies[index]] + corners @ turn.T

    def _first_hit(self, eye: np.ndarray, point: np.ndarray, own: int) -> int:
        """Index of the thing that hides ``point`` from ``eye``; -1 for other geoms, -2 when nothing does."""
        ray = point - eye
        geom = np.zeros(1, np.int32)
        share = mujoco.mj_ray(self.model, self.data, eye, ray, None, 1, int(self._bodies[own]), geom)
        if share < 0 or share > 0.99:
            return -2
        return int(self._thing_of_geom[geom[0]])

    def _seen(self, index: int, view: View) -> float:
        """Share of a thing's corners and centre (or of its place) in the picture with nothing in front."""
        points = np.vstack([self._corners(index, 0.85), self.data.xpos[self._bodies[index]]])
        pixel, depth = view.project(points)
        inside = (pixel > 1.0).all(1) & (pixel < FRAME_SIDE - 1.0).all(1) & (depth > 0)
        eye = view.eye()
        clear = [
            ok and self._first_hit(eye, point, index) == -2 for ok, point in zip(inside, points, strict=True)
        ]
        return float(np.mean(clear))

    def run(self, frames: int = CLIP_FRAMES) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Run the script.

        Returns:
            (F, 112, 112, 3) frames, empty without rendering, and the arrays of Clip's per-frame attributes.
        """
        script = self.script
        steps = max(1, round(script.frame_s / STEP_S))
        count = len(script.things)
        recording = _Recording()
        pictures: list[np.ndarray] = []
        touch, landed = np.zeros((count, count), bool), np.zeros(count, bool)
        for frame in range(frames):
            view = script.view(frame / (frames - 1))
            script.at_frame(self, frame, self.data.time)
            self._record(recording, view, touch, landed)
            if self._canvas is not None:
                pictures.append(self.picture(view))
            touch, landed = np.zeros((count, count), bool), np.zeros(count, bool)
            for _ in range(steps):
                script.control(self, frame, self.data.time)
                mujoco.mj_step(self.model, self.data)
                self._contacts(touch, landed)
        empty = np.zeros((0, FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
        return (np.stack(pictures) if pictures else empty), {
            k: np.stack(v) for k, v in recording.rows.items()
        }

    def _record(self, recording: _Recording, view: View, touch: np.ndarray, landed: np.ndarray) -> None:
        position = self.data.xpos[self._bodies].astype(np.float32)
        pixel, depth = view.project(position)
        recording.add(
            position=position,
            up=self.data.xmat[self._bodies, 8].astype(np.float32),
            present=self.present.copy(),
            seen=np.array([self._seen(i, view) for i in range(len(self._bodies))], np.float32),
            pixel=pixel.astype(np.float32),
            depth=depth.astype(np.float32),
            touch=touch,
            landed=landed,
            camera=np.array([view.azimuth, view.elevation, view.distance, *view.look_at], np.float32),
        )

    def _contacts(self, touch: np.ndarray, landed: np.ndarray) -> None:
        if not self.data.ncon:
            return
        for first, second in self.data.contact.geom[: self.data.ncon]:
            a, b = self._thing_of_geom[first], self._thing_of_geom[second]
            if a >= 0 and b >= 0:
                touch[a, b] = touch[b, a] = True
            elif self._table in (first, second):
                landed[max(a, b)] = True

    def _look(self, view: View) -> tuple[Canvas, mujoco.MjvCamera]:
        if self._canvas is None:
            raise RuntimeError("this world was made with render=False")
        camera = mujoco.MjvCamera()
        camera.azimuth, camera.elevation, camera.distance = view.azimuth, view.elevation, view.distance
        camera.lookat[:] = view.look_at
        return self._canvas, camera

    def picture(self, view: View) -> np.ndarray:
        """(112, 112, 3) uint8 RGB."""
        canvas, camera = self._look(view)
        return resize(canvas.picture(self.data, camera), (FRAME_SIDE, FRAME_SIDE))

    def visible_pixels(self, view: View) -> np.ndarray:
        """(N,) pixels of the picture (before it is averaged down) that show each thing, by segmentation."""
        canvas, camera = self._look(view)
        geoms = canvas.geoms(self.data, camera)
        things = np.where(geoms >= 0, self._thing_of_geom[geoms], -1)
        return np.array([np.count_nonzero(things == i) for i in range(len(self._bodies))])

    def close(self) -> None:
        """Free the pictures' buffers."""
        if self._canvas is not None:
            self._canvas.close()


def make_clip(
    seed: int, split: Split, scene: str, plan: str, script: Script, rng: np.random.Generator, *, render: bool
) -> Clip:
    """Run a script and keep what came of it."""
    world = World(script, split, rng, render=render)
    try:
        frames, arrays = world.run()
    finally:
        world.close()
    things = script.things
    return Clip(
        seed=seed,
        split=split,
        scene=scene,
        plan=plan,
        variant="recorded",
        release=script.release,
        tiles=np.full(4, -1),
        frames=frames,
        names=np.array([thing.name for thing in things]),
        kinds=np.array([thing.kind for thing in things]),
        colours=np.array([thing.colour for thing in things]),
        heavy=np.array([thing.mass for thing in things], np.float32),
        half=np.array([thing.half for thing in things], np.float32),
        **arrays,
    )
