# SPDX-License-Identifier: Apache-2.0
"""nano's second stage: its questions as a data set, and that no simulation is one of fine-tuning's."""

import numpy as np
import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.data.readers import open_data_set
from training.data.schema import QuestionKind
from training.data.sim.sample import SimProvenance, SimSample, Span
from training.eval.simulated import Shown
from training.nano.source import HELD_OUT_TASKS
from training.rl.nano import Joined, check_disjoint, prepare, write_questions
from training.rl.rewards import NONE_OPTION


class Windows:
    """Windows that show their number."""

    name = "sim_made"

    def draw(self, count, rng):
        for number in range(count):
            origin = SimProvenance("sim", "train", number, "drawer", "open")
            asked = [
                SimSample(Span(0, 2), query, answer, "", origin, group)
                for query, answer, group in (
                    (Query(QueryKind.COMPLETION, task="open the drawer"), "yes", ""),
                    (Query(QueryKind.COMPLETION, task=HELD_OUT_TASKS[0]), "no", ""),
                    (Query(QueryKind.QUESTION, question="Which?", options=("a", "b", "c")), "B", "order"),
                )
            ]
            yield Shown(f"{number}", str(number), np.full((2, 56, 56, 3), number, np.uint8), 4, asked)


def test_windows_become_a_data_set_without_held_out_tasks(tmp_path):
    written = write_questions(Joined([Windows(), Windows()]), 6, tmp_path / "data", "train")
    samples = open_data_set(tmp_path / "data").samples
    assert len(samples) == written == 12
    assert {sample.kind for sample in samples} == {QuestionKind.TASK_COMPLETION, QuestionKind.COMMON_SENSE}
    assert len({sample.sample_id for sample in samples}) == 12
    assert samples[0].media[0].grid.first_tick == 4
    with np.load(tmp_path / "data" / samples[-1].media[0].paths[0]) as archive:
        assert (archive["frames"] == 2).all()


def test_a_data_set_of_some_kinds_keeps_no_window_without_them(tmp_path):
    assert write_questions(Windows(), 3, tmp_path / "sense", "train", groups=("order",)) == 3
    assert {sample.category for sample in open_data_set(tmp_path / "sense").samples} == {"order"}
    assert write_questions(Windows(), 3, tmp_path / "physics", "train", groups=("spatial_puzzle",)) == 0
    assert not list((tmp_path / "physics").glob("*.npz"))


def test_the_none_data_set(tmp_path):
    write_questions(Windows(), 20, tmp_path / "none", "held_out", none=True)
    samples = open_data_set(tmp_path / "none").samples
    assert all(sample.options[-1] == NONE_OPTION for sample in samples)
    right = [sample.options[sample.answer_index] for sample in samples]
    assert set(right) == {"b", NONE_OPTION}
    assert all(("b" in sample.options) == (text == "b") for sample, text in zip(samples, right, strict=True))


def test_a_simulation_in_both_stages_is_found_by_its_frames(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    for folder, shown in (("sft", [frames, frames + 1]), ("rl", [frames + 2])):
        (tmp_path / folder).mkdir()
        for number, array in enumerate(shown):
            np.savez_compressed(tmp_path / folder / f"{number}.npz", frames=array, seed=number)
    assert check_disjoint(tmp_path / "sft", tmp_path / "rl") == 1
    np.savez_compressed(tmp_path / "rl" / "9.npz", frames=frames, seed=9)
    with pytest.raises(ValueError, match=r"9\.npz.*is in"):
        check_disjoint(tmp_path / "sft", tmp_path / "rl")


def test_without_the_first_stage_nothing_is_simulated(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"episodes/train holds no simulations.*make nano"):
        prepare(tmp_path, 1, 1, 1, 1)
    assert list(tmp_path.iterdir()) == []
