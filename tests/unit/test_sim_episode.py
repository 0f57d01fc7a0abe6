# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

import mujoco

from training.data.sim.episode import (
    GALLERY_SEED,
    HELD_OUT_SEED,
    Episode,
    episode_path,
    load_episode,
    run_episode,
    save_episode,
    split_of,
)
from training.data.sim.look import AZIMUTHS, HUES, Look, add_distractors, draw_look, place_distractors
from training.data.sim.phase import Phase, completed, in_place, phase
from training.data.sim.scenes import BY_NAME, SCENES

SKILLS = [(scene.name, index) for scene in SCENES for index in range(len(scene.skills))]


def test_a_seed_determines_its_episode():
    first, again, other = (run_episode(seed, sample=False) for seed in (5, 5, 6))
    assert (first.scene, first.plan, first.task) == (again.scene, again.plan, again.task)
    np.testing.assert_array_equal(first.openness, again.openness)
    np.testing.assert_array_equal(first.gap_m, again.gap_m)
    assert first.gap_m.shape != other.gap_m.shape or not np.array_equal(first.gap_m, other.gap_m)


@pytest.mark.parametrize(("scene", "index"), SKILLS)
def test_every_skill_reaches_its_goal_and_starts_without(scene, index):
    episode = run_episode(0, scene_name=scene, skill_index=index, plan_name="succeed", sample=False)
    skill = BY_NAME[scene].skills[index]
    done = [completed(skill, float(openness)) for openness in episode.openness]
    assert done[0] is False
    assert done[-1] is True


def test_labels_follow_the_outcome_not_the_plan():
    """The arm moves as much as in a success, but misses: the task must not count as done."""
    episode = run_episode(0, scene_name="drawer", skill_index=0, plan_name="miss", sample=False)
    assert np.ptp(episode.gap_m[:, 0], axis=0).max() > 0.1
    assert completed(BY_NAME["drawer"].skills[0], float(episode.openness[-1])) is False


@pytest.mark.parametrize("plan", ["miss", "give_up", "freeze", "undo", "opposite"])
@pytest.mark.parametrize("scene", ["drawer", "window"])
def test_plans_that_fail_leave_the_task_undone(plan, scene):
    """From the usual start; the others may succeed after all, which is why outcomes are labels."""
    for seed in range(20):
        episode = run_episode(seed, scene_name=scene, skill_index=0, plan_name=plan, sample=False)
        if episode.openness[0] < 0.1:
            break
    assert completed(BY_NAME[scene].skills[0], float(episode.openness[-1])) is not True


def test_distractors_come_and_go_away_from_the_object():
    rng = np.random.default_rng(0)
    spec = mujoco.MjSpec()
    add_distractors(spec)
    model = spec.compile()
    shown = []
    for _ in range(50):
        place_distractors(model, "train", np.array([0.05, 0.9, 0.0]), rng)
        shown.append(int((model.geom_rgba[:, 3] > 0).sum()))
        assert (np.abs(model.geom_pos[:, 0] - 0.05) >= 0.2).all()
        assert not model.geom_contype.any()
    assert set(shown) >= {0, 1, 2}


def test_undo_ends_where_it_began():
    episode = run_episode(3, scene_name="window", skill_index=0, plan_name="undo", sample=False)
    opened = BY_NAME["window"].skills[0]
    done = [completed(opened, float(openness)) for openness in episode.openness]
    assert True in done
    assert done[-1] is False


@pytest.mark.parametrize("ranges", [AZIMUTHS, HUES], ids=["azimuth", "hue"])
def test_held_out_looks_are_never_trained_on(ranges):
    for low, high in ranges["held_out"]:
        assert all(high <= other_low or low >= other_high for other_low, other_high in ranges["train"])


def test_cameras_are_drawn_from_their_split():
    rng = np.random.default_rng(0)
    for split in ("train", "held_out"):
        for _ in range(50):
            azimuth = draw_look(split, rng).azimuth
            assert any(low <= azimuth <= high for low, high in AZIMUTHS[split])


def test_pictures_depend_on_the_seed_alone():
    """Scenes and renderers are shared by the episodes of a process."""
    wanted = run_episode(8, steps=12)
    run_episode(GALLERY_SEED + 8, scene_name=wanted.scene, steps=12)
    again = run_episode(8, steps=12)
    np.testing.assert_array_equal(again.frames, wanted.frames)
    assert np.ptp(wanted.frames) > 50


def test_a_gallery_changes_its_look_with_every_pair():
    episode = run_episode(GALLERY_SEED + 1, steps=30)
    assert episode.gallery
    assert episode.split == "train"
    change = np.abs(np.diff(episode.frames.astype(int), axis=0)).mean((1, 2, 3))
    assert change[1::2].min() > 5 * change[::2].max()


def test_points_are_projected_as_the_camera_sees():
    look = Look(azimuth=90.0, elevation=-30.0, distance_m=1.0, look_at=(0.1, 0.7, 0.2))
    middle, right, up, far_right = look.project(
        np.array([[0.1, 0.7, 0.2], [0.2, 0.7, 0.2], [0.1, 0.7, 0.3], [0.2, 1.7, 0.2]]), 45.0, 4 / 3
    )
    np.testing.assert_allclose(middle, 0.5)
    np.testing.assert_allclose(right, (0.5 + 0.1 / np.tan(np.pi / 8) / 2 * 3 / 4, 0.5))
    assert up[0] == pytest.approx(0.5)
    assert up[1] < 0.45
    assert 0.5 < far_right[0] < right[0]


def test_split_is_told_by_the_seed():
    assert split_of(HELD_OUT_SEED - 1) == "train"
    assert split_of(HELD_OUT_SEED) == "held_out"


def test_phase_is_open_where_one_could_argue():
    skill = BY_NAME["drawer"].skills[0]
    far, near = np.array([0.4, 0.0, 0.0]), np.zeros(3)
    between = np.array([skill.xy_tolerance_m * 2.0, 0.0, 0.0])
    assert phase(skill, 0.0, far) is Phase.REACH
    assert phase(skill, 0.0, near) is Phase.ACT
    assert phase(skill, 0.0, between) is None
    assert phase(skill, 1.0, near) is Phase.DONE
    assert phase(skill, 0.65, far) is None
    assert in_place(skill, near)
    assert not in_place(skill, far)


def test_an_episode_survives_the_disk(tmp_path):
    rng = np.random.default_rng(0)
    episode = Episode(
        seed=7,
        split="train",
        scene="door",
        plan="stop",
        task="open the door",
        frames=rng.integers(0, 256, (4, 8, 8, 3), np.uint8),
        openness=rng.random(4).astype(np.float32),
        gap_m=rng.random((4, 2, 3)).astype(np.float32),
        points=rng.random((4, 2, 2)).astype(np.float32),
        gallery=True,
    )
    path = save_episode(tmp_path, episode)
    assert path == episode_path(tmp_path, 7)
    assert not list(path.parent.glob("*.part"))
    back = load_episode(path)
    for name, value in vars(episode).items():
        np.testing.assert_array_equal(getattr(back, name), value)


def test_an_unknown_plan_is_refused():
    with pytest.raises(ValueError, match="plans are succeed"):
        run_episode(0, scene_name="door", plan_name="dance", sample=False)
