# SPDX-License-Identifier: Apache-2.0
"""Counts by object: what the tower's read-outs say, and how questions ended."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node.types import Query, QueryKind
from tests.unit.nano_files import described
from tests.unit.sim_files import made_up
from training.data.sim.episode import save_episode
from training.data.sim.scenes import BY_NAME
from training.eval import run
from training.eval.item import Item, write_items
from training.nano.architecture import create
from training.nano.diagnose import answered, seen, table
from training.nano.objective import AnswerObjective, Probes
from training.sft.store import SnapshotStore


@pytest.fixture
def trained(tmp_path):
    """Its read-outs take everything to be open, and the hand to be in place, whatever they see."""
    (tmp_path / "model").mkdir()
    model = create(described(tmp_path / "model"))
    objective = AnswerObjective(model, Probes(model.network.lm_head.weight.shape[1]))
    read_out = objective.probes.patch.state.state
    torch.nn.init.zeros_(read_out.weight)
    torch.nn.init.constant_(read_out.bias, 9.0)
    stage = tmp_path / "work" / "finish"
    SnapshotStore(stage / "checkpoints", 1).write(1, {"model": objective.state_dict()}, {})
    return stage


def test_read_outs_are_counted_by_object_and_truth(trained, tmp_path):
    near = np.repeat(np.array([0.0, 0.5], np.float32), 4)  # metres; drawn moments end in odd frames
    gap_m = near[:, None, None] * np.ones((8, 2, 3), np.float32)
    for seed, (name, openness) in enumerate((("drawer", 1.0), ("handle", 0.0))):
        fields = {"openness": np.full(8, openness, np.float32)}
        skills = len(BY_NAME[name].skills)
        save_episode(tmp_path, made_up(BY_NAME[name], seed, gap_m=gap_m[:, :skills], **fields))
    found = seen(trained, tmp_path / "model", tmp_path / "train", 80)
    assert {scene for scene, _ in found} == {"drawer", "handle"}
    for scene in ("drawer", "handle"):
        assert set(found[scene, "in place"]) == {True}
        assert set(found[scene, "not in place"]) == {False}
    assert set(found["drawer", "state"]) == {True}
    assert set(found["handle", "state"]) == {False}
    assert sum(len(found[scene, "state"]) for scene in ("drawer", "handle")) == 80


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    tensors = SnapshotStore(trained / "checkpoints", 1).newest().tensors("model")
    del tensors["probes.option.0.weight"]
    SnapshotStore(trained / "checkpoints", 1).write(2, {"model": tensors}, {})
    with pytest.raises(ValueError, match="is not of the model"):
        seen(trained, tmp_path / "model", tmp_path, 8)


def test_without_a_checkpoint_or_moments_it_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.nano train"):
        seen(tmp_path / "work" / "finish", tmp_path, tmp_path, 8)
    with pytest.raises(ValueError, match="at least 1"):
        seen(tmp_path / "work" / "finish", tmp_path, tmp_path, 0)


def test_answers_of_the_evaluated_model_with_video_are_counted(tmp_path):
    def item(name, task, query=None):
        query = query or Query(QueryKind.COMPLETION, task=task)
        about = {"group": "task_completion", "source": "sim_robot", "tasks": ("drawer", task)}
        return Item(name, f"s{name}", query, "yes", cluster=name, **about)

    names = ("open the drawer", "open the drawer", "open the door")
    items = [item(name, task) for name, task in zip("abc", names, strict=True)]
    lettered = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("pull", "push"))
    items += [item("d", "open the drawer", lettered), item("e", "open the drawer")]
    write_items(tmp_path / run.ITEMS, items)
    facts = {"stage": "sft", "held_out_tasks": [], "benchmark": {}, "asked": {}}
    (tmp_path / run.RUN).write_text(json.dumps({"model": {"digest": "new"}} | facts))
    right, wrong, torn = (f"<think>\n\n</think>\n\n<answer>\n{t}\n</answer>" for t in ("yes", "no", ""))
    key = {
        "digest": "",
        "model": "new",
        "prompt": "",
        "decoding": "",
        "seed": 0,
        "rotation": 0,
        "video": True,
    }
    said = (
        {"item": "a", "output": right},
        {"item": "b", "output": wrong},
        {"item": "b", "output": right, "model": "old"},  # of an evaluation before
        {"item": "a", "output": wrong, "video": False},
        {"item": "c", "output": right},  # never trained on
        {"item": "d", "output": wrong},  # lettered
        {"item": "e", "output": torn},
    )
    lines = [json.dumps(key | line) for line in said]
    (tmp_path / run.PREDICTIONS).write_text("\n".join(lines) + "\n")
    found = answered(tmp_path)
    assert found == {("drawer", "task_completion"): [True, False, False]}
    assert table(found).splitlines()[-1] == "| drawer | 33.3 (3) |"
