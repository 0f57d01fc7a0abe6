# SPDX-License-Identifier: Apache-2.0
"""Engines built by TensorRT-RTX for GPUs that are not here, and refusals of what cannot be built."""

import dataclasses
import shutil

import onnx
import pytest

from cosmos_reason_node.engine.manifest import PARTS, check_build, check_files, engine_name, read_manifest
from cosmos_reason_node.engine.tensorrt import find_library, load_engine, this_system
from cosmos_reason_node.errors import CosmosReasonError
from tests.unit.export_files import exported, plan
from training.export.__main__ import main
from training.export.build import BuildError, build, check_interface, choose_library, outputs, profile
from training.export.run import build_engines
from training.export.targets import TARGETS

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="pip install -r requirements/export.txt")


@pytest.fixture
def folder(tmp_path):
    """A copy of nano's graphs in half precision."""
    return shutil.copytree(exported("fp16", 23), tmp_path / "export")


@pytest.mark.parametrize("target", ["sm80", "sm86", "sm89", "sm120"])
def test_engines_are_built_for_gpus_that_are_not_here(folder, target):
    said = []
    manifest = build_engines(TARGETS[target], folder, read_manifest(folder), said.append)
    assert manifest == read_manifest(folder)
    check_files(folder, manifest, [engine_name(part) for part in PARTS])
    check_build(manifest, "tensorrt_rtx", rtx.__version__, target, this_system())
    with pytest.raises(CosmosReasonError, match=rf"built for target {target}.*--target sm75"):
        check_build(manifest, "tensorrt_rtx", rtx.__version__, "sm75", this_system())
    assert any("100%" in line for line in said)
    again = []
    build_engines(TARGETS[target], folder, manifest, again.append)
    assert [line for line in again if "there and whole" in line] == again  # nothing is built twice
    # A torn engine is built anew, the others stay.
    with (folder / "vision.engine").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CosmosReasonError, match="1000 bytes instead of"):
        check_files(folder, manifest, ["vision.engine"])
    if target == "sm89":
        repaired = []
        build_engines(TARGETS[target], folder, manifest, repaired.append)
        check_files(folder, read_manifest(folder), ["vision.engine"])
        assert sum("there and whole" in line for line in repaired) == 2


@pytest.mark.parametrize("content", [b"", b"no engine" * 999])
def test_a_file_that_is_no_engine_says_what_to_build(tmp_path, content):
    path = tmp_path / "decoder.engine"
    path.write_bytes(content)
    runtime = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR))
    with pytest.raises(CosmosReasonError, match=r"cannot load .*decoder\.engine.*--build-only"):
        load_engine(runtime, path, rtx.__version__)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("opset", [18, 23])
def test_inputs_outputs_and_profiles_are_those_that_the_runtime_uses(part, opset):
    directory = exported("fp32" if opset == 18 else "fp16", opset)
    sizes = read_manifest(directory).dimensions
    trt = find_library("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse_from_file(str(directory / f"{part}.onnx"))
    check_interface(trt, network, part, sizes)
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    wanted = profile(part, sizes)
    assert set(inputs) == set(wanted)
    assert {network.get_output(i).name for i in range(network.num_outputs)} == set(outputs(part, sizes))
    half = trt.DataType.FLOAT if opset == 18 else trt.DataType.HALF
    for name, tensor in inputs.items():
        assert tensor.dtype == (trt.DataType.FLOAT if name in ("pixels", "cos", "sin") else half), name
    shapes = builder.create_optimization_profile()
    for name, ranges in wanted.items():
        shapes.set_shape(name, *ranges)
        assert [tuple(shape) for shape in shapes.get_shape(name)] == list(ranges)
        assert all(a <= b <= c for a, b, c in zip(*ranges, strict=True))
    assert builder.create_builder_config().add_optimization_profile(shapes) == 0
    other = dataclasses.replace(sizes, patch_dim=588, hidden=96, vocabulary=100)
    with pytest.raises(BuildError, match="not the graph that the manifest describes"):
        check_interface(trt, network, part, other)


def test_what_the_runtime_calls_is_there():
    """Nothing of it is executed without a GPU; at least it must have these names and take these arguments."""
    for owner, names in {
        rtx.Runtime: ["deserialize_cuda_engine"],
        rtx.ICudaEngine: ["device_memory_size_v2", "create_runtime_config", "create_execution_context"],
        rtx.IRuntimeConfig: ["set_execution_context_allocation_strategy", "cuda_graph_strategy"],
        rtx.IExecutionContext: ["set_input_shape", "set_tensor_address", "execute_async_v3"],
        rtx.ExecutionContextAllocationStrategy: ["USER_MANAGED"],
        rtx.CudaGraphStrategy: ["WHOLE_GRAPH_CAPTURE"],
    }.items():
        assert not [name for name in names if not hasattr(owner, name)], owner
    assert (
        "memory: typing.SupportsInt, size: typing.SupportsInt"
        in rtx.IExecutionContext.set_device_memory.__doc__
    )


def test_targets_of_boards_get_graphs_and_the_command_to_run_there(tmp_path, capsys, folder):
    with pytest.raises(BuildError, match=r"Jetson Orin.*on such a board"):
        choose_library(TARGETS["sm87"])
    command = ["--build-only", "--out", str(folder), "--target", "sm87"]
    assert main(command) == 1
    assert f"python -m training.export {' '.join(command)}" in capsys.readouterr().err


def test_a_graph_without_its_weights_is_not_built(folder):
    (folder / "decoder.onnx.data").unlink()
    with pytest.raises(CosmosReasonError, match=r"decoder\.onnx\.data is missing"):
        build_engines(TARGETS["sm89"], folder, read_manifest(folder), lambda text: None)
    library = choose_library(TARGETS["sm89"])
    sizes = read_manifest(folder).dimensions
    with pytest.raises(BuildError, match="cannot parse"):
        build("decoder", folder, sizes, TARGETS["sm89"], library)


def test_a_graph_that_is_none_is_an_error_with_its_reason(folder):
    (folder / "head.onnx").write_bytes(b"no graph")
    with pytest.raises(BuildError, match="cannot parse"):
        build(
            "head", folder, read_manifest(folder).dimensions, TARGETS["sm89"], choose_library(TARGETS["sm89"])
        )
    assert not list(folder.glob(".*partial"))


def test_weights_are_outside_the_graphs_and_names_do_not_depend_on_the_run():
    for part in PARTS:
        graph = onnx.load(exported() / f"{part}.onnx", load_external_data=False).graph
        assert (exported() / f"{part}.onnx").stat().st_size < 2**20
        large = [entry for entry in graph.initializer if len(entry.dims) > 1]
        assert large
        assert all(entry.external_data for entry in large)
        assert "lm_head.weight" in {entry.name for entry in graph.initializer} or part != "head"


def test_precisions_that_a_gpu_lacks_are_refused():
    from training.export.plan import PlanError

    with pytest.raises(PlanError, match=r"A100.*does not compute fp8"):
        plan("fp8", "sm80")
    with pytest.raises(PlanError, match="sm999"):
        plan("fp16", "sm999")
    with pytest.raises(PlanError, match="multiples of 28"):
        plan("fp16", "sm89", frame_size=(100, 112))
