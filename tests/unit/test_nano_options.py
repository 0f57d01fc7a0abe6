# SPDX-License-Identifier: Apache-2.0
"""nano's last stage: letters looked up in text, attention told where to look, names in questions."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node import prompt
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.nano_files import described
from tests.unit.sim_files import write_episodes
from training.data.sim.physics.clip import save_clip
from training.data.sim.physics.derive import puzzle
from training.data.sim.physics.run import run_clip
from training.data.sim.questions import questions
from training.data.sim.sample import Span
from training.data.sim.windows import ClipStore, EpisodeStore
from training.nano.architecture import create
from training.nano.lookup import conclusion, lookups
from training.nano.mentions import EARLIEST, LATEST, mentions
from training.nano.objective import AnswerObjective, Probes
from training.nano.probe import SEEN
from training.nano.source import (
    GROUPS,
    HELD_OUT_TASKS,
    LOOKUP,
    REASONED,
    THOUGHT_WEIGHT,
    DrawSettings,
    WindowSource,
    World,
    reasoning_of,
)

DRAWS = DrawSettings(
    episodes=4,
    clips=4,
    lookups=3,
    pairs=0,
    lengths=(2,),
    length_shares=(1.0,),
    clip_branches=8,
    asked=3,
    no_video_share=0.0,
)
CELLS = 16
QUERY = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("pull the drawer open", "move away"))


def still(points):
    return points


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_episodes(root / "episodes")
    for seed, scene in enumerate(("room", "hide", "drop", "topple")):
        save_clip(root / "clips", run_clip(seed, scene=scene))
    episodes = EpisodeStore(root / "episodes" / "train", without=HELD_OUT_TASKS)
    model = create(described(tmp_path_factory.mktemp("nano")))
    return World(episodes, ClipStore(root / "clips" / "train", {}), model), model


@pytest.fixture(scope="module")
def batch(world):
    (made,) = WindowSource(world[0], DRAWS).batches(2, 0, 1)
    return made


def named_in(world, clip, text, **more):
    query = Query(QueryKind.QUESTION, question=text, **more)
    tokens = prompt.encode_suffix(world.tokenizer, query)
    found = mentions(query, tokens, (clip, Span(0, clip.length), still), CELLS, world.tokenizer)
    return [(world.tokenizer.decode(tokens[: column + 1]), places) for column, places in found]


def test_every_option_is_asked_for_by_its_words(world):
    tokenizer = world[0].tokenizer
    (row,) = lookups([QUERY], 2, tokenizer, 8.0, np.random.default_rng(0))
    assert len(row) == 4  # two questions, of two options each
    for number, (query, answer, branch) in enumerate(row):
        assert sorted(query.options) == sorted(QUERY.options)
        assert bool(branch.question) == (number % 2 == 0)
        option = query.options[ord(answer) - ord("A")]
        assert conclusion(option) in tokenizer.decode(branch.target)
        counted = [token for token, weight in zip(branch.target, branch.weights, strict=True) if weight]
        assert tokenizer.decode(counted) == answer
    assert {answer for _, answer, _ in row} == {"A", "B"}
    assert lookups([], 2, tokenizer, 8.0, np.random.default_rng(0)) == []


def test_reasoning_about_options_ends_with_the_words_of_the_right_one(world):
    drawn = world[0].episodes.draw(2, np.random.default_rng(1), {})
    samples = questions(drawn.episode, drawn.span, np.random.default_rng(0))
    lettered = [s for s in samples if s.query.options]
    assert lettered
    for sample in samples:
        if sample.query.options:
            right = sample.query.options[ord(sample.answer) - ord("A")]
            assert reasoning_of(sample) == f"{sample.reasoning} {conclusion(right)}"
        else:
            assert reasoning_of(sample) == sample.reasoning


def test_whether_to_think_is_not_learned(world):
    """Every question is answered at once, and the empty thought before it does not count."""
    tokenizer = world[0].tokenizer
    empty = len(tokenizer.encode("<think>\n\n</think>", add_special_tokens=False))
    answers = {}
    for think_share in (0.0, 1.0):
        draws = dataclasses.replace(DRAWS, think_share=think_share, lookups=0)
        (made,) = WindowSource(world[0], draws).batches(1, 0, 1)
        rows = made.rows
        assert (rows.weights[made.verdict] > 0).all()
        reasoned = made.group == GROUPS.index(REASONED)
        assert int((rows.weights == 0).sum()) >= int((~reasoned).sum()) * empty
        answers[think_share] = int(reasoned.sum()), int((~reasoned).sum())
        said = tokenizer.decode(rows.labels[rows.weights == THOUGHT_WEIGHT].tolist())
        assert bool(think_share) == (".\n</think>" in said)
    assert answers[0.0][0] == 0
    assert answers[1.0] == (answers[0.0][1], answers[0.0][1])


def test_an_answer_with_reasoning_is_one_more_to_the_same_question(world):
    """Its letter points at the same option; the two answers do not see each other."""
    draws = dataclasses.replace(DRAWS, think_share=1.0, lookups=0)
    (made,) = WindowSource(world[0], draws).batches(1, 0, 1)
    pairs = made.choices.view(-1, 2, 3)
    assert len(pairs) > 2
    assert (pairs[:, 0, ::2] == pairs[:, 1, ::2]).all()  # row and option
    assert (pairs[:, 1, 1] > pairs[:, 0, 1]).all()
    assert len(made.ends) == len(made.ends.unique(dim=0))
    for row, (direct, reasoned) in zip(pairs[:, 0, 0].tolist(), pairs[:, :, 1].tolist(), strict=True):
        assert not made.rows.mask[row, 0, reasoned, direct]


def test_each_letter_points_at_the_end_of_its_option(world, batch):
    tokenizer, rows = world[0].tokenizer, batch.rows
    said = {
        (int(r), int(c)): int(label) for r, c, label in zip(rows.rows, rows.columns, rows.labels, strict=True)
    }
    assert len(batch.choices) == int(batch.lettered.sum()) > DRAWS.lookups
    for row, column, end in batch.choices.tolist():
        letter = tokenizer.decode([said[row, column]])
        assert rows.mask[row, 0, column, end]
        before = tokenizer.decode(rows.tokens[row, :end].tolist())
        assert before.rindex(f"({letter})") == before.rindex("(")  # the line that ends there is this letter's
    ends = {tuple(place) for place in batch.ends.tolist()}
    assert set(map(tuple, batch.ends[batch.fits == 1].tolist())) <= ends
    assert batch.letters.min() == 0


def test_lookups_have_no_video_and_are_counted_apart(world, batch):
    objective = AnswerObjective(world[1], Probes(192))
    objective.freeze_tower(True)
    loss, measures = objective(batch)
    assert torch.isfinite(loss)
    assert float(measures[f"{LOOKUP}_letters/asked"]) >= 2 * DRAWS.lookups
    assert len(batch.rows.grids) == DRAWS.episodes + DRAWS.clips < len(batch.rows.prefixes)


def test_what_a_head_is_told_to_look_at_is_what_the_model_computes(world, batch):
    """Scores made for the loss give the attention that the layer itself uses."""
    model = world[1]
    objective = AnswerObjective(model, Probes(192)).eval()
    layer = model.network.model.language_model.layers[3].self_attn
    seen = {}
    with torch.no_grad():
        embedded = model.embed(batch.rows.tokens, objective._features(batch))
        judging = objective._decode(batch.rows, embedded)[3]
        row, column, _ = batch.choices[0].tolist()
        length = int(batch.rows.lengths[row])
        hook = layer.o_proj.register_forward_hook(lambda m, i, o: seen.update(mixed=i[0]))
        model.decode(
            embedded[row : row + 1, :length],
            batch.rows.positions[:, row : row + 1, :length],
            attention_mask=batch.rows.mask[row : row + 1, :, :length, :length],
        )
        hook.remove()
        objective._kept.clear()
        place = torch.tensor([row]), torch.tensor([column])
        shares = objective._scores(3, 0, judging, batch, *place).softmax(-1)
        normed = model.network.model.language_model.layers[3].input_layernorm(judging)
        values = layer.v_proj(normed)[row, :, : layer.head_dim]
    torch.testing.assert_close(
        shares[0] @ values, seen["mixed"][0, column, : layer.head_dim], rtol=1e-4, atol=1e-5
    )


def test_looking_at_the_right_places_is_learned(world, batch):
    objective = AnswerObjective(world[1], Probes(192))
    objective.freeze_tower(True)
    kept = {name: value.clone() for name, value in world[1].network.state_dict().items()}
    tower = list(world[1].network.model.visual.parameters())
    assert not any(p.requires_grad for p in tower)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    history = []
    for _ in range(25):
        loss, measures = objective(batch)
        optimizer.zero_grad()
        (loss / batch.weight).backward()
        optimizer.step()
        history.append({name: float(measures[name]) / batch.weight for name in ("found", "pointed")})
    world[1].network.load_state_dict(kept)
    objective.freeze_tower(False)
    assert all(p.requires_grad for p in tower)
    assert history[-1]["pointed"] > history[0]["pointed"] + 0.3
    assert history[-1]["found"] > history[0]["found"] + 0.2


def test_a_thing_is_found_where_it_is_seen_last_and_first(world):
    clip = run_clip(1, scene="hide")
    for i, name in enumerate(clip.names):
        if not clip.colours[i]:
            continue
        ((words, places),) = named_in(world[0], clip, f"Is the {name} still there at the end?", yes_no=True)
        assert words.endswith(str(name))
        views = [
            pair
            for pair in range(clip.length // 2)
            if clip.seen[2 * pair + 1, i] >= SEEN and clip.present[2 * pair + 1, i]
        ]
        assert len(places[LATEST]) == 1
        last = clip.length // 2 - 1
        if last in views:
            x, y = (clip.pixel[clip.length - 1, i] / clip.frames.shape[1] * 4).astype(int)
            assert places[LATEST] == [last * CELLS + int(y) * 4 + int(x)]
        else:
            assert places[LATEST] == [(last + 1) * CELLS]  # <|vision_end|>
        assert [token // CELLS for token in places[EARLIEST]] == views[:1]


def test_what_is_not_in_the_video_is_nowhere_and_what_is_ambiguous_is_left_out(world):
    clip = run_clip(1, scene="hide")
    names = set(clip.names.tolist())
    absent = next(
        f"{c} {s}"
        for c in ("red", "green", "blue", "white")
        for s in ("ball", "can")
        if f"{c} {s}" not in names
    )
    ((_, places),) = named_in(world[0], clip, f"Is there a {absent} at the end?", yes_no=True)
    assert places == ([clip.length // 2 * CELLS], [])
    kinds = [kind for kind, colour in zip(clip.kinds.tolist(), clip.colours.tolist(), strict=True) if colour]
    for kind in set(kinds) & {"ball", "block", "can"}:
        found = named_in(world[0], clip, f"What colour is the {kind}?")
        assert len(found) == (1 if kinds.count(kind) == 1 else 0)


def test_tiles_are_found_by_their_number_and_by_their_place(world):
    order = np.array([2, 0, 3, 1])
    made = puzzle(np.zeros((112, 112, 3), np.uint8), order, seed=0, split="train", scene="room")
    found = named_in(
        world[0], made, "Where does the third tile belong?", options=("top left", "bottom right")
    )
    said = [words.rsplit(" ", 2)[-2:] for words, _ in found]
    assert said[0] == ["third", "tile"]
    assert [places[LATEST][0] // CELLS for _, places in found] == [2, 1, 2]
    assert all(places[LATEST] == places[EARLIEST] and len(places[LATEST]) == CELLS for _, places in found)


def test_names_in_a_batch_are_those_of_its_tokens(world, batch):
    tokenizer = world[0].tokenizer
    assert len(batch.names) > 0
    prefix = batch.rows.prefixes
    for name, when, column in batch.shown.tolist():
        row = int(batch.names[name, 0])
        assert when in (LATEST, EARLIEST)
        token = int(batch.rows.tokens[row, column])
        assert token == world[1].spec.video_token or column == int(prefix[row]) - 1
    ends = {tokenizer.decode([int(batch.rows.tokens[r, c])]).strip() for r, c in batch.names.tolist()}
    assert ends <= {"ball", "block", "can", "thing", "tile", "left", "right"}


def test_more_is_asked_of_a_clip_that_is_asked_more_often(world):
    once = dataclasses.replace(DRAWS, asked=1)
    counts = [
        sum(next(iter(WindowSource(world[0], draws).batches(step, 0, 1))).samples for step in range(4))
        for draws in (once, DRAWS)
    ]
    assert counts[1] > 1.1 * counts[0]
