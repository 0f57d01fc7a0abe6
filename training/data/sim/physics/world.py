# SPDX-License-Identifier: Apache-2.0
"""A table top under MuJoCo, built from a script, run and recorded.

Legend: positions are (x, y, z) in metres, z is 0 on the table's top; camera angles as in MuJoCo's free camera
(azimuth 90 looks along +y). A frame of the clip is ``Script.frame_s`` of simulated time, played as 1/4 s:
slow motion, as the robot episodes are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mujoco
import numpy as np

from cosmos_reason_node.vision.resize import resize

from ..look import Split
from .canvas import Canvas
from .clip import FRAME_SIDE, Clip
from .palette import DISTRACTOR_SHAPES, Rgb, Surroundings, dull, surroundings

CLIP_FRAMES = 16
STEP_S = 0.002
FOV_DEG = 45.0  # vertical; pictures are square
RENDER_SIDE = 2 * FRAME_SIDE  # averaged down: antialiasing without a multisample buffer
_GROUND_M = -0.45  # floor below the table top
# Positive: of a hard contact, seconds and damping ratio.
_HARD = "0.005 1"
_SPRING = 40000.0  # 1/s^2: stiffness of bouncing contacts, which then last about 16 ms


@dataclass(frozen=True)
class View:
    """Where the camera is: degrees, degrees, metres, point looked at (metres)."""

    azimuth: float
    elevation: float
    distance: float
    look_at: tuple[float, float, float]

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(3,) unit vectors: forward, right, up."""
        azimuth, elevation = np.radians(self.azimuth), np.radians(self.elevation)
        forward = np.array(
            [
                np.cos(elevation) * np.cos(azimuth),
                np.cos(elevation) * np.sin(azimuth),
                np.sin(elevation),
            ]
        )
        right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
        return forward, right, np.cross(right, forward)

    def eye(self) -> np.ndarray:
        """(3,) position of the camera."""
        return np.array(self.look_at) - self.distance * self.axes()[0]

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image positions (..., 2), in pixels of a frame, and depths (...) of (..., 3) points."""
        forward, right, up = self.axes()
        rays = points - self.eye()
        depth = rays @ forward
        scale = 0.5 * FRAME_SIDE / np.tan(np.radians(FOV_DEG) / 2.0) / np.maximum(depth, 1e-6)
        pixel = 0.5 * FRAME_SIDE + np.stack([rays @ right * scale, -(rays @ up) * scale], axis=-1)
        return pixel, depth


@dataclass(frozen=True)
class Part:
    """One geom of a thing: MuJoCo type, size, place and turn (degrees about x, y, z) in the thing's frame."""

    shape: str
    size: tuple[float, ...]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Something on the table that questions may name.

    Attributes:
        name: in words, unique.
        kind: its noun.
        colour: name of its colour; "" without.
        rgb: its colour.
        half: half extents at rest, metres.
        at: position of its centre.
        parts: its geoms; empty: one, of the shape that its kind names.
        yaw: turn about the vertical, degrees.
        motion: "free", "fixed", "slide" (driven along ``axis``) or "hinge" (driven about ``axis``).
        axis: of "slide" and "hinge", in the thing's frame.
        velocity: (m/s) at the start, of a free thing.
        rolls: a ball with ``velocity`` starts rolling rather than sliding.
        mass: kilograms.
        friction: sliding friction coefficient.
        bounce: share of speed kept by a bounce; None: it does not bounce.
        ghost: touches nothing.
        slick: slides along others without friction.
    """

    name: str
    kind: str
    colour: str
    rgb: Rgb
    half: tuple[float, float, float]
    at: tuple[float, float, float]
    parts: tuple[Part, ...] = ()
    yaw: float = 0.0
    motion: str = "free"
    axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rolls: bool = True
    mass: float = 0.2
    friction: float = 0.6
    bounce: float | None = None
    ghost: bool = False
    slick: bool = False

    def geoms(self) -> tuple[Part, ...]:
        """Its geoms."""
        if self.parts:
            return self.parts
        if self.kind == "ball":
            return (Part("sphere", (self.half[0],)),)
        if self.kind == "can":
            return (Part("cylinder", (self.half[0], self.half[2])),)
        return (Part("box", self.half),)


Control = Callable[["World", int, float], None]


def _stay(world: World, frame: int, seconds: float) -> None:
    """No one does anything."""


@dataclass(frozen=True)
class Script:
    """What happens in a clip.

    Attributes:
        things: on the table; only these are recorded.
        view: camera at a moment in [0, 1] of the clip.
        frame_s: simulated seconds between two frames.
        control: called before every physics step with the world, the frame last taken and the time (s).
        at_frame: called before every frame is taken.
        release: see Clip.
        clear_m: distractors stay this far from the table's middle.
    """

    things: tuple[Thing, ...]
    view: Callable[[float], View]
    frame_s: float
    control: Control = _stay
    at_frame: Control = _stay
    release: int = -1
    clear_m: float = 0.40


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
        self.model = mujoco.MjModel.from_xml_string(_xml(script, look, split, rng))
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


def _numbers(*values: float) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _geom(part: Part, thing: Thing) -> str:
    bounce = ""
    if thing.bounce is not None:
        # Restitution of a damped spring: e = exp(-pi z / sqrt(1 - z^2)) with damping ratio z.
        log = -np.log(thing.bounce)
        damping = 2.0 * np.sqrt(_SPRING) * log / np.hypot(np.pi, log)
        bounce = f' priority="1" solref="{_numbers(-_SPRING, -damping)}"'
    mass = thing.mass / len(thing.geoms())
    touches = ' contype="0" conaffinity="0"' if thing.ghost else ""
    if thing.slick:
        bounce = ' priority="2"'
    friction = 0.001 if thing.slick else thing.friction
    rolling = 0.002 if part.shape == "sphere" else 0.0005
    return (
        f'<geom type="{part.shape}" size="{_numbers(*part.size)}" pos="{_numbers(*part.at)}" '
        f'euler="{_numbers(*part.turn)}" rgba="{_numbers(*thing.rgb, 1.0)}" mass="{_numbers(mass)}" '
        f'condim="6" friction="{_numbers(friction, 0.003, rolling)}"{bounce}{touches}/>'
    )


def _body(index: int, thing: Thing) -> str:
    joint = ""
    if thing.motion == "free":
        joint = "<freejoint/>"
    elif thing.motion in ("slide", "hinge"):
        joint = f'<joint type="{thing.motion}" axis="{_numbers(*thing.axis)}"/>'
    geoms = "".join(_geom(part, thing) for part in thing.geoms())
    weightless = ' gravcomp="1"' if thing.motion in ("slide", "hinge") else ""
    return (
        f'<body name="thing{index}" pos="{_numbers(*thing.at)}" euler="0 0 {_numbers(thing.yaw)}"'
        f"{weightless}>{joint}{geoms}</body>"
    )


def _distractors(script: Script, look: Surroundings, split: Split, rng: np.random.Generator) -> str:
    """Up to two dull things near the table's rim that nothing happens to."""
    text = ""
    for _ in range(int(rng.integers(0, 3))):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        distance = rng.uniform(min(script.clear_m, look.table_half_m - 0.05), look.table_half_m - 0.04)
        size = rng.uniform(0.02, 0.035, 3)
        place = _numbers(distance * np.cos(angle), distance * np.sin(angle), float(size[2]))
        shape = str(rng.choice(DISTRACTOR_SHAPES[split]))
        text += (
            f'<geom type="{shape}" pos="{place}" size="{_numbers(*size)}" contype="0" conaffinity="0" '
            f'rgba="{_numbers(*dull(split, rng, 0.25, 0.8), 1.0)}"/>'
        )
    return text


def _xml(script: Script, look: Surroundings, split: Split, rng: np.random.Generator) -> str:
    half = look.table_half_m
    top = ("cylinder", _numbers(half, 0.02)) if look.round_table else ("box", _numbers(half, half, 0.02))
    bodies = "".join(_body(i, thing) for i, thing in enumerate(script.things))
    return f"""
<mujoco>
  <compiler angle="degree" eulerseq="xyz"/>
  <option timestep="{STEP_S}" integrator="implicitfast" cone="elliptic" impratio="3"/>
  <visual>
    <global fovy="{FOV_DEG}" offwidth="{RENDER_SIDE}" offheight="{RENDER_SIDE}"/>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="12"/>
    <headlight ambient="{_numbers(*[look.ambient] * 3)}" diffuse="{_numbers(*[0.8 - look.lamp] * 3)}"
      specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default><geom solref="{_HARD}"/></default>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="{_numbers(*look.wall)}"
      rgb2="{_numbers(*[0.6 * c for c in look.wall])}" width="32" height="192"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="{_numbers(*look.floor)}"
      rgb2="{_numbers(*look.floor_marks)}" width="64" height="64"/>
    <material name="floor" texture="floor" texrepeat="6 6"/>
  </asset>
  <worldbody>
    <light pos="0 0 2" dir="{_numbers(*look.light)}" directional="true" castshadow="false"
      diffuse="{_numbers(*[look.lamp] * 3)}" specular="0.1 0.1 0.1"/>
    <geom type="plane" size="3 3 0.1" pos="0 0 {_GROUND_M}" material="floor"/>
    <geom type="{top[0]}" size="{top[1]}" pos="0 0 -0.02" rgba="{_numbers(*look.table, 1.0)}"
      contype="0" conaffinity="0"/>
    <geom name="table" type="plane" size="2 2 0.1" friction="0.1 0.003 0.0005" rgba="0 0 0 0"/>
    {_distractors(script, look, split, rng)}
    {bodies}
  </worldbody>
</mujoco>"""
