# SPDX-License-Identifier: Apache-2.0
"""Exports of nano for tests, each made once a run, and windows of a real recording."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import cv2
import numpy as np

from cosmos_reason_node.engine.graph_engine import GraphEngine
from cosmos_reason_node.engine.graphs import OnnxExecutor
from cosmos_reason_node.engine.manifest import read_manifest
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import Frame, Window
from training.export.plan import Plan, make_plan
from training.export.run import export

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models" / "nano"
CLIP = ROOT / "tests" / "assets" / "drawer_open.mp4"
PERIOD_NS = 250_000_000
_FOLDER = tempfile.TemporaryDirectory(prefix="cosmos-reason-export-")


def plan(precision: str = "fp32", target: str = "sm89", **options: int) -> Plan:
    return make_plan(NANO, read_model_spec(NANO), target, precision, **options)


@functools.cache
def exported(precision: str = "fp32", opset: int = 18) -> Path:
    """Folder of nano's graphs; not to be changed."""
    directory = Path(_FOLDER.name) / f"nano-{precision}-{opset}"
    export(plan(precision, opset=opset), directory, None, lambda text: None)
    return directory


def onnx_engine(directory: Path, executor: object = None, **options: object) -> GraphEngine:
    manifest = read_manifest(directory)
    options = {"min_confidence": 0.0, "kept_pairs": 64, **options}
    executor = executor or OnnxExecutor(directory, manifest)
    return GraphEngine(directory, manifest, read_model_spec(directory), executor, **options)


@functools.cache
def frames() -> tuple[np.ndarray, ...]:
    """Frames of a recording at nano's size, the second half of them mirrored."""
    video, images = cv2.VideoCapture(str(CLIP)), []
    while (read := video.read())[0]:
        images.append(cv2.resize(read[1], (112, 112), interpolation=cv2.INTER_AREA)[..., ::-1].copy())
    return (*images, *(np.ascontiguousarray(image[:, ::-1]) for image in images))


def window(first: int = 0, length: int = 8, camera: str = "front") -> Window:
    """``length`` frames from tick ``first``, even."""
    images = frames()
    shown = tuple(
        Frame(camera, (tick + 1) * PERIOD_NS, tick, images[tick % len(images)])
        for tick in range(first, first + length)
    )
    return Window(camera, shown, first, PERIOD_NS, 0, length)
