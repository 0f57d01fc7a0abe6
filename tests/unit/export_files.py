# SPDX-License-Identifier: Apache-2.0
"""Exports for tests: made once for each checkpoint and precision of a test run."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from cosmos_reason_node.engine.graph_engine import GraphEngine
from cosmos_reason_node.engine.graphs import OnnxExecutor
from cosmos_reason_node.engine.manifest import read_manifest
from cosmos_reason_node.models.spec import read_model_spec
from tests import tiny_model
from training.export.plan import Plan, make_plan
from training.export.run import export

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
_ROOT = tempfile.TemporaryDirectory(prefix="cosmos-reason-export-")


@functools.cache
def tiny() -> Path:
    """A tiny checkpoint."""
    return tiny_model.write(Path(_ROOT.name) / "tiny")


def plan(model: Path, precision: str = "fp32", target: str = "sm89", **options: int) -> Plan:
    return make_plan(model, read_model_spec(model), target, precision, **options)


@functools.cache
def exported(model: Path, precision: str = "fp32", opset: int = 18) -> Path:
    """Folder of a checkpoint's graphs; not to be changed."""
    directory = Path(_ROOT.name) / f"{model.name}-{precision}-{opset}"
    export(plan(model, precision, opset=opset), directory, None, lambda text: None)
    return directory


def onnx_engine(directory: Path, **options: object) -> GraphEngine:
    manifest = read_manifest(directory)
    executor = OnnxExecutor(directory, manifest)
    return GraphEngine(
        directory, manifest, read_model_spec(directory), executor, **{"min_confidence": 0.5, **options}
    )
