# SPDX-License-Identifier: Apache-2.0
"""Questions about clips: right by the states, balanced, and not to be guessed from text or length."""

import collections
import re

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the simulator is only needed for training: requirements/train.txt")
pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node.prompt import check_query, is_yes_no
from training.data.schema import QuestionKind
from training.data.sim.kinds import (
    GROUPS,
    anti_physics,
    arrow_of_time,
    camera,
    causality,
    draw,
    kind_and_category,
    mechanics,
    object_permanence,
    order,
    questions_for,
    relationship,
)
from training.data.sim.kinds.vocabulary import words
from training.data.sim.physics.derive import reverse
from training.data.sim.physics.palette import COLOURS
from training.data.sim.physics.run import run_clip
from training.data.sim.sample import Span

CLIPS, DRAWS = 220, 6
WHOLE = Span(0, 16)


@pytest.fixture(scope="module")
def asked():
    """All samples of a few hundred clips of both splits, not rendered: (sample, clip)."""
    found = []
    for seed in (*range(CLIPS), *range(1_000_000, 1_000_000 + CLIPS // 4)):
        clip = run_clip(seed, render=False)
        rng = np.random.default_rng([seed, 2])
        for _ in range(DRAWS):
            drawn, span = draw(clip, rng)
            found += [(sample, drawn) for sample in questions_for(drawn, span, rng)]
    return found


def right(sample):
    """The right answer in words."""
    return sample.query.options["ABCD".index(sample.answer)] if sample.query.options else sample.answer


def form(sample):
    return "choice" if sample.query.options else "yes_no" if is_yes_no(sample.query) else "free"


def of(asked, group, kind=None):
    return [s for s, _ in asked if s.group == group and (kind is None or form(s) == kind)]


def test_every_kind_is_asked_in_every_form_it_has(asked):
    forms = collections.defaultdict(collections.Counter)
    for sample, _ in asked:
        forms[sample.group][form(sample)] += 1
    assert set(forms) == set(GROUPS)
    for group, counts in forms.items():
        expected = {"choice", "free"} | (
            set() if group in ("causality", "order", "spatial_puzzle") else {"yes_no"}
        )
        assert set(counts) == expected, group
        assert min(counts.values()) >= 10, (group, counts)


def test_every_question_is_one_the_node_accepts_and_has_a_trace(asked):
    for sample, clip in asked:
        check_query(sample.query)
        assert sample.span.last < clip.length
        assert 3 <= len(sample.reasoning.split()) <= 24
        if sample.query.options:
            assert len(set(sample.query.options)) == len(sample.query.options)
            assert sample.answer in "ABCD"[: len(sample.query.options)]
        kind, category = kind_and_category(sample.group)
        assert kind is not QuestionKind.COMMON_SENSE or category == sample.group


def test_no_word_is_outside_the_vocabulary(asked):
    used = set()
    for sample, _ in asked:
        answer = "" if sample.query.options else sample.answer
        texts = (sample.query.question, *sample.query.options, answer, sample.reasoning)
        used |= {word.lower() for word in re.findall(r"[^\s.,:?]+", " ".join(texts))}
    assert used <= set(words())
    assert len(set(words()) - used) <= 12, "a word that nothing uses"


def test_yes_and_no_are_equally_frequent(asked):
    for group in GROUPS:
        answers = [s.answer == "yes" for s in of(asked, group, "yes_no")]
        if answers:
            assert abs(np.mean(answers) - 0.5) < 0.5 / np.sqrt(len(answers)) * 2.6 + 0.05, group


def test_the_right_option_is_at_every_letter(asked):
    for group in GROUPS:
        for count in (2, 3, 4):
            letters = [s.answer for s in of(asked, group, "choice") if len(s.query.options) == count]
            if len(letters) >= 60:
                shares = [letters.count(letter) / len(letters) for letter in "ABCD"[:count]]
                assert max(shares) < 1 / count + 2.8 * np.sqrt(1 / count / len(letters)), (
                    group,
                    count,
                    shares,
                )


def without_colours(text):
    return re.sub(rf"\b({'|'.join(COLOURS)})\b", "<colour>", text)


def guesses(samples):
    """Share of right answers of one who knows text, length and how often what was right, but sees nothing.

    Learns from one half of the clips and is scored on the other: for each question (colours left out) and
    length of window the most frequent answer, for options how often each was right when offered.
    """
    by_length = collections.defaultdict(collections.Counter)
    by_text = collections.defaultdict(collections.Counter)
    offered = collections.Counter()
    hits, chance = [], []
    for learn in (True, False):
        for sample in samples:
            if (sample.provenance.seed % 2 == 0) != learn:
                continue
            text = without_colours(sample.query.question)
            options = sample.query.options
            answer = without_colours(right(sample))
            keys = (text, sample.span.length), text
            if learn:
                by_length[keys[0]][answer] += 1
                by_text[keys[1]][answer] += 1
                offered.update(set(map(without_colours, options)))
                continue
            counts = by_length[keys[0]] if sum(by_length[keys[0]].values()) >= 12 else by_text[keys[1]]
            if options:
                score = [counts[o] / max(1, offered[o]) for o in map(without_colours, options)]
                # Options that differ by colour only cannot be told apart: one of them by chance.
                best = [o for o, s in zip(options, score, strict=True) if s == max(score)]
                hits.append((right(sample) in best) / len(best))
                chance.append(1 / len(options))
            else:
                best = counts.most_common(1)[0][0] if counts else ""
                same = [c for c in COLOURS if best.replace("<colour>", c)] if "<colour>" in best else [""]
                hits.append((best == answer) / len(same))
                chance.append(0.5 if form(sample) == "yes_no" else 0.0)
    return float(np.mean(hits)), float(np.mean(chance)), len(hits)


@pytest.mark.parametrize("group", GROUPS)
def test_who_sees_nothing_guesses_little_better_than_chance(asked, group):
    for kind, allowed in (("yes_no", 0.08), ("choice", 0.16)):
        samples = of(asked, group, kind)
        if samples:
            score, chance, count = guesses(samples)
            noise = 2.0 * np.sqrt(0.25 / count)
            assert score < chance + allowed + noise, (group, kind, score, chance, count)
    score, _, count = guesses(of(asked, group, "free"))
    assert score < 0.55 + 2.0 * np.sqrt(0.25 / count), (group, "free", score, count)


def test_direction_is_asked_of_the_same_windows_both_ways(asked):
    lengths = collections.defaultdict(list)
    for sample, clip in asked:
        if sample.group == arrow_of_time.GROUP:
            lengths[clip.variant].append(sample.span.length)
    assert set(lengths) == {"forward", "reversed"}
    total = sum(map(len, lengths.values()))
    assert abs(len(lengths["forward"]) / total - 0.5) < 0.1
    assert abs(np.mean(lengths["forward"]) - np.mean(lengths["reversed"])) < 0.8


def test_windows_of_which_the_direction_is_asked_move_at_both_ends():
    for seed in range(40):
        clip = run_clip(seed, scene="topple", render=False)
        for span in arrow_of_time.spans(clip):
            for frame in (span.first, span.last - 1):
                shift = np.linalg.norm(clip.pixel[frame + 1] - clip.pixel[frame], axis=-1)
                turn = np.abs(clip.up[frame + 1] - clip.up[frame])
                assert shift.max() >= 1.0 or turn.max() >= 0.05


def test_a_clip_that_stands_still_has_no_direction():
    for scene, plan in (("tabletop", "left"), ("stack", "stable"), ("ramp", "ball_level")):
        clip = run_clip(1, scene=scene, plan=plan, render=False)
        assert arrow_of_time.spans(clip) == []
        assert arrow_of_time.ask(reverse(clip), WHOLE, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("plan", "cause"), [("first", 1), ("second", 2), ("stick", 3), ("none", -1)], ids=lambda value: str(value)
)
def test_the_cause_is_what_touched_it(plan, cause):
    found = []
    for seed in range(8):
        clip = run_clip(seed, scene="collide", plan=plan, render=False)
        for sample in causality.ask(clip, WHOLE, np.random.default_rng(seed)):
            answer = (
                sample.query.options["ABCD".index(sample.answer)] if sample.query.options else sample.answer
            )
            found.append(
                answer == (causality.deed(clip, cause) if cause >= 0 else "nothing, it does not move")
            )
    assert len(found) >= 4
    assert np.mean(found) >= 0.9, "labels come from contacts; the plan names the cause but is no label"


@pytest.mark.parametrize(
    ("plan", "moved"),
    [("left", "it moves to the left"), ("right", "it moves to the right"), ("up", "it moves up"),
     ("down", "it moves down"), ("closer", "it moves closer"), ("away", "it moves away"),
     ("still", camera.STILL)],
)  # fmt: skip
def test_camera_movement_is_read_from_its_path(plan, moved):
    for seed in range(6):
        clip = run_clip(seed, scene="tabletop", plan=plan, render=False)
        assert camera.movement(clip, WHOLE) == moved
    assert moved == camera.STILL or camera.movement(clip, Span(4, 2)) == ""


@pytest.mark.parametrize(
    ("plan", "wrong"),
    [("hit", anti_physics.NOTHING), ("roll", anti_physics.NOTHING), ("fall", anti_physics.NOTHING),
     ("through", anti_physics.THROUGH), ("jump", anti_physics.JUMP), ("float", anti_physics.UPWARD)],
)  # fmt: skip
def test_what_cannot_be_is_seen_in_the_states(plan, wrong):
    found = [
        anti_physics.wrong_in(run_clip(s, scene="odd", plan=plan, render=False), WHOLE) for s in range(10)
    ]
    assert set(found) <= {wrong, ""}
    assert found.count(wrong) >= 7


def test_before_it_shows_nothing_is_wrong():
    clip = run_clip(1, scene="odd", plan="jump", render=False)
    assert anti_physics.wrong_in(clip, Span(0, 4)) == anti_physics.NOTHING


@pytest.mark.parametrize(
    ("scene", "plan", "answer"),
    [("stack", "stable", "no"), ("stack", "unstable", "yes"), ("ramp", "ball_level", "no"),
     ("ramp", "ball_slope", "yes"), ("ramp", "block_steep", "yes"), ("ramp", "block_gentle", "no")],
)  # fmt: skip
def test_predictions_are_what_comes_later(scene, plan, answer):
    for seed in range(8):
        clip = run_clip(seed, scene=scene, plan=plan, render=False)
        before = Span(0, clip.release)
        assert np.ptp(clip.position[: clip.release, :-1], axis=0).max() < 0.01, "nothing moves before"
        got = mechanics.ask(clip, before, np.random.default_rng(seed))
        assert all(q.answer == answer for q in got if not q.query.options and q.query.yes_no)
        assert mechanics.ask(clip, WHOLE, np.random.default_rng(seed)) == []


def test_permanence_is_asked_only_once_the_place_is_seen_again():
    clip = run_clip(0, scene="hide", plan="pass_taken", render=False)
    gone = int(np.flatnonzero(~clip.present[-1])[0])
    hidden = int(np.argmin(clip.present[:, gone]))
    assert object_permanence.hidden_and_back(clip, Span(0, hidden + hidden % 2)) == []
    assert gone in object_permanence.hidden_and_back(clip, WHOLE)
    answers = set()
    for seed in range(30):
        for question in object_permanence.ask(clip, WHOLE, np.random.default_rng(seed)):
            options = question.query.options
            answers.add(options["ABCD".index(question.answer)] if options else question.answer)
    assert answers == {"yes", "no", "it vanished", f"the {clip.names[gone]}"}


def test_order_and_relations_agree_with_the_states():
    seen = 0
    for seed in range(30):
        clip = run_clip(seed, scene="drop", plan="land", render=False)
        _, _, when = order.events(clip, WHOLE)
        for question in order.ask(clip, WHOLE, np.random.default_rng(seed)):
            sample_answer = question.answer
            if question.query.options:
                sample_answer = question.query.options["ABCD".index(question.answer)]
            pick = min if "first" in question.query.question else max
            assert sample_answer == f"the {clip.names[pick(when, key=when.__getitem__)]}"
            seen += 1
    assert seen >= 20
    for seed in range(30):
        clip = run_clip(seed, scene="tabletop", render=False)
        for question in relationship.ask(clip, WHOLE, np.random.default_rng(seed)):
            match = re.match(
                r"Is the (\w+ \w+) to the (left|right) of the (\w+ \w+)\?", question.query.question
            )
            if match:
                a, b = (clip.pixel[-1, clip.index(match[i]), 0] for i in (1, 3))
                assert (question.answer == "yes") == ((a < b) == (match[2] == "left"))


def test_a_window_beyond_the_clip_is_refused():
    clip = run_clip(0, render=False)
    with pytest.raises(ValueError, match="16 frames, the window ends at 17"):
        questions_for(clip, Span(2, 16), np.random.default_rng(0))
