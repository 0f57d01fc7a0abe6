# SPDX-License-Identifier: Apache-2.0
"""Engines built and run on the GPU that is here: ``pytest -m gpu tests/gpu/test_tensorrt_gpu.py``."""

import dataclasses

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.manifest import read_manifest, write_manifest
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
pytest.importorskip("onnxscript", reason="pip install -r requirements/export.txt")

FREE = Query(QueryKind.NEXT_ACTION, task="open the drawer", think_tokens=8)
OPTIONS = dataclasses.replace(FREE, options=("reach", "pull"), think_tokens=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from cosmos_reason_node.engine.tensorrt import gpu_target
    from tests.unit.export_files import plan
    from training.export.build import BuildError
    from training.export.run import build_engines, export

    target = gpu_target(torch.device("cuda"))
    directory = tmp_path_factory.mktemp("engines")
    made = plan("fp16", target)
    manifest = export(made, directory, None, print)
    try:
        build_engines(made.target, directory, manifest, print)
    except BuildError as error:
        pytest.skip(str(error))
    return directory


def answers(engine, first):
    from tests.unit.export_files import window

    request = Request("r", (window(first),), (FREE, OPTIONS), max_answer_tokens=16)
    ended = {event.branch: event for event in engine.answer(request) if isinstance(event, Done)}
    return [ended[branch].answer.answer for branch in (0, 1)]


def test_the_engine_says_what_torch_says(folder):
    from tests.unit.export_files import NANO

    engine = load_engine(EngineSpec(str(folder), kind="tensorrt", min_confidence=0.0))
    reference = TorchEngine(qwen2_5_vl.load(NANO, "cuda", "float32"), min_confidence=0.0)
    pairs = [(answers(engine, first), answers(reference, first)) for first in range(0, 80, 2)]
    assert sum(a == b for a, b in pairs) >= 0.9 * len(pairs)
    # Replayed graphs and kept prefixes give the same answers again.
    assert [answers(engine, first) for first in range(0, 80, 2)] == [a for a, _ in pairs]
    engine.close()


def test_an_engine_of_another_gpu_is_refused_with_the_command(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = read_manifest(folder)
    (tmp_path / "manifest.json").unlink()
    write_manifest(
        tmp_path, dataclasses.replace(manifest, build=dataclasses.replace(manifest.build, target="sm75"))
    )
    with pytest.raises(CosmosReasonError, match="built for target sm75"):
        load_engine(EngineSpec(str(tmp_path), kind="tensorrt"))
