# SPDX-License-Identifier: Apache-2.0
"""The books: throttling, lost workers, late answers, replaced questions, and coming back after a crash."""

import dataclasses
import random

import pytest

from training.rl.books import Books, BooksError
from training.rl.groups import Group, Judgement, Sampled, Ticket
from training.rl.patience import Patience


def make(directory, **changes):
    values = {
        "questions": 3,
        "max_staleness": 1,
        "iterations": 10,
        "max_attempts": 3,
        "dynamic_sampling": False,
        "silence_s": 100.0,
    } | changes
    return Books(directory, **values)


def answer(ticket, version=0, text="x"):
    sampled = Sampled(text, (1, 2), (-0.1, -1 / 3), (version, version), False)
    return Group(ticket, "toy", (sampled, sampled))


def next_ticket(books, worker, version):
    """The only ticket of a round of one; the version to load; None."""
    order = books.next_round(worker, version)
    if not isinstance(order, tuple):
        return order
    (ticket,) = order
    return ticket


def judged(group, rewards=(0.0, 1.0)):
    return dataclasses.replace(group, judgements=tuple(Judgement(1.0, r, r) for r in rewards))


def finish(books, ticket, rewards=(0.0, 1.0), version=0):
    assert books.answered([answer(ticket, version)])
    group = books.next_to_judge("judge")
    assert books.judged(judged(group, rewards))


def test_nothing_is_given_out_before_the_first_weights(tmp_path):
    books = make(tmp_path)
    assert next_ticket(books, "a", -1) is None
    books.published(0)
    assert next_ticket(books, "a", -1) == 0  # load them first
    assert next_ticket(books, "a", 0) == Ticket(0, 0, 0)


def test_staleness_throttles_and_the_soonest_needed_comes_first(tmp_path):
    books = make(tmp_path, max_staleness=1)
    books.published(0)
    tickets = [next_ticket(books, "a", 0) for _ in range(6)]
    assert tickets == [Ticket(i, p, 0) for i in (0, 1) for p in range(3)]
    assert next_ticket(books, "a", 0) is None  # iteration 2 would be trained two versions later
    for ticket in tickets[:3]:
        finish(books, ticket)
    books.published(1)
    assert next_ticket(books, "a", 0) == 1
    assert next_ticket(books, "a", 1) == Ticket(2, 0, 0)


def test_a_batch_is_its_places_whoever_was_faster(tmp_path):
    books = make(tmp_path)
    books.published(0)
    tickets = [next_ticket(books, "a", 0) for _ in range(6)]
    for ticket in reversed(tickets[1:]):
        finish(books, ticket)
    assert books.batch(0) is None
    finish(books, tickets[0])
    assert [group.ticket for group in books.batch(0)] == tickets[:3]


def test_a_lost_workers_tickets_go_to_others_and_its_late_answer_is_refused(tmp_path):
    books = make(tmp_path)
    books.published(0)
    ticket = next_ticket(books, "a", 0)
    assert books.lost("a") == 1
    assert next_ticket(books, "b", 0) == ticket
    assert books.answered([answer(ticket, text="of b")])
    assert not books.answered([answer(ticket, text="of a")])
    assert books.next_to_judge("judge").answers[0].text == "of b"
    assert books.next_to_judge("other") is None
    assert books.lost("judge") == 1
    assert books.next_to_judge("other").ticket == ticket
    assert books.counts.refused == 1
    assert books.counts.taken_back == 2


def test_a_worker_that_is_not_heard_of_loses_its_work_and_is_told_once(tmp_path):
    now = [0.0]
    books = make(tmp_path, questions=1, max_staleness=0, clock=lambda: now[0], silence_s=10.0)
    books.published(0)
    assert next_ticket(books, "slow", 0) == Ticket(0, 0, 0)
    now[0] = 9.0
    assert next_ticket(books, "quick", 0) is None
    assert books.hanging() == []
    now[0] = 11.0
    assert books.hanging() == ["slow"]
    assert next_ticket(books, "quick", 0) == Ticket(0, 0, 0)
    assert books.hanging() == []
    assert books.counts.taken_back == 1
    assert books.lost("slow") == 0  # when it is ended: what it had is with another already
    assert books.answered([answer(Ticket(0, 0, 0), text="of quick")])
    assert not books.answered([answer(Ticket(0, 0, 0), text="of slow")])
    now[0] = 30.0
    assert books.hanging() == ["quick"]  # also one that had nothing: it may hang where it loads weights


def test_a_worker_that_hangs_while_it_loads_is_told(tmp_path):
    now = [0.0]
    books = make(tmp_path, clock=lambda: now[0], silence_s=10.0)
    books.began("rollout-0.1")
    now[0] = 11.0
    assert books.hanging() == ["rollout-0.1"]
    assert books.hanging() == []


def test_weights_that_a_worker_comes_back_without_are_told(tmp_path):
    now = [0.0]
    books = make(tmp_path, clock=lambda: now[0])
    books.published(0)
    assert books.next_round("slow", -1) == 0
    now[0] = 1000.0  # it loads for long: nothing is wrong
    assert not books.unloadable()
    assert isinstance(books.next_round("slow", 0), tuple)
    books.published(1)
    assert books.next_round("slow", 0) == 1
    assert books.next_round("slow", 0) == 1  # it came back without
    now[0] = 1050.0
    assert not books.unloadable()  # a file system may show new files late
    now[0] = 1061.0
    assert books.unloadable()
    assert isinstance(books.next_round("slow", 1), tuple)
    assert not books.unloadable()
    now[0] = 2000.0
    assert not books.unloadable()


def test_a_question_over_which_workers_hang_is_replaced(tmp_path, capsys):
    """A reward that never comes back: one reward worker after the other hangs, the run does not."""
    now = [0.0]
    books = make(tmp_path, questions=1, max_staleness=0, clock=lambda: now[0], silence_s=10.0)
    books.published(0)
    next_ticket(books, "a", 0)
    books.answered([answer(Ticket(0, 0, 0))])
    for life in range(3):
        assert books.next_to_judge(f"judge.{life}").ticket == Ticket(0, 0, 0)
        now[0] += 11.0
        assert f"judge.{life}" in books.hanging()
    assert "3 workers died or hung over it" in capsys.readouterr().out
    assert books.next_to_judge("judge.3") is None
    assert next_ticket(books, "a", 0) == Ticket(0, 0, 1)


def test_a_failed_question_is_replaced_and_a_place_that_always_fails_ends_the_run(tmp_path, capsys):
    books = make(tmp_path, questions=1)
    books.published(0)
    for attempt in range(3):
        assert books.batch(0) is None
        ticket = next_ticket(books, "a", 0)
        assert ticket == Ticket(0, 0, attempt)
        books.failed(ticket, "its reward raised KeyError: 'x'")
    assert "its reward raised KeyError: 'x'" in capsys.readouterr().out
    with pytest.raises(BooksError, match=r"3 questions in a row failed.*KeyError"):
        books.batch(0)


def test_a_failure_after_groups_that_taught_nothing_does_not_end_the_run(tmp_path):
    books = make(tmp_path, questions=1, dynamic_sampling=True)
    books.published(0)
    for _ in range(2):
        finish(books, next_ticket(books, "a", 0), rewards=(1.0, 1.0))
    books.failed(next_ticket(books, "a", 0), "its clip is broken")
    assert next_ticket(books, "a", 0) == Ticket(0, 0, 3)
    again = make(tmp_path, questions=1, dynamic_sampling=True)  # a restart meets the same questions
    again.published(0)
    for attempt in (2, 3):
        assert next_ticket(again, "a", 0) == Ticket(0, 0, attempt)
        again.failed(Ticket(0, 0, attempt), "its clip is broken")
    finish(again, next_ticket(again, "a", 0))
    assert len(again.batch(0)) == 1


def test_a_question_over_which_workers_die_has_failed(tmp_path):
    books = make(tmp_path)
    books.published(0)
    for life in range(3):
        assert next_ticket(books, f"a.{life}", 0) == Ticket(0, 0, 0)
        books.lost(f"a.{life}")
    assert next_ticket(books, "a.3", 0) == Ticket(0, 0, 1)
    assert books.counts.failed == 1


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tmp_path):
    books = make(tmp_path, questions=1, dynamic_sampling=True)
    books.published(0)
    for attempt in range(2):
        finish(books, next_ticket(books, "a", 0), rewards=(1.0, 1.0))
        assert books.batch(0) is None
        assert books.counts.replaced == attempt + 1
    finish(books, next_ticket(books, "a", 0), rewards=(1.0, 1.0))  # the last attempt is taken as it is
    assert books.batch(0)[0].ticket == Ticket(0, 0, 2)


def test_books_that_start_anew_know_what_was_judged(tmp_path):
    first = make(tmp_path, dynamic_sampling=True)
    first.published(0)
    tickets = [next_ticket(first, "a", 0) for _ in range(3)]
    finish(first, tickets[0])
    finish(first, tickets[1], rewards=(1.0, 1.0))
    first.answered([answer(tickets[2])])  # not judged: it is asked again
    kept = first._entries[0][0].group
    path = next(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text() + '{"ticket": {"itera')  # the crash came while a line was written

    books = make(tmp_path, dynamic_sampling=True)
    assert books._entries[0][0].group == kept
    assert books._entries[0][0].group.answers[0].log_probs == (-0.1, -1 / 3)
    assert books.batch(0) is None  # says the version as well
    assert [next_ticket(books, "b", 0) for _ in range(2)] == [Ticket(0, 1, 1), Ticket(0, 2, 0)]
    finish(books, Ticket(0, 1, 1))
    finish(books, Ticket(0, 2, 0))
    assert len(books.batch(0)) == 3
    assert [group.ticket for group in make(tmp_path, dynamic_sampling=True).batch(0)] == [
        Ticket(0, 0, 0),
        Ticket(0, 1, 1),
        Ticket(0, 2, 0),
    ]


def test_a_smaller_staleness_does_not_take_older_answers_back(tmp_path):
    first = make(tmp_path, questions=2, max_staleness=1)
    first.published(0)
    for _ in range(4):
        finish(first, next_ticket(first, "a", 0))
    again = make(tmp_path, questions=2, max_staleness=0)
    again.published(0)
    assert len(again.batch(0)) == 2
    assert next_ticket(again, "a", 0) is None
    again.published(1)
    assert again.batch(1) is None
    assert next_ticket(again, "a", 1) == Ticket(1, 0, 0)
    assert make(tmp_path, questions=2, max_staleness=1).batch(1) is None  # they are gone for good


def test_a_journal_that_cannot_be_mended_says_so(tmp_path, monkeypatch):
    finish_one = make(tmp_path, questions=1)
    finish_one.published(0)
    finish(finish_one, next_ticket(finish_one, "a", 0))
    path = next(tmp_path.glob("*.jsonl"))
    path.write_text(path.read_text() + "{")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.rl.journal.os.replace", full)
    with pytest.raises(BooksError, match=r"cannot be used .*No space left.*make room there"):
        make(tmp_path, questions=1)
    monkeypatch.undo()
    assert len(make(tmp_path, questions=1).batch(0)) == 1


def test_a_trainer_that_goes_back_finds_its_groups_until_a_checkpoint_covers_them(tmp_path):
    books = make(tmp_path, questions=1)
    for iteration in range(3):
        books.published(iteration)
        finish(books, next_ticket(books, "a", iteration), version=iteration)
    books.checkpointed(1)
    books.published(1)  # killed, and back at its checkpoint
    assert books.batch(1)[0].answers[0].versions == (1, 1)
    assert books.batch(2)[0].ticket == Ticket(2, 0, 0)
    assert 0 not in books._entries
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_trainer_that_goes_back_beyond_its_newest_checkpoint_asks_all_anew(tmp_path):
    """Later groups are of weights that this life of the trainer will not have."""
    books = make(tmp_path, questions=1)
    for iteration in range(4):
        books.published(iteration)
        finish(books, next_ticket(books, "a", iteration), version=iteration)
    books.checkpointed(3)
    for opened in (
        books,
        make(tmp_path, questions=1),
    ):  # the same books, and those of a run that starts again
        opened.published(1)  # checkpoint 3 was damaged
        assert opened.batch(1) is None
        assert next_ticket(opened, "a", 1) == Ticket(1, 0, 0)
        assert next_ticket(opened, "b", 1) == Ticket(2, 0, 0)
        assert opened.batch(3) is None


def test_a_full_disk_ends_the_run_with_a_clear_line(tmp_path):
    books = make(tmp_path / "rollouts", questions=1)
    books.published(0)
    ticket = next_ticket(books, "a", 0)
    books.answered([answer(ticket)])
    group = books.next_to_judge("judge")
    (tmp_path / "rollouts").rmdir()
    (tmp_path / "rollouts").write_text("no folder any more")
    books.judged(judged(group))
    with pytest.raises(BooksError, match=r"cannot be written.*make room"):
        books.batch(0)


@pytest.mark.parametrize("seed", range(30))
def test_random_deaths_lose_nothing_and_train_nothing_twice(tmp_path, seed):
    """Workers, judges, trainer and the books themselves die at random; every place is trained once.

    The dead may still deliver, workers hang, questions fail, and groups that teach nothing are replaced.
    """
    rng = random.Random(seed)
    now = [0.0]
    arguments = {
        "questions": 4,
        "iterations": 8,
        "max_staleness": rng.choice([0, 1, 3]),
        "dynamic_sampling": rng.random() < 0.5,
        "max_attempts": 50,
        "silence_s": 60.0,
        "clock": lambda: now[0],
    }
    books = make(tmp_path, **arguments)
    version, saved = 0, 0
    trained = []  # of the surviving history: groups an iteration
    rolling, judging = {}, {}  # of workers, dead ones under another name
    accepted, failed = {}, set()  # judged answers by place; tickets that were given up
    books.published(0)
    for step in range(20000):
        now[0] += 1.0
        event = rng.random()
        worker = rng.choice([*"abc", *rolling, *judging])
        living = worker in "abc"
        if event < 0.3 and living and worker not in rolling:
            order = next_ticket(books, worker, books.version)
            if isinstance(order, Ticket):
                assert version <= order.iteration <= version + arguments["max_staleness"]
                rolling[worker] = (order, books.version)
        elif event < 0.55 and worker in rolling:
            ticket, rolled_with = rolling.pop(worker)
            if rng.random() < 0.1:
                failures = books.counts.failed
                books.failed(ticket, "by chance")
                failed |= {ticket} if books.counts.failed > failures else set()
            else:
                books.answered([answer(ticket, rolled_with, text=f"{step}")])
        elif event < 0.65 and living and worker not in judging:
            group = books.next_to_judge(worker)
            if group:
                judging[worker] = group
        elif event < 0.75 and worker in judging:
            group = judged(judging.pop(worker), rng.choice([(0.0, 1.0), (1.0, 1.0)]))
            place = (group.ticket.iteration, group.ticket.place)
            if books.judged(group) and not (arguments["dynamic_sampling"] and group.rewards == [1.0, 1.0]):
                assert place not in accepted  # once, whoever died since
                assert group.ticket not in failed
                accepted[place] = group
        elif event < 0.79 and living:  # a worker dies, or is taken for dead
            for held in (rolling, judging):
                if worker in held:
                    held[f"{worker} of {step}"] = held.pop(worker)
            books.lost(worker)
        elif event < 0.8:
            now[0] += 61.0  # who has not answered by now hangs
            for hung in books.hanging():
                books.lost(hung)  # when it is ended; by then the work may be with another
        elif event < 0.81:  # the books die
            books = make(tmp_path, **arguments)
            failed = set()  # what failed is tried again
        elif event < 0.82:  # the trainer dies and goes back to its checkpoint
            version = saved
            del trained[version:]
            books.published(version)
        else:  # the trainer asks
            groups = books.batch(version)
            if groups is None:
                continue
            trained.append(groups)
            version += 1
            if rng.random() < 0.4:
                saved = version
                books.checkpointed(saved)
            if version == arguments["iterations"]:
                break
            books.published(version)
    assert [[(g.ticket.iteration, g.ticket.place) for g in groups] for groups in trained] == [
        [(iteration, place) for place in range(4)] for iteration in range(8)
    ]
    for iteration, groups in enumerate(trained):
        for group in groups:
            assert group == accepted[group.ticket.iteration, group.ticket.place]
            versions = {version for one in group.answers for version in one.versions}
            assert all(0 <= iteration - v <= arguments["max_staleness"] for v in versions)
            assert not arguments["dynamic_sampling"] or group.rewards == [0.0, 1.0]
    texts = [group.answers[0].text for groups in trained for group in groups]
    assert len(set(texts)) == len(texts)  # each answer in one place


def test_one_who_waits_asks_ever_more_rarely_until_something_comes(monkeypatch):
    slept = []
    monkeypatch.setattr("training.rl.patience.time.sleep", slept.append)
    patience = Patience()
    assert [patience.wait() for _ in range(6)] == slept
    assert slept == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.25, 0.25])
    patience.renew()
    assert patience.wait() == pytest.approx(0.02)


def round_of(*tickets, **changes):
    """Answers of tickets that were written together."""
    beside = tuple((ticket.place, ticket.attempt) for ticket in tickets)
    return [dataclasses.replace(answer(ticket, **changes), beside=beside) for ticket in tickets]


def judge_all(books, rewards):
    """Judge what waits; rewards by place."""
    while group := books.next_to_judge("judge"):
        assert books.judged(judged(group, rewards.get(group.ticket.place, (0.0, 1.0))))


def test_who_is_in_a_round_does_not_depend_on_who_was_faster(tmp_path):
    books = make(tmp_path, questions=5, together=3, max_staleness=0, dynamic_sampling=True)
    books.published(0)
    first = books.next_round("a", 0)
    assert first == tuple(Ticket(0, place, 0) for place in range(3))
    second = books.next_round("b", 0)
    assert second == (Ticket(0, 3, 0), Ticket(0, 4, 0))
    assert books.next_round("c", 0) is None
    assert books.answered(round_of(*first[:2]), [(first[2], "its clip is broken")]) == 2
    assert (
        books.next_round("c", 0) is None
    )  # place 2 is open, but others of its parcel may have to be replaced
    judge_all(books, {0: (1.0, 1.0)})
    assert books.next_round("c", 0) == (Ticket(0, 0, 1), Ticket(0, 2, 1))
    assert books.lost("b") == 2
    assert books.next_round("d", 0) == second  # the same, as one
    assert books.lost("c") == 2
    assert books.counts.taken_back == 4


def test_of_a_round_that_was_not_judged_whole_nothing_is_taken_back(tmp_path):
    books = make(tmp_path, questions=4, together=2, max_staleness=0)
    books.published(0)
    for worker in "ab":
        assert books.answered(round_of(*books.next_round(worker, 0))) == 2
    for _ in range(3):
        assert books.judged(judged(books.next_to_judge("judge")))
    again = make(tmp_path, questions=4, together=2, max_staleness=0)
    again.published(0)
    assert again.report()["done"] == 2
    assert again.next_round("a", 0) == (Ticket(0, 2, 0), Ticket(0, 3, 0))
    assert again.answered(round_of(Ticket(0, 2, 0), Ticket(0, 3, 0), text="again")) == 2
    judge_all(again, {})
    assert [group.answers[0].text for group in again.batch(0)] == ["x", "x", "again", "again"]
    assert make(tmp_path, questions=4, together=2).report()["done"] == 4


def test_a_journal_from_before_rounds_is_taken_back(tmp_path):
    books = make(tmp_path)
    books.published(0)
    finish(books, next_ticket(books, "a", 0))
    (journal,) = tmp_path.glob("iteration-*.jsonl")
    written = journal.read_text()
    journal.write_text(written.replace(',"beside":[]', ""))
    assert journal.read_text() != written
    assert make(tmp_path).report()["done"] == 1
