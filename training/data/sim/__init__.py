# SPDX-License-Identifier: Apache-2.0
"""Simulated robot clips: scenes, motion, looks, episodes. Importing it selects headless rendering."""

import os

os.environ.setdefault("MUJOCO_GL", "egl")  # has to be set before mujoco is imported anywhere
