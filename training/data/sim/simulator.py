# SPDX-License-Identifier: Apache-2.0
"""A metaworld scene under MuJoCo: placed, stepped, looked at.

Loading a scene and uploading its meshes cost more than an episode, so a process keeps both; every simulator
starts from fresh data, places the object and draws every look anew from the model as loaded, so that an
episode depends on its seed alone. A control step is 12.5 ms simulated.
"""

from __future__ import annotations

import atexit
import functools
from dataclasses import dataclass

import mujoco
import numpy as np
from metaworld.asset_path_utils import full_V3_path_for

from .look import Split, add_distractors, draw_look, place_distractors, recolour
from .scenes import Scene, Skill

PHYSICS_STEPS = 5  # of 2.5 ms, per control step
MAX_MOVE_M = 0.01  # of the hand's target, per control step
WORKSPACE = (np.array([-0.5, 0.40, 0.05]), np.array([0.5, 1.0, 0.5]))
# Relative pose (anchor, position, quaternion) and torque scale of the weld that ties the hand to its target.
_HAND_WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
_HAND_DOWN = (1.0, 0.0, 1.0, 0.0)
_SETTLE_STEPS = 60


@dataclass(frozen=True)
class State:
    """What the simulator knows at one moment, positions in metres.

    Attributes:
        hand: (3,) position of the hand.
        handle: (3,) position of the object's handle.
        openness: 0 (closed) to 1 (open).
        turn_rad: how far the object has turned about the vertical; 0 for one that slides.
    """

    hand: np.ndarray
    handle: np.ndarray
    openness: float
    turn_rad: float = 0.0

    def point(self, skill: Skill, offset: tuple[float, float, float]) -> np.ndarray:
        """(3,) world position of an offset from the handle."""
        x, y, z = offset
        if skill.turns:
            c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
            x, y = c * x - s * y, s * x + c * y
        return self.handle + np.array([x, y, z])

    def gap(self, skill: Skill) -> np.ndarray:
        """(3,) from the skill's contact point to the hand."""
        return self.hand - self.point(skill, skill.contact)


class _Stage:
    """A scene's model as loaded, and its renderers; kept per process."""

    def __init__(self, xml: str) -> None:
        spec = mujoco.MjSpec.from_file(full_V3_path_for(f"sawyer_xyz/{xml}"))
        add_distractors(spec)
        self.model = spec.compile()
        self.model.eq_data[:] = _HAND_WELD
        self.model.vis.quality.shadowsize = 0
        self.model.vis.quality.offsamples = 0
        looks = (self.model.mat_rgba, self.model.light_diffuse, self.model.light_pos)
        self._looks = [(array, array.copy()) for array in looks]
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}

    def restore_look(self) -> None:
        """Undo what ``recolour`` changed."""
        for array, loaded in self._looks:
            array[:] = loaded

    def renderer(self, size: tuple[int, int]) -> mujoco.Renderer:
        """Renderer for images of (height, width)."""
        if size not in self._renderers:
            renderer = mujoco.Renderer(self.model, *size)
            atexit.unregister(release_scenes)
            atexit.register(release_scenes)  # before mujoco closes the display
            # Both cost more than all the rest.
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self._renderers[size] = renderer
        return self._renderers[size]

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()


_stages: list[_Stage] = []


@functools.cache
def _stage(xml: str) -> _Stage:
    _stages.append(_Stage(xml))
    return _stages[-1]


def release_scenes() -> None:
    """Free the models and renderers that this process keeps."""
    for stage in _stages:
        stage.close()
    _stages.clear()
    _stage.cache_clear()


class Simulator:
    """One scene, ready to step. One at a time per process: scenes are shared.

    Args:
        scene: which.
        split: where look and colours are drawn from.
        rng: source of placement, look and colours.
        openness: state of the object at the start.
        hand: (3,) start of the hand.
        render_size: (height, width) of images, pixels; None for a simulator that only steps.
    """

    def __init__(
        self,
        scene: Scene,
        split: Split,
        rng: np.random.Generator,
        openness: float,
        hand: np.ndarray,
        render_size: tuple[int, int] | None,
    ) -> None:
        self.scene, self._split = scene, split
        self._stage = _stage(scene.xml)
        self.model = self._stage.model
        self.model.body(scene.body).pos = rng.uniform(scene.low, scene.high)
        self.data = mujoco.MjData(self.model)
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # markers of goals would give the answer away
        self._renderer = self._stage.renderer(render_size) if render_size else None
        self.change_look(rng)
        self._settle(scene.closed_qpos + openness * (scene.open_qpos - scene.closed_qpos), hand)

    def change_look(self, rng: np.random.Generator) -> None:
        """Draw camera, light and colours anew."""
        self._stage.restore_look()
        self.look = draw_look(self._split, rng)
        self._camera = self.look.camera()
        recolour(self.model, self._split, rng)
        place_distractors(self.model, self._split, self.model.body(self.scene.body).pos, rng)

    def seen_at(self, points: np.ndarray) -> np.ndarray:
        """Where points appear: (N, 3) metres to (N, 2), x and y as shares of the image's width and height."""
        if self._renderer is None:
            raise RuntimeError("this simulator was made without a render_size")
        aspect = self._renderer.width / self._renderer.height
        return self.look.project(points, float(self.model.vis.global_.fovy), aspect)

    def _settle(self, qpos: float, hand: np.ndarray) -> None:
        """Bring the hand to its start while the object is held."""
        for _ in range(_SETTLE_STEPS):
            self.data.mocap_pos[0] = hand
            self.data.mocap_quat[0] = _HAND_DOWN
            self.data.ctrl[:] = (-1.0, 1.0)
            mujoco.mj_step(self.model, self.data, PHYSICS_STEPS)
            self.data.qpos[self.scene.joint_index] = qpos
            self.data.qvel[self.scene.joint_index] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def state(self) -> State:
        """The moment's state."""
        return State(
            hand=self.data.body("hand").xpos.copy(),
            handle=np.asarray(self.scene.handle(self.data)).copy(),
            openness=self.scene.openness(float(self.data.qpos[self.scene.joint_index])),
            turn_rad=float(self.data.qpos[self.scene.joint_index]) if self.scene.hinged else 0.0,
        )

    def step(self, move: np.ndarray, grip: float) -> None:
        """One control step.

        Args:
            move: (3,) of the hand's target, metres; cut to +-1 cm an axis.
            grip: -1 opens the gripper, 1 closes it.
        """
        target = self.data.mocap_pos[0] + np.clip(move, -MAX_MOVE_M, MAX_MOVE_M)
        self.data.mocap_pos[0] = np.clip(target, *WORKSPACE)
        self.data.mocap_quat[0] = _HAND_DOWN
        self.data.ctrl[:] = (grip, -grip)
        mujoco.mj_step(self.model, self.data, PHYSICS_STEPS)
        mujoco.mj_forward(self.model, self.data)

    def render(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB image of the moment."""
        if self._renderer is None:
            raise RuntimeError("this simulator was made without a render_size")
        self._renderer.update_scene(self.data, camera=self._camera, scene_option=self._options)
        return self._renderer.render()
