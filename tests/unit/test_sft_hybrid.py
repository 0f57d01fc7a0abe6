# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of the hybrid family: the same data and loop, branches read one after the other."""

import numpy as np
import pytest
import torch

from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import parts
from cosmos_reason_node.models.load import load
from cosmos_reason_node.models.spec import CONFIG, TOKENIZER, read_json, read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_hybrid, tiny_model
from tests.unit.sft_files import make_data, settings
from tests.unit.test_sft_memory import ALONE, peak_of
from tests.unit.test_sft_parallel import started
from tests.unit.test_torch_engine import answers, request
from training.settings import make_settings
from training.sft import memory, run
from training.sft.config import OptimizerConfig, SftConfig
from training.sft.data import Rejections, load_sources
from training.sft.loop import make_optimizer
from training.sft.report import read_log
from training.sft.rows import Branch, answer_states, encode_answer, pack_rows

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("sft")
    return tiny_hybrid.write(root / "base", fps=4.0), make_data(root / "data", frames=(2, 4))


def losses(output):
    return [entry["loss"] for entry in read_log(output) if "loss" in entry]


def test_the_tower_has_its_own_rate(files):
    """InternViT and what joins it to the language model, as of the other family."""
    network = load(files[0], device="cpu").network
    recipe = OptimizerConfig(steps=1, vision_rate=0.1)
    groups = make_optimizer(network, recipe, torch.device("cpu")).param_groups
    share = {id(parameter): group["share"] for group in groups for parameter in group["params"]}
    found = {
        name.split(".")[1]: share[id(parameter)]
        for name, parameter in network.model.named_parameters(prefix="m")
    }
    assert found == {"vision_tower": 0.1, "multi_modal_projector": 0.1, "language_model": 1.0}


def test_branches_of_a_row_are_computed_as_if_alone(files):
    model = load(files[0], device="cpu")
    query = Query(QueryKind.QUESTION, question="What moves?")
    first, second = (
        encode_answer(model.tokenizer, asked, thought, answer, 4.0)
        for asked, thought, answer in (
            (query, "the gripper moves left.", "the arm"),
            (Query(QueryKind.COMPLETION, task="open the drawer"), "", "yes"),
        )
    )
    again = Branch((), second.target, second.weights, second.verdict)  # another answer to the same question
    rng = np.random.default_rng(0)
    patches = [rng.normal(size=(t * 16, 588)).astype(np.float32) for t in (2, 3)]
    grids = [[model.spec.video_grid(t, 56, 56, 4.0)] for t in (2, 3)]

    def states(branches, videos, shown):
        batch = pack_rows(branches, videos, shown, model.tokenizer, model.spec)
        features = model.visual_features(batch.patches, batch.grids)
        with torch.no_grad():
            return answer_states(model, batch, features), batch

    packed, batch = states([[first, second, again], [second]], grids, patches)
    assert len(packed) == len(batch.labels) == sum(len(b.target) for b in (first, second, second, second))
    alone = [(first, 0), (second, 0), (second, 0), (second, 1)]
    expected = [states([[branch]], [grids[row]], [patches[row]])[0] for branch, row in alone]
    torch.testing.assert_close(packed, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 4}, "train_vision": False}], ids=["whole", "lora"])
def test_it_learns_and_the_node_loads_the_model(files, tmp_path, model):
    config = make_settings(SftConfig, settings(*files, tmp_path / "run", model=model))
    run.run(config)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] - 0.2
    before, after = load(files[0], device="cpu"), load(tmp_path / "run" / "model", device="cpu")
    changed = {
        name
        for name, weight in after.network.state_dict().items()
        if not torch.equal(weight, before.network.state_dict()[name].bfloat16().float())
    }
    assert any(".mixer.in_proj" in name for name in changed)
    if model:
        assert not any("vision_tower" in name or "out_proj" in name for name in changed)
    shown = tiny_model.window(size=tiny_hybrid.FRAME_SIZE)
    asked = request(Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0), windows=(shown,))
    assert answers(TorchEngine(after, min_confidence=0.0), asked)[0].answer.answer in ("yes", "no")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_near_the_measured_peak(files, tmp_path, checkpointing):
    value = settings(*files, tmp_path / "run", model={"checkpointing": checkpointing}, data={"branches": 1})
    config = make_settings(SftConfig, value)
    spec, tokenizer = read_model_spec(files[0]), TextTokenizer(files[0] / TOKENIZER)
    sources = load_sources(config.data.sources, config.data, tokenizer, spec, 0, Rejections())
    rows = [row for row in sources[0].rows if row.media][:4]
    model, objective = run._prepare(config, files[0], spec, ALONE)
    batch = run.RowLoader(model.tokenizer, spec, augment=False, seed=0).load(rows, (0, 0))
    count = memory.count_parameters(files[0], config)
    assert count.total == sum(p.numel() for p in objective.parameters())
    size = memory.PassSize(batch.size, batch.tokens.shape[1], len(batch.patches), len(batch.labels))
    estimated = memory.estimate(read_json(files[0] / CONFIG), count, size, config, 1)

    def step():
        loss, _ = objective(batch)
        loss.backward()

    objective.train()
    step()
    objective.zero_grad(set_to_none=True)
    peak = peak_of(step)
    expected = estimated.gradients + estimated.activations + estimated.logits
    print(f"estimated {expected / 2**20:.1f} MiB, measured {peak / 2**20:.1f} MiB")
    assert 0.95 * peak < expected < 1.5 * peak


def test_two_processes_do_what_one_does(files, tmp_path):
    """FSDP2 over gloo, whose units are tower and language layers of this family."""

    def settled(output):
        value = settings(*files, output, model={"checkpointing": True}, optimizer={"steps": 3})
        return make_settings(SftConfig, value)

    run.run(settled(tmp_path / "one"))
    for worker in started(2, settled(tmp_path / "two")):
        worker.join()
        assert worker.exitcode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_parts_are_all_there(files):
    network = load(files[0], device="cpu").network
    inside = {id(p) for part in (*parts.tower(network), *parts.blocks(network)) for p in part.parameters()}
    outside = {name for name, p in network.named_parameters() if id(p) not in inside}
    assert outside == {
        "lm_head.weight",
        "model.language_model.embeddings.weight",
        "model.language_model.norm_f.weight",
    }
