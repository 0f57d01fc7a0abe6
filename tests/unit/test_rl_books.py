# SPDX-License-Identifier: Apache-2.0
"""The books: throttling, lost workers, late answers, replaced questions, and coming back after a crash."""

import dataclasses
import random

import pytest

from training.rl.books import Books, BooksError, Group, Judgement, Sampled, Ticket
from training.rl.patience import Patience


def make(directory, **changes):
    values = {
        "questions": 3,
        "max_staleness": 1,
        "iterations": 10,
        "max_attempts": 3,
        "dynamic_sampling": False,
        "lease_s": 100.0,
    } | changes
    return Books(directory, **values)


def answer(ticket, version=0, text="x"):
    sampled = Sampled(text, (1, 2), (-0.1, -1 / 3), (version, version), False)
    return Group(ticket, "toy", (sampled, sampled))


def judged(group, rewards=(0.0, 1.0)):
    return dataclasses.replace(group, judgements=tuple(Judgement(1.0, r, r) for r in rewards))


def finish(books, ticket, rewards=(0.0, 1.0), version=0):
    assert books.answered(answer(ticket, version))
    group = books.next_to_judge("judge")
    assert books.judged(judged(group, rewards))


def test_nothing_is_given_out_before_the_first_weights(tmp_path):
    books = make(tmp_path)
    assert books.next_ticket("a", -1) is None
    books.published(0)
    assert books.next_ticket("a", -1) == 0  # load them first
    assert books.next_ticket("a", 0) == Ticket(0, 0, 0)


def test_staleness_throttles_and_the_soonest_needed_comes_first(tmp_path):
    books = make(tmp_path, max_staleness=1)
    books.published(0)
    tickets = [books.next_ticket("a", 0) for _ in range(6)]
    assert tickets == [Ticket(i, p, 0) for i in (0, 1) for p in range(3)]
    assert books.next_ticket("a", 0) is None  # iteration 2 would be trained two versions later
    for ticket in tickets[:3]:
        finish(books, ticket)
    books.published(1)
    assert books.next_ticket("a", 0) == 1
    assert books.next_ticket("a", 1) == Ticket(2, 0, 0)


def test_a_batch_is_its_places_whoever_was_faster(tmp_path):
    books = make(tmp_path)
    books.published(0)
    tickets = [books.next_ticket("a", 0) for _ in range(6)]
    for ticket in reversed(tickets[1:]):
        finish(books, ticket)
    assert books.batch(0) is None
    finish(books, tickets[0])
    assert [group.ticket for group in books.batch(0)] == tickets[:3]


def test_a_lost_workers_tickets_go_to_others_and_its_late_answer_is_refused(tmp_path):
    books = make(tmp_path)
    books.published(0)
    ticket = books.next_ticket("a", 0)
    assert books.lost("a") == 1
    assert books.next_ticket("b", 0) == ticket
    assert books.answered(answer(ticket, text="of b"))
    assert not books.answered(answer(ticket, text="of a"))
    assert books.next_to_judge("judge").answers[0].text == "of b"
    assert books.next_to_judge("other") is None
    assert books.lost("judge") == 1
    assert books.next_to_judge("other").ticket == ticket
    assert books.counts.refused == 1
    assert books.counts.taken_back == 2


def test_a_lease_ends(tmp_path):
    now = [0.0]
    books = make(tmp_path, questions=1, max_staleness=0, clock=lambda: now[0], lease_s=10.0)
    books.published(0)
    assert books.next_ticket("slow", 0) == Ticket(0, 0, 0)
    now[0] = 9.0
    assert books.next_ticket("quick", 0) is None
    now[0] = 11.0
    assert books.next_ticket("quick", 0) == Ticket(0, 0, 0)


def test_a_failed_question_is_replaced_and_a_place_that_always_fails_ends_the_run(tmp_path, capsys):
    books = make(tmp_path, questions=1)
    books.published(0)
    for attempt in range(3):
        assert books.batch(0) is None
        ticket = books.next_ticket("a", 0)
        assert ticket == Ticket(0, 0, attempt)
        books.failed(ticket, "its reward raised KeyError: 'x'")
    assert "its reward raised KeyError: 'x'" in capsys.readouterr().out
    with pytest.raises(BooksError, match=r"3 questions in a row failed.*KeyError"):
        books.batch(0)


def test_a_failure_after_groups_that_taught_nothing_does_not_end_the_run(tmp_path):
    books = make(tmp_path, questions=1, dynamic_sampling=True)
    books.published(0)
    for _ in range(2):
        finish(books, books.next_ticket("a", 0), rewards=(1.0, 1.0))
    books.failed(books.next_ticket("a", 0), "its clip is broken")
    assert books.next_ticket("a", 0) == Ticket(0, 0, 3)
    again = make(tmp_path, questions=1, dynamic_sampling=True)  # a restart meets the same questions
    again.published(0)
    for attempt in (2, 3):
        assert again.next_ticket("a", 0) == Ticket(0, 0, attempt)
        again.failed(Ticket(0, 0, attempt), "its clip is broken")
    finish(again, again.next_ticket("a", 0))
    assert len(again.batch(0)) == 1


def test_a_question_over_which_workers_die_has_failed(tmp_path):
    books = make(tmp_path)
    books.published(0)
    for life in range(3):
        assert books.next_ticket(f"a.{life}", 0) == Ticket(0, 0, 0)
        books.lost(f"a.{life}")
    assert books.next_ticket("a.3", 0) == Ticket(0, 0, 1)
    assert books.counts.failed == 1


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tmp_path):
    books = make(tmp_path, questions=1, dynamic_sampling=True)
    books.published(0)
    for attempt in range(2):
        finish(books, books.next_ticket("a", 0), rewards=(1.0, 1.0))
        assert books.batch(0) is None
        assert books.counts.replaced == attempt + 1
    finish(books, books.next_ticket("a", 0), rewards=(1.0, 1.0))  # the last attempt is taken as it is
    assert books.batch(0)[0].ticket == Ticket(0, 0, 2)


def test_books_that_start_anew_know_what_was_judged(tmp_path):
    first = make(tmp_path, dynamic_sampling=True)
    first.published(0)
    tickets = [first.next_ticket("a", 0) for _ in range(3)]
    finish(first, tickets[0])
    finish(first, tickets[1], rewards=(1.0, 1.0))
    first.answered(answer(tickets[2]))  # not judged: it is asked again
    kept = first._entries[0][0].group
    path = next(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text() + '{"ticket": {"itera')  # the crash came while a line was written

    books = make(tmp_path, dynamic_sampling=True)
    assert books._entries[0][0].group == kept
    assert books._entries[0][0].group.answers[0].log_probs == (-0.1, -1 / 3)
    assert books.batch(0) is None  # says the version as well
    assert [books.next_ticket("b", 0) for _ in range(2)] == [Ticket(0, 1, 1), Ticket(0, 2, 0)]
    finish(books, Ticket(0, 1, 1))
    finish(books, Ticket(0, 2, 0))
    assert len(books.batch(0)) == 3
    assert [group.ticket for group in make(tmp_path, dynamic_sampling=True).batch(0)] == [
        Ticket(0, 0, 0),
        Ticket(0, 1, 1),
        Ticket(0, 2, 0),
    ]


def test_a_trainer_that_goes_back_finds_its_groups_until_a_checkpoint_covers_them(tmp_path):
    books = make(tmp_path, questions=1)
    for iteration in range(3):
        books.published(iteration)
        finish(books, books.next_ticket("a", iteration), version=iteration)
    books.checkpointed(1)
    books.published(1)  # killed, and back at its checkpoint
    assert books.batch(1)[0].answers[0].versions == (1, 1)
    assert books.batch(2)[0].ticket == Ticket(2, 0, 0)
    assert 0 not in books._entries
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_full_disk_ends_the_run_with_a_clear_line(tmp_path):
    books = make(tmp_path / "rollouts", questions=1)
    books.published(0)
    ticket = books.next_ticket("a", 0)
    books.answered(answer(ticket))
    group = books.next_to_judge("judge")
    (tmp_path / "rollouts").rmdir()
    (tmp_path / "rollouts").write_text("no folder any more")
    books.judged(judged(group))
    with pytest.raises(BooksError, match=r"cannot be written.*make room"):
        books.batch(0)


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_lose_nothing_and_train_nothing_twice(tmp_path, seed):
    """Workers, judges, trainer and the books themselves die at random; every place is trained once."""
    rng = random.Random(seed)
    arguments = {"questions": 4, "iterations": 8, "max_staleness": rng.choice([0, 1, 3])}
    books = make(tmp_path, **arguments)
    version, saved = 0, 0
    trained = []  # of the surviving history: tickets an iteration
    rolling, judging = {}, {}
    books.published(0)
    for _ in range(5000):
        event = rng.random()
        worker = rng.choice("abc")
        if event < 0.35 and worker not in rolling:
            order = books.next_ticket(worker, books.version)
            if isinstance(order, Ticket):
                assert version <= order.iteration <= version + arguments["max_staleness"]
                rolling[worker] = (order, books.version)
        elif event < 0.6 and worker in rolling:
            ticket, rolled_with = rolling.pop(worker)
            books.answered(answer(ticket, rolled_with))
        elif event < 0.7 and worker not in judging:
            group = books.next_to_judge(worker)
            if group:
                judging[worker] = group
        elif event < 0.8 and worker in judging:
            books.judged(judged(judging.pop(worker)))
        elif event < 0.84:  # a worker dies
            rolling.pop(worker, None)
            judging.pop(worker, None)
            books.lost(worker)
        elif event < 0.85:  # the books die
            books = make(tmp_path, **arguments)
        elif event < 0.86:  # the trainer dies and goes back to its checkpoint
            version = saved
            del trained[version:]
            books.published(version)
        else:  # the trainer asks
            groups = books.batch(version)
            if groups is None:
                continue
            for group in groups:
                stale = {version - v for answer_ in group.answers for v in answer_.versions}
                assert max(stale) <= arguments["max_staleness"]
            trained.append([group.ticket for group in groups])
            version += 1
            if rng.random() < 0.4:
                saved = version
                books.checkpointed(saved)
            if version == arguments["iterations"]:
                break
            books.published(version)
    assert [[(t.iteration, t.place) for t in tickets] for tickets in trained] == [
        [(iteration, place) for place in range(4)] for iteration in range(8)
    ]


def test_one_who_waits_asks_ever_more_rarely_until_something_comes(monkeypatch):
    slept = []
    monkeypatch.setattr("training.rl.patience.time.sleep", slept.append)
    patience = Patience()
    assert [patience.wait() for _ in range(6)] == slept
    assert slept == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25])
    patience.renew()
    assert patience.wait() == pytest.approx(0.02)
