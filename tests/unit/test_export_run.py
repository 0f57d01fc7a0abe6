# SPDX-License-Identifier: Apache-2.0
"""Exports on disk: what is resumed, and what of a damaged one is refused."""

import dataclasses
import json
import shutil

import pytest

from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.manifest import (
    Build,
    FileEntry,
    Manifest,
    check_build,
    check_files,
    check_model,
    read_manifest,
    write_manifest,
)
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.spec import read_model_spec
from tests.unit.export_files import NANO, exported, plan
from tests.unit.sim_files import made_up
from training.data.sim.episode import save_episode
from training.data.sim.scenes import SCENES
from training.export import compare, run
from training.export.__main__ import main
from training.export.calibration import find_calibration
from training.export.plan import PlanError, describe
from training.export.quantise import Calibration


@pytest.fixture
def folder(tmp_path):
    """A copy of nano's graphs."""
    return shutil.copytree(exported(), tmp_path / "export")


def load(folder):
    return load_engine(EngineSpec(str(folder), kind="onnx", warm_up=False, threads=1))


def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(folder, monkeypatch):
    before = read_manifest(folder)
    monkeypatch.setattr("training.export.onnx.write_decoder", lambda *_: pytest.fail("written again"))
    said = []
    assert run.export(plan(opset=18), folder, None, said.append) == before
    assert any("there and whole" in line for line in said)
    with (folder / "head.onnx.data").open("ab") as file:  # torn: written again, and only it
        file.write(b"x")
    made = run.export(plan(opset=18), folder, None, said.append)
    assert made == before  # digests of all files included: the same bytes
    assert sum("writing" in line for line in said) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "cosmos_reason.json").write_text('{"confidence_temperature": 2.0}'),
        lambda d: (d / "tokenizer.json").unlink(),
        lambda d: (d / "config.json").write_text("{"),
    ],
)
def test_exporting_again_mends_the_description_too(folder, damage):
    """What the engine refuses it calls to be mended by exporting again."""
    before = read_manifest(folder)
    damage(folder)
    with pytest.raises(CosmosReasonError):
        load(folder)
    assert run.export(plan(opset=18), folder, None, lambda text: None) == before
    load(folder).close()


def test_another_precision_or_checkpoint_starts_over(folder):
    calls = []
    other = dataclasses.replace(plan(opset=18), precision="bf16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            run, "_write_graphs", lambda plan, directory, manifest, missing, *_: calls.append(missing)
        )
        run.export(other, folder, None, lambda text: None)
    assert calls == [["vision", "decoder", "head"]]


def test_too_little_memory_is_said_before_the_start(tmp_path):
    huge = dataclasses.replace(plan(), parameters=10**13)
    with pytest.raises(PlanError, match=r"takes about 40\d{3}\.\d GB"):
        run.export(huge, tmp_path / "out", None, lambda text: None)
    assert not (tmp_path / "out").exists()


def test_building_alone_estimates_its_memory_too(tmp_path, capsys, monkeypatch):
    """Boards, where only engines are built, have the least of it."""
    asked = []
    monkeypatch.setattr("training.export.build.choose_library", lambda target: None)
    monkeypatch.setattr("training.export.run.build_engines", lambda *_: pytest.fail("not enough memory"))

    def refuse(needed, what):
        asked.append(needed)
        raise PlanError(f"{what}: not enough memory")

    monkeypatch.setattr("training.export.run.check_memory", refuse)
    write_manifest(tmp_path, _manifest(files={"decoder.onnx.data": FileEntry(10**9, "")}))
    assert main(["--build-only", "--out", str(tmp_path), "--target", "sm87"]) == 1
    assert asked == [pytest.approx(4.5e9)]
    assert "building the engines: not enough memory" in capsys.readouterr().err


def test_the_estimate_for_the_7b_checkpoint():
    vision = {"hidden_size": 1280, "depth": 32, "intermediate_size": 3420, "out_hidden_size": 3584}
    text = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    from training.export.plan import count_parameters

    whole, tower = count_parameters(vision, {**text, "intermediate_size": 18944}, 152064, 1176, 2)
    assert whole == pytest.approx(8.29e9, rel=0.005)
    assert tower == pytest.approx(0.676e9, rel=0.01)
    seven = dataclasses.replace(plan("int4-awq"), parameters=whole, tower=tower)
    assert 4e9 < seven.device_bytes < 7e9
    assert len(describe(seven)) == 3
    assert seven.export_bytes > 4 * whole  # scales are found in float32
    assert dataclasses.replace(seven, precision="fp16").export_bytes < 3 * whole


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: (d / "decoder.onnx.data").unlink(), r"decoder\.onnx\.data is missing"),
        (lambda d: (d / "vision.onnx.data").write_bytes(b"short"), r"5 bytes instead of \d+"),
        (lambda d: _flip(d / "vision.onnx.data"), r"vision\.onnx\.data is not the file that was written"),
        (lambda d: _flip(d / "tokenizer.json"), "(tokenizer|JSON)"),
        (lambda d: _edit(d, precision="fp16"), "changed after it was written"),
        (lambda d: _edit(d, format=99), "its format is 99"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json"),
        (lambda d: (d / "manifest.json").unlink(), "python -m training.export has written"),
        (
            lambda d: (d / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0]}'),
            "prepare frames",
        ),
    ],
)
def test_damaged_exports_are_refused_with_what_to_do(folder, damage, reason):
    damage(folder)
    with pytest.raises(CosmosReasonError, match=reason) as refused:
        load(folder)
    assert refused.value.code in (ErrorCode.MODEL_INVALID, ErrorCode.MODEL_NOT_FOUND)


def test_an_export_for_other_prompts_is_refused(folder):
    write_manifest(folder, dataclasses.replace(read_manifest(folder), prompt_id="0" * 12))
    with pytest.raises(CosmosReasonError, match="export the checkpoint again with this version"):
        check_model(read_manifest(folder), read_model_spec(folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "10.3.0"}, r"version 10\.16, here it is 10\.3\.0"),
        ({"library": "tensorrt_rtx"}, "library tensorrt, here it is tensorrt_rtx"),
        ({"target": "sm110"}, r"target sm87, here it is sm110.*--build-only --out FOLDER --target sm110"),
        ({"system": "linux-x86_64"}, "system linux-aarch64, here it is linux-x86_64"),
    ],
)
def test_engines_of_something_else_are_refused(change, reason):
    built = Build("tensorrt", "10.16", "sm87", "linux-aarch64")
    manifest = _manifest(build=built)
    check_build(manifest, **dataclasses.asdict(built))
    with pytest.raises(CosmosReasonError, match=reason) as refused:
        check_build(manifest, **{**dataclasses.asdict(built), **change})
    assert refused.value.code == ErrorCode.MODEL_INVALID


def test_a_folder_without_engines_names_the_command(folder):
    with pytest.raises(CosmosReasonError, match="--build-only --out FOLDER --target sm89"):
        check_build(read_manifest(folder), "tensorrt", "10.16", "sm89", "linux-aarch64")
    with pytest.raises(CosmosReasonError, match=r"no vision\.engine that was finished"):
        check_files(folder, read_manifest(folder), ["vision.engine"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "/nowhere", "--target", "sm89"], "there is no checkpoint directory"),
        (["--model", str(NANO), "--target", "sm12"], "--target must be one of"),
        (["--model", str(NANO), "--target", "sm80", "--precision", "fp8"], "does not compute fp8"),
        (["--model", str(NANO), "--target", "sm89", "--max-tokens", "99999"], "knows 4096 positions"),
        (["--model", str(NANO), "--target", "sm89", "--max-tokens", "-100"], "a full window and its text"),
        (["--model", str(NANO), "--target", "sm89", "--max-tokens", "1"], "a full window and its text"),
        (["--model", str(NANO), "--target", "sm89", "--precision", "int4-awq", "--opset", "18"], "take 21"),
        (["--target", "sm89"], "--model is missing"),
        (["--target", "sm89", "--build-only"], "needs --out"),
        (["--target", "sm89", "--build-only", "--out", "/nowhere"], "has written"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, reason, capsys):
    assert main(arguments) == 1
    assert reason in capsys.readouterr().err


def test_precisions_that_measure_activations_need_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(NANO), "--target", "sm89", "--precision", "fp8"]) == 1
    assert "name recordings or a data set" in capsys.readouterr().err


def test_the_manifest_says_how_weights_were_quantised():
    facts = Calibration("drawers", (), 8).facts("int4-awq")
    assert facts["library"].startswith("nvidia-modelopt")
    assert (facts["data"], facts["clips"]) == ("drawers", 8)
    assert json.dumps(facts)


def test_graphs_that_were_calibrated_on_other_clips_are_of_another_export(folder, tmp_path):
    """Same kind of recordings, same number of windows, other recordings."""
    episodes = [_episodes(tmp_path / name, seed) for name, seed in (("one", 0), ("two", 100))]
    made = [find_calibration(plan("int8-wo"), [path], 2) for path in episodes]
    first, second = (calibration.facts("int8-wo") for calibration in made)
    assert first == find_calibration(plan("int8-wo"), episodes[:1], 2).facts("int8-wo")
    assert first != second


def test_answers_of_another_export_are_not_counted(folder, tmp_path):
    """All exports of a checkpoint have its digest: answers would be taken over from an earlier export."""
    results, predictions = tmp_path / "results", tmp_path / "results" / "predictions.jsonl"
    manifest = read_manifest(folder)
    compare.forget_others(results, manifest, "onnx")
    predictions.write_text("{}\n")
    compare.forget_others(results, manifest, "onnx")
    assert predictions.exists()  # an interrupted comparison goes on
    files = {**manifest.files, "decoder.onnx.data": manifest.files["head.onnx"]}
    compare.forget_others(results, dataclasses.replace(manifest, files=files), "onnx")
    assert not predictions.exists()


def test_exports_of_one_name_are_not_compared(tmp_path, capsys):
    folders = [str(tmp_path / place / "int4") for place in "ab"]
    data = str(_episodes(tmp_path / "data", 0))
    given = ["compare", "--model", str(NANO), "--export", *folders, "--data", data, "--windows", "1"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    assert "not unlike" in capsys.readouterr().err


def _episodes(root, seed):
    for number, scene in enumerate(SCENES[:2]):
        save_episode(root, made_up(scene, seed + number, frames=64))
    return root / "train"


def _manifest(**changes):
    """Of an export of nano that holds nothing."""
    made = plan()
    return Manifest("nano", "", "", "", made.precision, made.dtype, made.opset, made.dimensions, **changes)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
