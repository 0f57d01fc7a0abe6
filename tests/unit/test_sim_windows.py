# SPDX-License-Identifier: Apache-2.0
"""Draws of windows from episodes and clips."""

import collections

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from tests.unit.sim_files import made_up, write_episodes
from training.data.sim.episode import save_episode
from training.data.sim.phase import Phase, phase
from training.data.sim.physics.clip import save_clip
from training.data.sim.physics.run import run_clip
from training.data.sim.scenes import BY_NAME, SCENES
from training.data.sim.windows import ClipStore, EpisodeStore


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return EpisodeStore(write_episodes(tmp_path_factory.mktemp("episodes")))


def test_draws_do_not_favour_frequent_states(store):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(Phase, 0)
    for _ in range(300):
        drawn = store.draw(2, rng)
        assert drawn.span.length == 2
        last = drawn.span.last
        skill = BY_NAME[drawn.episode.scene].skills[0]
        seen[phase(skill, float(drawn.episode.openness[last]), drawn.episode.gap_m[last, 0])] += 1
    assert seen[Phase.DONE] > 60
    assert seen[Phase.REACH] + seen[Phase.ACT] > 60


def test_scenes_are_drawn_by_their_shares(tmp_path):
    for seed, name in enumerate(("drawer", "window")):
        save_episode(tmp_path, made_up(BY_NAME[name], seed))
    store = EpisodeStore(tmp_path / "train")
    rng = np.random.default_rng(0)
    seen = collections.Counter(store.draw(2, rng, {"window": 3.0}).episode.scene for _ in range(400))
    assert seen["window"] / 400 == pytest.approx(0.75, abs=0.07)


def test_windows_that_do_not_fit_are_not_drawn(store):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert store.draw(6, rng).span.last in (5, 7)
    with pytest.raises(ValueError, match="long enough for windows of 10"):
        store.draw(10, rng)


def test_galleries_serve_single_pairs_only(tmp_path):
    for seed, gallery in ((1, False), (2, True)):
        save_episode(tmp_path, made_up(SCENES[0], seed, gallery=gallery))
    rng = np.random.default_rng(0)
    store = EpisodeStore(tmp_path / "train")
    assert {store.draw(2, rng).episode.seed for _ in range(40)} == {1, 2}
    assert {store.draw(4, rng).episode.seed for _ in range(40)} == {1}


def test_episodes_of_tasks_left_out_are_not_drawn(tmp_path):
    scene = BY_NAME["door"]
    kept, dropped = (skill.task for skill in scene.skills)
    save_episode(tmp_path, made_up(scene, 1, task=kept))
    save_episode(tmp_path, made_up(scene, 2, task=dropped))
    store = EpisodeStore(tmp_path / "train", without=[dropped])
    rng = np.random.default_rng(0)
    assert {store.draw(2, rng).episode.seed for _ in range(30)} == {1}
    assert len(EpisodeStore(tmp_path / "train").episodes) == 2


def test_what_is_added_later_is_found(tmp_path):
    store = EpisodeStore(write_episodes(tmp_path))
    assert store.refresh() == 0
    save_episode(tmp_path, made_up(SCENES[0], 77))
    assert store.refresh() == 1
    assert store.episodes[-1].seed == 77


def test_no_files_says_what_to_run(tmp_path):
    for kind in (EpisodeStore, lambda path: ClipStore(path, {})):
        with pytest.raises(FileNotFoundError, match=r"training\.nano generate"):
            kind(tmp_path)


def test_clips_are_drawn_by_the_shares_of_their_scenes(tmp_path):
    for seed, scene in enumerate(("drop", "drop", "drop", "room")):
        save_clip(tmp_path, run_clip(seed, scene=scene, render=False))
    store = ClipStore(tmp_path / "train", {"room": 3.0})
    assert len(store) == 4
    rng = np.random.default_rng(0)
    seen = collections.Counter(store.draw(rng).scene for _ in range(400))
    assert seen["room"] / 400 == pytest.approx(0.75, abs=0.07)
