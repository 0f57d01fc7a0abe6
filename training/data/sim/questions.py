# SPDX-License-Identifier: Apache-2.0
"""Questions and answers about an episode, from the simulator's state at the window's last frame.

Nothing is asked where the state is arguable (see phase.py). Every window is asked about all tasks of its
scene, so a task and its opposite are hard negatives of each other; a share is asked about a task of another
scene too.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cosmos_reason_node.prompt import letter
from cosmos_reason_node.types import Query, QueryKind

from .episode import Episode
from .phase import Phase, completed, phase
from .sample import SimProvenance, SimSample, Span
from .scenes import BY_NAME, SCENES, Scene, Skill

MOVE_AWAY = "move away, the task is done"
_NO_SUCH_SHARE = 0.1
_IMPOSSIBLE_SHARE = 0.35  # of affordances that are "no": an action is possible in few of the moments drawn


def next_action(scene: Scene, skill: Skill, now: Phase) -> str:
    """The next action in words."""
    if now is Phase.REACH:
        return f"reach for the {scene.handle_noun}"
    return skill.act if now is Phase.ACT else MOVE_AWAY


def questions(
    episode: Episode, span: Span, rng: np.random.Generator, avoid: Collection[str] = ()
) -> list[SimSample]:
    """All samples of one window.

    Args:
        episode: what happened.
        span: its frames in the window.
        rng: decides what is asked, wording and order of options.
        avoid: actions that are not taken for the wrong option that is no action of the task.
    """
    scene = BY_NAME[episode.scene]
    openness, gap_m = float(episode.openness[span.last]), episode.gap_m[span.last]
    samples: list[tuple[Query, str, str]] = []
    for index, skill in enumerate(scene.skills):
        done = completed(skill, openness)
        if done is not None:
            samples.append(_completion(skill, done, rng))
        now = phase(skill, openness, gap_m[index])
        if now is not None:
            if now is Phase.ACT or rng.random() < _IMPOSSIBLE_SHARE:
                samples.append(_affordance(scene, skill, now, rng))
            samples.append(_next_free(scene, skill, now, rng))
            samples.append(_next_choice(scene, skill, now, rng, avoid))
    if rng.random() < _NO_SUCH_SHARE:
        samples.append(_elsewhere(scene, rng))
    origin = SimProvenance("sim", episode.split, episode.seed, episode.scene, episode.plan)
    return [SimSample(span, query, answer, reasoning, origin) for query, answer, reasoning in samples]


def _one_of(rng: np.random.Generator, *texts: str) -> str:
    return texts[int(rng.integers(len(texts)))]


def _completion(skill: Skill, done: bool, rng: np.random.Generator) -> tuple[Query, str, str]:
    query = Query(QueryKind.COMPLETION, task=skill.task)
    if done:
        reasoning = _one_of(
            rng,
            f"At the end {skill.done}.",
            f"In the last frames {skill.done}.",
            f"{_upper(skill.done)}, which is the goal.",
        )
        return query, "yes", reasoning
    reasoning = _one_of(
        rng,
        f"At the end {skill.not_done}.",
        f"In the last frames {skill.not_done}.",
        f"{_upper(skill.not_done)} yet.",
    )
    return query, "no", reasoning


def _affordance(scene: Scene, skill: Skill, now: Phase, rng: np.random.Generator) -> tuple[Query, str, str]:
    query = Query(QueryKind.AFFORDANCE, action=skill.act)
    part = scene.handle_noun
    if now is Phase.ACT:
        return (
            query,
            "yes",
            _one_of(rng, f"The gripper is at the {part}.", f"The gripper has reached the {part}."),
        )
    if now is Phase.DONE:
        return query, "no", _one_of(rng, f"{_upper(skill.done)} already.", f"It is too late: {skill.done}.")
    return (
        query,
        "no",
        _one_of(rng, f"The gripper is not at the {part}.", f"The gripper must reach the {part} first."),
    )


def _why_next(scene: Scene, skill: Skill, now: Phase, rng: np.random.Generator) -> str:
    if now is Phase.DONE:
        return _one_of(rng, f"{_upper(skill.done)}.", f"At the end {skill.done}, so the task is done.")
    if now is Phase.ACT:
        return _one_of(
            rng,
            f"The gripper is at the {scene.handle_noun} and {skill.not_done}.",
            f"The gripper has reached the {scene.handle_noun}.",
        )
    return _one_of(
        rng,
        f"{_upper(skill.not_done)} and the gripper is not at the {scene.handle_noun}.",
        f"The gripper is away from the {scene.handle_noun}.",
    )


def _next_free(scene: Scene, skill: Skill, now: Phase, rng: np.random.Generator) -> tuple[Query, str, str]:
    query = Query(QueryKind.NEXT_ACTION, task=skill.task)
    return query, next_action(scene, skill, now), _why_next(scene, skill, now, rng)


def choices(scene: Scene, skill: Skill) -> list[str]:
    """The three next actions of a skill, by phase."""
    return [next_action(scene, skill, now) for now in Phase]


def _next_choice(
    scene: Scene, skill: Skill, now: Phase, rng: np.random.Generator, avoid: Collection[str]
) -> tuple[Query, str, str]:
    """Multiple choice: the skill's three actions and an opposite or foreign one, shuffled."""
    options = choices(scene, skill)
    right = options[now]
    foreign = [other.act for place in SCENES for other in place.skills if other is not skill]
    others = [act for act in foreign if act not in avoid]
    same = [other.act for other in scene.skills if other.act in others]
    extra = same[0] if same and rng.random() < 0.6 else others[int(rng.integers(len(others)))]
    order = list(rng.permutation([*options, extra]))
    query = Query(QueryKind.NEXT_ACTION, task=skill.task, options=tuple(str(option) for option in order))
    return query, letter(order.index(right)), _why_next(scene, skill, now, rng)


def _elsewhere(scene: Scene, rng: np.random.Generator) -> tuple[Query, str, str]:
    """A task of an object that is not there."""
    others = [place for place in SCENES if place is not scene]
    place = others[int(rng.integers(len(others)))]
    skill = place.skills[int(rng.integers(len(place.skills)))]
    if rng.random() < 0.5:
        return Query(QueryKind.COMPLETION, task=skill.task), "no", f"There is no {place.noun}."
    return Query(QueryKind.AFFORDANCE, action=skill.act), "no", f"There is no {place.noun}."


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]
