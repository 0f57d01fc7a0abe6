# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")


from cosmos_reason_node.types import QueryKind
from tests.unit.nano_files import described
from training.data.sample import Span
from training.data.sim.episode import Episode, save_episode
from training.data.sim.phase import Phase, phase
from training.data.sim.questions import questions
from training.data.sim.scenes import BY_NAME, SCENES
from training.nano.architecture import create
from training.sft import checkpoint
from training.sft.augment import Augmentation
from training.sft.probe import states_of
from training.sft.trainer import (
    TrainSettings,
    choose_questions,
    learning_rate,
    make_probes,
    train_answers,
    train_vision,
)
from training.sft.windows import EpisodeStore

SETTINGS = TrainSettings(
    steps=4,
    batch=2,
    warm_up=1,
    lengths=(2,),
    length_shares=(1.0,),
    branches=1,
    probe_patches=2,
    no_video_share=0.0,
)


def write_episodes(root, frames=8):
    rng = np.random.default_rng(0)
    for seed, scene in enumerate(SCENES):
        skills = len(scene.skills)
        save_episode(
            root,
            Episode(
                seed=seed,
                split="train",
                scene=scene.name,
                plan="stop",
                task=scene.skills[0].task,
                frames=rng.integers(0, 256, (frames, 112, 112, 3), np.uint8),
                openness=np.repeat([0.0, 1.0], frames // 2).astype(np.float32),
                gap_m=np.tile(np.array([0.0, 0.5], np.float32), frames // 2)[:, None, None].repeat(skills, 1)
                * np.ones(3, np.float32),
                points=np.full((frames, 2, 2), 0.4, np.float32),
            ),
        )
    return EpisodeStore(root / "train")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("episodes"))


@pytest.fixture
def make(tmp_path_factory):
    directory = described(tmp_path_factory.mktemp("nano"))
    return lambda: create(directory)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def test_training_resumes_as_if_never_interrupted(make, store, tmp_path):
    torch.manual_seed(0)
    straight, parted = make(), make()
    probes = [make_probes(straight), make_probes(parted)]
    probes[1].load_state_dict(probes[0].state_dict())
    train_answers(straight, probes[0], store, SETTINGS, tmp_path / "straight")
    # Interrupted after two steps: the schedule is that of the whole run, only the loop is cut short.
    with pytest.raises(KeyboardInterrupt):
        train_answers(parted, probes[1], Interrupting(store, after=2), _saving(SETTINGS), tmp_path / "parted")
    again, probe = make(), make_probes(straight)
    train_answers(again, probe, store, SETTINGS, tmp_path / "parted")
    torch.testing.assert_close(weights(again), weights(straight), atol=1e-6, rtol=1e-5)


def _saving(settings):
    """Saves after every step."""
    return dataclasses.replace(settings, save_s=-1.0)


class Interrupting:
    """A store whose user presses Ctrl-C in the step after ``after``."""

    def __init__(self, store, after):
        self._store, self._left = store, after * (SETTINGS.batch + SETTINGS.probe_patches)

    def draw(self, length, rng):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._store.draw(length, rng)


def test_a_checkpoint_of_another_architecture_is_refused(make, store, tmp_path):
    model = make()
    probe = make_probes(model)
    train_vision(model, probe, store, dataclasses.replace(SETTINGS, steps=1), tmp_path)
    optimizer = torch.optim.AdamW(probe.parameters())
    with pytest.raises(ValueError, match="another architecture"):
        checkpoint.resume(tmp_path, {"visual": model.network.model.language_model}, optimizer)


def test_vision_training_leaves_the_language_model_alone(make, store, tmp_path):
    model = make()
    before = weights(model), model.network.lm_head.weight.detach().clone()
    train_vision(model, make_probes(model), store, dataclasses.replace(SETTINGS, steps=2), tmp_path)
    assert not torch.equal(weights(model), before[0])
    assert torch.equal(model.network.lm_head.weight, before[1])


def test_learning_rate_warms_up_and_falls_to_the_final_rate():
    settings = TrainSettings(steps=100, warm_up=10, peak_rate=1e-3, final_rate=1e-5)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_draws_do_not_favour_frequent_states(store):
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(Phase, 0)
    for _ in range(300):
        drawn = store.draw(2, rng)
        assert drawn.span.length == 2
        last = drawn.span.last
        skill = BY_NAME[drawn.episode.scene].skills[0]
        now = phase(skill, float(drawn.episode.openness[last]), drawn.episode.gap_m[last, 0])
        seen[now] += 1
    assert seen[Phase.DONE] > 60
    assert seen[Phase.REACH] + seen[Phase.ACT] > 60


def test_windows_that_do_not_fit_are_not_drawn(store):
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert store.draw(6, rng).span.last in (5, 7)
    with pytest.raises(ValueError, match="long enough for windows of 10"):
        store.draw(10, rng)


def test_a_window_is_changed_as_one():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (112, 112, 3), np.uint8)
    changed = Augmentation((112, 112), rng).frames(np.stack([frame, frame]))
    assert changed.shape == (2, 112, 112, 3)
    np.testing.assert_array_equal(changed[0], changed[1])
    assert not np.array_equal(changed[0], frame)


def test_points_move_with_the_picture():
    rng = np.random.default_rng(1)
    for _ in range(10):
        frame = np.full((1, 112, 112, 3), 128, np.uint8)
        x, y = rng.integers(35, 77, 2)
        frame[0, y - 2 : y + 3, x - 2 : x + 3] = 255
        change = Augmentation((112, 112), rng)
        seen = change.frames(frame)[0].sum(-1).astype(int)
        bright = np.argwhere(seen > (seen.min() + seen.max()) / 2)[:, ::-1].mean(0)
        np.testing.assert_allclose(change.points(np.array([[x, y]]) / 112)[0] * 112, bright, atol=0.6)


def test_galleries_serve_single_pairs_only(tmp_path):
    skills = SCENES[0].skills
    for seed, gallery in ((1, False), (2, True)):
        episode = Episode(
            seed=seed,
            split="train",
            scene=SCENES[0].name,
            plan="stop",
            task=skills[0].task,
            frames=np.zeros((8, 4, 4, 3), np.uint8),
            openness=np.zeros(8, np.float32),
            gap_m=np.full((8, len(skills), 3), 0.5, np.float32),
            points=np.zeros((8, 2, 2), np.float32),
            gallery=gallery,
        )
        save_episode(tmp_path, episode)
    rng = np.random.default_rng(0)
    store = EpisodeStore(tmp_path / "train")
    assert {store.draw(2, rng).episode.seed for _ in range(40)} == {1, 2}
    assert {store.draw(4, rng).episode.seed for _ in range(40)} == {1}


def test_completion_is_asked_first_and_at_first_of_one_side(store):
    rng = np.random.default_rng(0)
    episode = next(e for e in store.episodes if e.scene == "drawer")
    samples = questions(episode, Span(0, 8), rng)
    for one_sided, wanted in ((True, {"open the drawer"}), (False, {"open the drawer", "close the drawer"})):
        chosen = choose_questions(samples, len(wanted), one_sided, rng)
        assert {sample.query.task for sample in chosen} == wanted
        assert all(sample.query.kind is QueryKind.COMPLETION for sample in chosen)


def test_states_mark_what_is_not_known(store):
    episode = next(e for e in store.episodes if e.scene == "handle")
    states = states_of([(episode, 1), (episode, 0)])
    assert states.placed[:, 0].tolist() == [0.0, 1.0]
    assert states.placed[:, 1].tolist() == [-1.0, -1.0]  # a handle has one skill only


def test_no_episodes_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"training\.nano generate"):
        EpisodeStore(tmp_path)
