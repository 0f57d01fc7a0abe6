# SPDX-License-Identifier: Apache-2.0
"""What nano is shown, what it is trained for, and that a run goes on where it stopped."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node import prompt
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.nano_files import described
from tests.unit.sim_files import write_episodes
from training.data.sim.kinds.object_permanence import hidden_and_back
from training.data.sim.physics.clip import save_clip
from training.data.sim.physics.derive import puzzle, reverse
from training.data.sim.physics.run import run_clip
from training.data.sim.sample import Span
from training.data.sim.scenes import BY_NAME, SCENES
from training.data.sim.windows import ClipStore, EpisodeStore
from training.nano import __main__ as nano_cli
from training.nano import objective as nano_objective
from training.nano import train as nano_train
from training.nano.architecture import create, describe_as
from training.nano.events import EventProbe, Events, events_of
from training.nano.objective import AnswerObjective, PairObjective, Probes
from training.nano.places import option_ends
from training.nano.probe import CLASSES, states_of, things_of
from training.nano.source import (
    GROUPS,
    HELD_OUT_TASKS,
    REASONED,
    DrawSettings,
    PairSource,
    WindowSource,
    World,
)
from training.nano.train import OPTIONS_RECIPE, TrainJob, with_steps
from training.sft.config import OptimizerConfig
from training.sft.loop import Interrupted, TrainingError

DRAWS = DrawSettings(
    episodes=2, clips=2, pairs=4, lengths=(2, 4), length_shares=(0.5, 0.5), branches=3, no_video_share=0.0
)
RECIPE = OptimizerConfig(steps=2, peak_rate=1e-3, final_rate=1e-4, warm_up=1)
SCENES_OF_CLIPS = ("room", "hide", "drop", "topple")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_episodes(root / "episodes")
    for seed, scene in enumerate(SCENES_OF_CLIPS):
        save_clip(root / "clips", run_clip(seed, scene=scene))
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return create(described(tmp_path_factory.mktemp("nano")))


@pytest.fixture(scope="module")
def world(data, model):
    episodes = EpisodeStore(data / "episodes" / "train", without=HELD_OUT_TASKS)
    return World(episodes, ClipStore(data / "clips" / "train", {}), model)


def batch_of(source, step=0, rank=0, world=1):
    (batch,) = source.batches(step, rank, world)
    return batch


def test_batches_follow_from_step_and_rank(world):
    source = WindowSource(world, DRAWS)
    again = WindowSource(world, DRAWS)
    batch = batch_of(source, 3)
    assert torch.equal(batch.rows.tokens, batch_of(again, 3).rows.tokens)
    assert torch.equal(batch.rows.patches, batch_of(again, 3).rows.patches)
    first, second = batch_of(source, 3, 0, 2), batch_of(source, 3, 1, 2)
    assert not torch.equal(first.pairs.patches, second.pairs.patches)


def test_nothing_is_asked_about_tasks_held_out(world):
    source = WindowSource(world, dataclasses.replace(DRAWS, episodes=8, branches=12))
    texts = {s.task for s in (skill for scene in SCENES for skill in scene.skills)} - set(HELD_OUT_TASKS)
    acts = [skill.act for scene in SCENES for skill in scene.skills if skill.task in HELD_OUT_TASKS]
    asked = "".join(
        world.tokenizer.decode(row.tolist())
        for step in range(6)
        for row in batch_of(source, step).rows.tokens
    )
    assert any(text in asked for text in texts)
    for text in (*HELD_OUT_TASKS, *acts):
        assert text not in asked


def test_completion_is_asked_of_opening_tasks_only_at_first(world):
    closing = [skill.task for scene in SCENES for skill in scene.skills if not skill.opens]
    source = WindowSource(world, dataclasses.replace(DRAWS, episodes=8, branches=12, one_sided=5))
    question = prompt.QUESTIONS[QueryKind.COMPLETION]

    def asked(step):
        text = "".join(world.tokenizer.decode(row.tolist()) for row in batch_of(source, step).rows.tokens)
        return [task for task in closing if question.format(task=task, action="") in text]

    assert not any(asked(step) for step in range(5))
    assert any(asked(step) for step in range(5, 12))


def test_gradients_flow_through_the_newest_pair_of_episodes_and_some_pairs_of_clips(world):
    source = WindowSource(
        world, dataclasses.replace(DRAWS, lengths=(4,), length_shares=(1.0,), clip_gradient=0.2)
    )
    batch = batch_of(source)
    robot = batch.learn[:4].tolist()
    assert robot == [False, True, False, True]
    assert 2 <= int(batch.learn[4:].sum()) < len(batch.learn[4:])
    assert len(batch.learn) == sum(t for t, _, _ in batch.rows.grids)


@pytest.mark.parametrize("count", [2, 4])
def test_option_ends_are_where_options_end(world, count):
    texts = ("reach for the drawer handle", "pull the drawer open", "move away", "push it")[:count]
    query = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=texts)
    question = prompt.encode_suffix(world.tokenizer, query)
    ends = option_ends(world.tokenizer, query, question)
    assert len(ends) == count
    for end, text in zip(ends, texts, strict=True):
        assert world.tokenizer.decode(question[: end + 1]).endswith(text)


def test_a_shorter_recipe_warms_up_for_a_part_of_it():
    assert with_steps(OPTIONS_RECIPE, 0) == OPTIONS_RECIPE
    assert with_steps(OPTIONS_RECIPE, 1000) == dataclasses.replace(OPTIONS_RECIPE, steps=1000)
    assert with_steps(OPTIONS_RECIPE, 8) == dataclasses.replace(OPTIONS_RECIPE, steps=8, warm_up=2)
    assert with_steps(OPTIONS_RECIPE, 1).warm_up == 0


def test_right_options_are_marked(world):
    source = WindowSource(world, dataclasses.replace(DRAWS, episodes=4, clips=4, branches=8))
    batch = batch_of(source, 1)
    lettered = batch.lettered & (batch.group != GROUPS.index(REASONED))
    assert lettered.any()
    assert int(batch.fits.sum()) == int(lettered.sum())
    right = batch.ends[batch.fits == 1]
    said = batch.rows.labels[batch.verdict]
    letters = {world.tokenizer.encode(prompt.letter(i), add_special_tokens=False)[0] for i in range(8)}
    asked = [int(said[batch.branch == q][0]) for q in lettered.nonzero()[:, 0]]
    assert set(asked) <= letters
    assert len(right) == len(asked)


def test_measures_count_every_question(world, model):
    batch = batch_of(WindowSource(world, DRAWS))
    loss, measures = AnswerObjective(model, Probes(192))(batch)
    assert torch.isfinite(loss)
    asked = sum(float(v) for name, v in measures.items() if name.endswith("/asked"))
    assert asked == batch.samples == len(batch.group)
    assert all(float(measures[f"{g}/right"]) <= float(measures[f"{g}/asked"]) for g in GROUPS)


def test_partial_gradients_do_not_change_what_is_computed(world, model):
    batch = batch_of(WindowSource(world, DRAWS), 2)
    objective = AnswerObjective(model, Probes(192)).eval()
    everything = dataclasses.replace(batch, learn=torch.ones_like(batch.learn))
    with torch.no_grad():
        torch.testing.assert_close(objective(batch)[0], objective(everything)[0], rtol=1e-5, atol=1e-4)


def test_without_video_the_prompt_has_none_and_all_gradients_exist(world, model):
    source = WindowSource(world, dataclasses.replace(DRAWS, no_video_share=1.0))
    batch = batch_of(source)
    assert not batch.rows.grids
    assert model.spec.video_token not in batch.rows.tokens
    objective = AnswerObjective(model, Probes(192))
    loss, _ = objective(batch)
    loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    objective.zero_grad(set_to_none=True)


def test_pairs_train_the_tower_and_leave_the_language_model_alone(world, model):
    objective = PairObjective(model, Probes(192))
    loss, measures = objective(batch_of(PairSource(world, DRAWS)))
    loss.backward()
    assert all(p.grad is not None for p in model.network.model.visual.parameters())
    assert all(p.grad is None for p in model.network.model.language_model.parameters())
    assert {"openness_error", "thing_found", "tile_placed"} <= set(measures)
    model.network.zero_grad(set_to_none=True)


def test_states_mark_what_is_not_known(world):
    episode = next(e for e in world.episodes.episodes if e.scene == "handle")
    states = states_of([(episode, 1), (episode, 0)])
    assert states.placed[:, 0].tolist() == [0.0, 1.0]
    assert states.placed[:, 1].tolist() == [-1.0, -1.0]  # a handle has one skill only
    assert states.asked.tolist() == [[1.0, 0.0]] * 2
    task = BY_NAME["handle"].skills[0].task
    assert states_of([(episode, 1)], without=[task]).asked.tolist() == [[0.0, 0.0]]


def test_things_are_found_where_the_clip_says():
    clip = run_clip(3, scene="drop")
    frame = 4
    things = things_of([(clip, frame, lambda points: points)])
    assert len(things.kind) > 0
    wanted = clip.pixel[frame + 1] / 112
    for point, motion in zip(things.point.numpy(), things.motion.numpy(), strict=True):
        i = int(np.abs(wanted - point).sum(-1).argmin())
        np.testing.assert_allclose(point, wanted[i], atol=1e-5)
        moved = (clip.pixel[frame + 1, i] - clip.pixel[frame, i]) / 112 / 0.05
        np.testing.assert_allclose(motion, moved, atol=1e-4)
    assert things.tile.tolist() == [-1]


def test_a_tile_is_asked_for_its_place():
    frame = run_clip(1, scene="room").frames[0]
    made = puzzle(frame, np.array([2, 0, 3, 1]), seed=1, split="train", scene="room")
    things = things_of([(made, first, None) for first in (0, 2, 4, 6)])
    assert things.tile.tolist() == [2, 0, 3, 1]
    assert things.whole.tolist() == [0.0] * 4
    assert len(things.kind) == 0


def test_events_say_what_vanished_and_which_way_time_runs():
    def shown(clip, first, last):
        return clip, Span(first, last - first + 1), lambda points: points

    clips = (run_clip(seed, scene="hide") for seed in range(100))
    clip, back = next(
        (clip, hidden)
        for clip in clips
        if (hidden := hidden_and_back(clip, Span(0, clip.length))) and not clip.present[-1, hidden].all()
    )
    events = events_of([shown(clip, 0, clip.length - 1), shown(reverse(clip), 0, 3)])
    vanished = {str(clip.names[i]) for i in back if not clip.present[-1, i]}
    assert {CLASSES[i] for i in events.gone[0].nonzero()[:, 0]} == vanished
    assert not (events.gone > events.shown).any()
    assert events.backward.tolist() == [-1.0, 1.0]
    tiles = puzzle(
        run_clip(1, scene="room").frames[0], np.array([2, 0, 3, 1]), seed=1, split="train", scene="room"
    )
    events = events_of([shown(tiles, 0, 7)])
    assert events.tiles.tolist() == [[2, 0, 3, 1]]
    assert events.whole.tolist() == [0.0]
    probe = EventProbe(8)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)  # guesses evenly
    loss, measures = probe(torch.zeros(1, 8), events)
    loss.backward()
    assert measures["time_right"] == 0.0
    assert loss.item() == pytest.approx(math.log(4))


def test_places_of_things_count_where_they_are_seen_at_the_end():
    seen, gone = CLASSES[0], CLASSES[1]
    columns = [CLASSES.index(name) for name in (seen, gone)]
    flags = torch.zeros(3, 1, len(CLASSES))  # shown, last, gone
    flags[0, 0, columns] = 1.0
    flags[1, 0, columns[0]] = 1.0
    point = torch.full((1, len(CLASSES), 2), 0.5)
    point[0, columns[0]] = torch.tensor([0.75, 0.25])
    point[0, columns[1]] = torch.tensor([0.0, 1.0])  # nobody sees it there
    whole, unknown = torch.ones(1), torch.full((1,), -1.0)
    events = Events(torch.full((1, 4), -1), unknown, whole, *flags, point)
    probe = EventProbe(8)
    for parameter in probe.parameters():
        nn.init.zeros_(parameter)  # takes everything to be in the middle
    _, measures = probe(torch.zeros(1, 8), events)
    assert measures["place_loss"] == pytest.approx(0.5)  # of a quarter of the frame, x and y


def test_what_is_read_off_is_there_before_it_is_needed(world, model):
    """Words after one layer, the window after two, options after three: the next one can look it up."""
    batch = batch_of(WindowSource(world, DRAWS))
    objective = AnswerObjective(model, Probes(192)).eval()
    with torch.no_grad():
        embedded = model.embed(batch.rows.tokens, objective._features(batch))
        before = objective._decode(batch.rows, embedded)
        changed = []
        for layer in model.network.model.language_model.layers:
            kept = layer.mlp.down_proj.weight.clone()
            layer.mlp.down_proj.weight.mul_(2.0)
            after = objective._decode(batch.rows, embedded)
            changed.append([not torch.equal(a, b) for a, b in zip(after, before, strict=True)])
            layer.mlp.down_proj.weight.copy_(kept)
    last, words, window, options = zip(*changed, strict=True)
    assert words == (True, False, False, False)
    assert last == (True, True, True, True)
    assert window == (True, True, False, False)
    assert options == (True, True, True, False)


def job(data, work, processes=1):
    (work / "model").mkdir(parents=True)
    described(work / "model")
    stages = dict.fromkeys(("vision", "answers", "sharpen", "finish", "options"), RECIPE)
    draws = dict.fromkeys(("vision_draws", "answer_draws", "sharpen_draws", "finish_draws"), DRAWS)
    last = dataclasses.replace(DRAWS, pairs=0, lookups=2, asked=2, clip_branches=6)
    return TrainJob(
        data, work / "work", work / "model", **stages, **draws, options_draws=last, processes=processes
    )


def test_a_run_that_goes_on_keeps_its_tokenizer(tmp_path, monkeypatch):
    described(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    monkeypatch.setattr(nano_train, "train", lambda job: None)
    monkeypatch.setattr(sys, "argv", ["training.nano", "train", "--out", str(tmp_path)])
    assert nano_cli.main() == 0
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_a_run_can_go_on_from_a_checkpoint_with_some_stages(data, tmp_path, monkeypatch):
    first = job(data, tmp_path / "first")
    nano_train.train(dataclasses.replace(first, stages=("vision",)))
    assert [path.name for path in first.work.iterdir()] == ["vision"]
    second = dataclasses.replace(job(data, tmp_path / "second"), stages=(), start=first.output)
    describe_as(second.output, first.output)
    assert (second.output / "tokenizer.json").read_bytes() == (first.output / "tokenizer.json").read_bytes()
    nano_train.train(second)
    before, after = trained(first), trained(second)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with pytest.raises(TrainingError, match="there is no stage 'sight': choose from vision"):
        nano_train.train(dataclasses.replace(second, stages=("sight",)))
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        describe_as(second.output, tmp_path)


def trained(made):
    return load(made.output, device="cpu").network.state_dict()


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(data, tmp_path, monkeypatch):
    monkeypatch.setattr(nano_train, "_SAVE_EVERY", 1)
    straight, parted = job(data, tmp_path / "straight"), job(data, tmp_path / "parted")
    nano_train.train(straight)
    taken = WindowSource.batches

    def interrupted(self, step, rank, world):
        if step == 1:
            raise Interrupted("stopped")
        yield from taken(self, step, rank, world)

    with monkeypatch.context() as patch:
        patch.setattr(WindowSource, "batches", interrupted)
        with pytest.raises(Interrupted):
            nano_train.train(parted)
    nano_train.train(parted)
    one, two = trained(straight), trained(parted)
    assert all(torch.equal(one[name], two[name]) for name in one)


def in_process(made):
    """In a process of its own: forking one whose OpenMP threads have run is asking for trouble."""
    child = multiprocessing.get_context("spawn").Process(target=as_group, args=(made,))
    child.start()
    return child


def as_group(made):
    os.setpgrp()  # as a shell does: Ctrl-C reaches the workers, too
    try:
        nano_train.train(made)
    except Interrupted:
        sys.exit(130)


@pytest.mark.parametrize("to_group", [True, False], ids=["ctrl-c", "kill"])
def test_a_signal_saves_and_the_run_goes_on(data, tmp_path, to_group):
    made = job(data, tmp_path, processes=2)
    long = dataclasses.replace(made, vision=dataclasses.replace(RECIPE, steps=100_000))
    child = in_process(long)
    log = made.work / "vision" / "log.jsonl"
    wait(lambda: log.exists() and log.read_text().count("\n") > 2)
    if to_group:
        os.killpg(child.pid, signal.SIGINT)
    else:
        os.kill(child.pid, signal.SIGTERM)
    child.join(timeout=120)
    assert child.exitcode == 130
    *_, saved = sorted((made.work / "vision" / "checkpoints").glob("step-*"))
    done = int(saved.name.partition("-")[2])
    assert done >= 3
    again = in_process(dataclasses.replace(made, vision=dataclasses.replace(RECIPE, steps=done + 1)))
    again.join(timeout=300)
    assert again.exitcode == 0
    assert len((made.work / "vision" / "log.jsonl").read_text().splitlines()) == done + 1


def test_a_killed_worker_ends_the_run_with_a_reason():
    workers = multiprocessing.get_context("spawn").Process(target=watch_one_die)
    workers.start()
    workers.join(timeout=600)
    assert workers.exitcode == 0


def watch_one_die():
    made = torch.multiprocessing.start_processes(die_or_stay, nprocs=2, join=False, start_method="fork")
    with pytest.raises(TrainingError, match="most likely for memory"):
        nano_train._wait(made)
    assert not any(process.is_alive() for process in made.processes)


def die_or_stay(rank):
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def wait(condition, seconds=180.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rows_of_like_length_together_give_what_all_together_give(world, model, monkeypatch):
    batch = batch_of(WindowSource(world, dataclasses.replace(DRAWS, episodes=3, clips=3)), 1)
    assert len(set(batch.rows.lengths.tolist())) > 1
    objective = AnswerObjective(model, Probes(192))
    losses, gradients = [], []
    for rows in (1, 4, 6):
        monkeypatch.setattr(nano_objective, "_ROWS", rows)
        objective.zero_grad(set_to_none=True)
        loss, _ = objective(batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.network.model.language_model.layers[0].mlp.up_proj.weight.grad)
    objective.zero_grad(set_to_none=True)
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-3)


def test_two_processes_share_the_work(data, tmp_path):
    made = job(data, tmp_path, processes=2)
    child = in_process(made)
    child.join(timeout=300)
    assert child.exitcode == 0
    assert trained(made)
    log = (made.work / "answers" / "log.jsonl").read_text().splitlines()
    assert len(log) == RECIPE.steps
    assert len((made.work / "finish" / "log.jsonl").read_text().splitlines()) == RECIPE.steps
    assert json.loads(log[0])["samples"] > 4
