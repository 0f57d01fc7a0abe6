# SPDX-License-Identifier: Apache-2.0
"""Off-screen pictures of a MuJoCo model, cheap to make for many models in turn.

One GL context serves the whole process: with the context kept, what a new model needs costs 4 ms instead of
the 180 ms that a mujoco.Renderer of its own takes with the software rasteriser.
"""

from __future__ import annotations

import atexit
import os

import mujoco
import numpy as np
from mujoco.gl_context import GLContext

_MAX_GEOMS = 400
_contexts: dict[int, GLContext] = {}  # by process id: a forked child must not use its parent's


def _process_context(side: int) -> GLContext:
    context = _contexts.get(os.getpid())
    if context is None:
        context = _contexts[os.getpid()] = GLContext(side, side)
        atexit.register(_free_context)  # before mujoco closes the display
    return context


def _free_context() -> None:
    context = _contexts.pop(os.getpid(), None)
    if context is not None:
        context.free()


class Canvas:
    """Renders square pictures of one model.

    Args:
        model: whose ``vis.global_`` offwidth and offheight are at least ``side``.
        side: pixels.
    """

    def __init__(self, model: mujoco.MjModel, side: int) -> None:
        self._gl = _process_context(side)
        self._gl.make_current()
        self._model = model
        self._scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._options = mujoco.MjvOption()
        self._viewport = mujoco.MjrRect(0, 0, side, side)
        self._pixels = np.zeros((side, side, 3), np.uint8)

    def picture(self, data: mujoco.MjData, camera: mujoco.MjvCamera) -> np.ndarray:
        """(side, side, 3) uint8 RGB; a view of a buffer that the next call overwrites."""
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, camera, every, self._scene)
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._context)
        return self._pixels[::-1]  # GL counts rows from the bottom

    def geoms(self, data: mujoco.MjData, camera: mujoco.MjvCamera) -> np.ndarray:
        """(side, side) index of the geom that each pixel shows; -1 for the background."""
        flags = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)
        for flag in flags:
            self._scene.flags[flag] = 1
        try:
            numbers = self.picture(data, camera).astype(np.int64) @ np.array([1, 256, 65536])
        finally:
            for flag in flags:
                self._scene.flags[flag] = 0
        shown = [-1]  # number 0 is the background, number i the scene's segment i - 1
        owner = {geom.segid: geom.objid for geom in self._scene.geoms[: self._scene.ngeom] if geom.segid >= 0}
        shown += [owner.get(i, -1) for i in range(max(owner, default=-1) + 1)]
        return np.array(shown)[np.minimum(numbers, len(shown) - 1)]

    def close(self) -> None:
        """Free the model's buffers; the process's context stays."""
        self._gl.make_current()
        self._context.free()
