# SPDX-License-Identifier: Apache-2.0
"""Whole runs in one process: what rollouts and trainer agree on, going on after a crash, and bad luck."""

import dataclasses
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from cosmos_reason_node.models.qwen2_5_vl import load
from tests.unit.rl_files import close, make_base, rolled, short, story
from tests.unit.sft_files import forked, wait_for
from training.rl import toy
from training.rl.actors import run_ray
from training.rl.books import BooksError, RolloutError
from training.rl.config import ConfigError
from training.rl.groups import Ticket
from training.rl.loop import judge_one, make_books, make_roller, roll_one, run_inline
from training.rl.policy import GrpoLoss, Policy, RowPacker
from training.rl.publish import WeightStore, weight_store
from training.rl.rewards import judge
from training.rl.run import WeightsError, prepare, train_role, wait_for_groups
from training.sft.lock import only_run
from training.sft.loop import Interrupted, TrainingError
from training.sft.parallel import Context
from training.sft.report import read_log

torch.set_num_threads(1)
CONFIGS = Path(__file__).parents[2] / "training" / "configs"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("rl"))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    run_inline(short(*base, output))
    return output


@pytest.mark.parametrize("at_once", [0.0, 1.0])
def test_rollout_log_probs_equal_the_trainers(base, tmp_path, at_once):
    many = {"group_size": 16}
    config = short(*base, tmp_path / "run", grpo=many, data={"at_once_share": at_once})
    roller, judged = rolled(config)
    model = load(config.model.path, device="cpu", dtype="float32")
    packer = RowPacker(model, config, roller.sampler.window)
    rows = [row for group, task in judged for row in packer.rows(group, task)]
    batch = packer.batch(rows)
    policy = Policy(model, torch.float32, frozen_vision=False)
    log_probs = GrpoLoss(policy, None, config.grpo).log_probs(batch)
    assert close(log_probs, batch.sampled, 1e-4)
    lengths = [len(answer.tokens) for group, _ in judged for answer in group.answers]
    assert len(batch.sampled) == sum(lengths)
    assert all(set(answer.versions) == {0} for group, _ in judged for answer in group.answers)
    # Bounded rows: a group is spread over several, and what is computed stays the same.
    opening = "<think>\n\n</think>\n\n<answer>\n"
    texts = [answer.text for group, _ in judged for answer in group.answers]
    assert all(text.startswith(opening) for text in texts) is bool(at_once)
    narrow = short(*base, tmp_path / "run", grpo=many, data={"max_tokens": 64, "at_once_share": at_once})
    spread = RowPacker(model, narrow, roller.sampler.window)
    pieces = [row for group, task in judged for row in spread.rows(group, task)]
    assert len(pieces) > len(rows)
    assert close(GrpoLoss(policy, None, config.grpo).log_probs(spread.batch(pieces)), log_probs, 1e-4)


def test_a_frozen_tower_is_run_once_for_policy_and_reference(base, tmp_path):
    config = short(*base, tmp_path / "run", model={"train_vision": False})
    alone = Context(0, 1, 1, torch.device("cpu"))
    model, objective = prepare(config, Path(config.model.path), alone)
    _, apart = prepare(short(*base, tmp_path / "run"), Path(config.model.path), alone)
    roller = make_roller(config)
    roller.version = 0
    ticket = Ticket(0, 0, 0)
    task = roller.sampler.draw(ticket)
    group = judge(roller.roll(ticket), task, config)
    packer = RowPacker(model, config, roller.sampler.window)
    batch = packer.batch(packer.rows(group, task))
    with torch.no_grad():
        for parameter in model.network.model.language_model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        calls = []
        handle = model.network.model.visual.register_forward_hook(lambda *_: calls.append(1))
        loss, measures = objective(batch)
        handle.remove()
        apart.policy = objective.policy
        apart.policy.frozen_vision = False
        expected, theirs = apart(batch)
    assert calls == [1]
    assert measures["kl"] > 0
    assert close(loss, expected, 1e-6)
    assert close(measures["kl"], theirs["kl"], 1e-6)


def test_what_a_run_leaves_behind(whole):
    assert load(whole / "model", device="cpu").digest
    entries = read_log(whole / "monitor")
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3]
    assert all(set(entry["staleness"]) == {"0"} for entry in entries)
    page = (whole / "rl.html").read_text()
    assert "Entropy" in page
    assert "http" not in page.replace("http-equiv", "")
    assert list((whole / "events").glob("events*"))
    assert all({"kl", "entropy", "clip_fraction"} <= set(entry) for entry in read_log(whole))
    assert read_log(whole)[-1]["kl"] > 0


def test_a_killed_run_goes_on_bit_for_bit(base, whole, tmp_path):
    config = short(*base, tmp_path / "run")
    child = forked(run_inline, config)
    log = tmp_path / "run" / "monitor" / "log.jsonl"
    wait_for(lambda: (log.exists() and len(log.read_text().splitlines()) >= 4) or not child.is_alive())
    child.kill()
    child.join()
    run_inline(config)
    assert story(tmp_path / "run") == story(whole)


def test_groups_of_the_journal_are_not_rolled_again(base, whole, tmp_path):
    """A crash after the last checkpoint: what was judged since is taken from the books, not made anew."""
    output = tmp_path / "run"
    config = short(*base, output, run={"save_every": 100})
    run_inline(config)
    kept = sorted(path.read_text() for path in (output / "rollouts").glob("*/*.jsonl"))
    assert len(kept) == 4
    shutil.rmtree(output / "checkpoints")
    run_inline(config)
    assert sorted(path.read_text() for path in (output / "rollouts").glob("*/*.jsonl")) == kept
    assert story(output) == story(whole)


@pytest.mark.parametrize("train_vision", [True, False])
def test_two_trainer_processes_do_what_one_does(base, tmp_path, train_vision):
    """Sharded (FSDP2 over gloo), with the same answers, taken from the books of the single process."""
    changes = {"run": {"save_every": 100}, "model": {"train_vision": train_vision}}
    one = short(*base, tmp_path / "one", **changes)
    run_inline(one)
    shutil.copytree(tmp_path / "one" / "rollouts", tmp_path / "two" / "rollouts")
    two = short(*base, tmp_path / "two", **changes)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        train_role(two, make_books(two))

    processes = [forked(work, rank) for rank in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (told, alone), (same, together) = story(tmp_path / "one"), story(tmp_path / "two")
    assert told == same
    assert close(alone, together, 1e-3)
    first, second = (load(tmp_path / n / "model", device="cpu").network.state_dict() for n in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("preset", ["modern"])
def test_minibatches_with_dynamic_sampling(base, tmp_path, preset):
    config = short(
        *base,
        tmp_path / "run",
        grpo={"preset": preset, "kl_coefficient": 0.0, "minibatches": 2, "group_size": 2, "max_attempts": 3},
        optimizer={"steps": 4, "batch": 3},
    )
    run_inline(config)
    entries = read_log(tmp_path / "run" / "monitor")
    assert [len(entry["attempts"]) for entry in entries] == [6, 6]
    assert any(attempt for entry in entries for attempt in entry["attempts"])
    trained = read_log(tmp_path / "run")
    assert len(trained) == 4
    assert trained[0]["importance"] == pytest.approx(1.0, abs=1e-3)
    assert trained[1]["importance"] != pytest.approx(1.0, abs=1e-6)  # the weights have moved since


def test_a_run_stopped_amid_the_steps_of_an_iteration_does_that_iteration_anew(base, tmp_path):
    """Its weights are not those of any version, and its ratios are taken against those of its start."""
    changes = {
        "grpo": {"preset": "modern", "minibatches": 2, "group_size": 4},
        "optimizer": {"steps": 6, "batch": 2},
        "run": {"save_every": 1, "keep": 1},
    }
    run_inline(short(*base, tmp_path / "whole", **changes))
    config, real, passes = short(*base, tmp_path / "run", **changes), GrpoLoss.forward, []

    def interrupting(self, batch):
        passes.append(batch)
        if len(read_log(tmp_path / "run")) == 2:  # while the third of six steps is computed
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrpoLoss, "forward", interrupting)
        with pytest.raises(Interrupted, match="after step 3"):
            run_inline(config)
    run_inline(config)
    entries = [
        [(e["step"], e["loss"], e["importance"]) for e in read_log(tmp_path / n)] for n in ("whole", "run")
    ]
    assert entries[0] == entries[1]
    told = [[e["digest"] for e in read_log(tmp_path / n / "monitor")] for n in ("whole", "run")]
    assert told[0] == told[1]


class SlowBooks:
    """Books that have a batch after so many seconds; ``counting``: what happens meanwhile."""

    def __init__(self, seconds, *, counting=""):
        self.begun, self.seconds, self.counting = time.monotonic(), seconds, counting

    def batch(self, iteration):
        return [] if time.monotonic() - self.begun > self.seconds else None

    def unloadable(self):
        return True

    def report(self):
        counts = {"judged": 3, "taken_back": 0, "failed": 0}
        if self.counting:
            counts[self.counting] += int(1000 * (time.monotonic() - self.begun))
        return {"counts": counts}


@pytest.mark.parametrize("counting", ["judged", "taken_back", "failed"])
def test_the_trainer_waits_as_long_as_answers_come_or_workers_end_over_a_question(counting):
    assert wait_for_groups(SlowBooks(1.5, counting=counting), 0, 0.4) == []


def test_the_trainer_waits_no_longer_where_nothing_happens():
    with pytest.raises(TrainingError, match=r"nothing was answered and judged for 0.4 s.*run.timeout_s"):
        wait_for_groups(SlowBooks(60.0), 0, 0.4)


def test_the_trainer_does_not_wait_for_workers_that_cannot_load_its_weights(monkeypatch):
    monkeypatch.setattr("training.rl.run._LOOK_S", 0.1)
    with pytest.raises(WeightsError, match="cannot load the weights of version 7"):
        wait_for_groups(SlowBooks(60.0), 7, 60.0)


def test_a_reward_that_raises(base, tmp_path, monkeypatch, capsys):
    def broken(text, query, answer):
        raise KeyError("no such answer")

    monkeypatch.setattr("training.rl.rewards.judge_for", lambda name: broken)
    with pytest.raises(BooksError, match=r"4 questions in a row failed.*: \d+: its reward raised KeyError"):
        run_inline(short(*base, tmp_path / "run"))
    assert "its reward raised KeyError" in capsys.readouterr().out


def test_an_answer_that_never_ends_is_cut_and_earns_nothing(base, tmp_path):
    config = short(*base, tmp_path / "run", rollout={"max_tokens": 3})
    roller = make_roller(config)
    roller.version = 0
    group = roller.roll(Ticket(0, 0, 0))
    assert all(answer.cut and len(answer.tokens) == 3 for answer in group.answers)
    judged = judge(group, roller.sampler.draw(group.ticket), config)
    assert set(judged.rewards) == {0.0}


def test_a_group_that_takes_too_long_is_a_clear_failure(base, tmp_path, capsys):
    config = short(*base, tmp_path / "run", rollout={"deadline_s": 0.1})
    roller = make_roller(config)
    roller.version = 0
    asked = roller._request
    roller._request = lambda *of: dataclasses.replace(asked(*of), deadline_s=1e-9)
    with pytest.raises(RolloutError, match="DEADLINE_EXCEEDED"):
        roller.roll(Ticket(0, 0, 0))
    books = make_books(config)
    books.published(0)
    assert roll_one(books, WeightStore(tmp_path), roller, "a")
    assert books.counts.failed == 1
    assert "DEADLINE_EXCEEDED" in capsys.readouterr().out


def test_a_round_says_what_its_groups_say_alone(base, tmp_path):
    config = short(*base, tmp_path / "run")
    roller = make_roller(config)
    roller.version = 0
    tickets = [Ticket(0, place, 0) for place in range(4)]
    alone = [roller.roll(ticket) for ticket in tickets]
    asked = roller._request
    late = tickets[1]

    def request(ticket, task):
        made = asked(ticket, task)
        return dataclasses.replace(made, deadline_s=1e-9) if ticket == late else made

    groups, failures = roller.roll_round(tickets)
    assert not failures
    for group, other in zip(groups, alone, strict=True):
        assert group.ticket == other.ticket
        assert group.beside == tuple((ticket.place, 0) for ticket in tickets)
        for answer, its in zip(group.answers, other.answers, strict=True):
            assert answer.tokens == its.tokens
            assert answer.log_probs == pytest.approx(its.log_probs, abs=2e-5)
    roller._request = request
    groups, [(ticket, reason)] = roller.roll_round(tickets)
    assert ticket == late
    assert "DEADLINE_EXCEEDED" in reason
    assert [group.ticket for group in groups] == [tickets[0], *tickets[2:]]
    assert {group.beside for group in groups} == {((0, 0), (2, 0), (3, 0))}
    assert [[a.tokens for a in g.answers] for g in groups] == [
        [a.tokens for a in g.answers] for g in alone if g.ticket != late
    ]


def test_a_worker_waits_for_weights_that_are_announced_but_not_written(base, tmp_path):
    config = short(*base, tmp_path / "run")
    roller, store, books = make_roller(config), weight_store(config), make_books(config)
    store.publish(0, roller._model.network.state_dict())
    books.published(0)
    assert roll_one(books, store, roller, "a")  # takes them
    books.published(1)
    assert not roll_one(books, store, roller, "a")  # or it would read the old ones without a pause
    store.publish(1, roller._model.network.state_dict())
    assert roll_one(books, store, roller, "a")
    assert roller.version == 1


def one_answered(tmp_path):
    """(checkpoint, data, settings) of a run whose journal holds one judged group."""
    base, data = make_base(tmp_path / "toy")
    config = short(base, data, tmp_path / "run")
    roller, books = make_roller(config), make_books(config)
    roller.version = 0
    books.published(0)
    assert roll_one(books, WeightStore(tmp_path), roller, "a")
    assert judge_one(books, roller.sampler, config, "j")
    assert make_books(config).report()["done"] == 1
    return base, data, config


def test_answers_to_questions_that_were_changed_are_not_taken_back(tmp_path):
    _, data, config = one_answered(tmp_path)
    lines = (data / "samples.jsonl").read_text().splitlines(keepends=True)
    (data / "samples.jsonl").write_text("".join(lines[1:]))
    assert make_books(config).report()["done"] == 0
    (data / "samples.jsonl").write_text("".join(lines))
    assert make_books(config).report()["done"] == 1


def test_answers_of_another_checkpoint_are_not_taken_back(tmp_path):
    """Fine-tuned anew in the same place: what the one before had answered is no rollout of this one."""
    base, _, config = one_answered(tmp_path)
    toy.write_model(base, 1)
    assert make_books(config).report()["done"] == 0


def test_a_loss_that_is_not_finite(base, tmp_path, monkeypatch):
    real = GrpoLoss.forward

    def broken(self, batch):
        loss, measures = real(self, batch)
        return loss * float("nan"), measures

    monkeypatch.setattr(GrpoLoss, "forward", broken)
    with pytest.raises(TrainingError, match=r"the loss is nan.*Lower optimizer.peak_rate"):
        run_inline(short(*base, tmp_path / "run"))


def test_one_output_takes_one_run(base, tmp_path):
    config = short(*base, tmp_path / "run")
    with only_run(tmp_path / "run"), pytest.raises(ConfigError, match="another run is writing to"):
        run_inline(config)
    with only_run(tmp_path / "run"), pytest.raises(ConfigError, match="another run is writing to"):
        run_ray(config)
