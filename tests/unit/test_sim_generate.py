# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from training.data.sim.episode import (
    GALLERY_SEED,
    HELD_OUT_SEED,
    VALIDATION_SEED,
    load_episode,
    run_episode,
    task_of,
)
from training.data.sim.generate import CLIPS, EPISODES, Counts, generate, path_of
from training.data.sim.physics.clip import load_clip


def test_every_sort_is_made_once_and_spread_evenly():
    counts = Counts(episodes=20, galleries=10, held_out_episodes=5, clips=40, held_out_clips=5)
    seeds = counts.seeds()
    assert len(seeds) == len(set(seeds)) == 80
    first_half = seeds[:40]
    assert sum(folder == CLIPS for folder, _ in first_half) in range(20, 25)
    assert sum(seed >= HELD_OUT_SEED for _, seed in first_half) in range(4, 7)
    assert (EPISODES, GALLERY_SEED) in first_half


def test_an_interrupted_run_goes_on_and_makes_the_same(tmp_path):
    counts = Counts(episodes=0, galleries=0, held_out_episodes=1, clips=3, held_out_clips=1)
    assert generate(tmp_path, counts, processes=1) == 5
    paths = [path_of(tmp_path, *seed) for seed in counts.seeds()]
    lost = path_of(tmp_path, CLIPS, 1)
    before = load_clip(lost).frames
    lost.unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths if path != lost}
    assert generate(tmp_path, counts, processes=1) == 1
    assert (load_clip(lost).frames == before).all()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert load_episode(path_of(tmp_path, EPISODES, HELD_OUT_SEED)).split == "held_out"


def test_validation_looks_like_the_held_out_split_and_is_kept_apart(tmp_path):
    counts = Counts(0, 0, 0, 0, 0, validation_episodes=1, validation_clips=1)
    assert generate(tmp_path, counts, processes=1) == 2
    path = tmp_path / "clips" / "validation" / f"clip{VALIDATION_SEED}.npz"
    assert path == path_of(tmp_path, CLIPS, VALIDATION_SEED)
    assert load_clip(path).split == "held_out"
    episode = tmp_path / "episodes" / "validation" / f"{VALIDATION_SEED}.npz"
    assert load_episode(episode).split == "held_out"
    assert {folder.name for folder in tmp_path.glob("*/*")} == {"validation"}


def test_training_episodes_of_tasks_left_out_are_not_made(tmp_path):
    left_out = task_of(0)
    assert run_episode(0, sample=False).task == left_out
    counts = Counts(episodes=3, galleries=0, held_out_episodes=1, clips=0, held_out_clips=0)
    kept = [seed for seed in range(3) if task_of(seed) != left_out]
    assert len(kept) < 3
    for made in (len(kept) + 1, 0):
        assert generate(tmp_path, counts, processes=1, without={left_out}) == made
    assert sorted(path.name for path in tmp_path.glob("episodes/train/*")) == [f"{s:07}.npz" for s in kept]
    assert path_of(tmp_path, EPISODES, HELD_OUT_SEED).exists()  # evaluated, whatever it is about
