# SPDX-License-Identifier: Apache-2.0
"""Where nano goes wrong about the robot: what the tower sees of each object, and how its questions end.

The tower is read by the read-outs it was trained with, which the last stage's checkpoint still has; answers
are those that ``python -m training.nano evaluate`` left.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from training.data.sim.generate import EPISODES
from training.data.sim.phase import completed
from training.data.sim.scenes import BY_NAME, SCENES
from training.data.sim.windows import Drawn, EpisodeStore
from training.eval.item import read_items
from training.eval.prediction import read_predictions
from training.eval.protocol import normal, parse_strict
from training.eval.run import ITEMS, PREDICTIONS, read_run
from training.sft.store import SnapshotStore

from .architecture import create
from .objective import AnswerObjective, Probes, see
from .probe import states_of
from .source import HELD_OUT_TASKS, HELD_OUT_TEXTS, World

_BATCH = 64
Rights = dict[tuple[str, str], list[bool]]  # (object, what) to: was it right?


def seen(stage: Path, description: Path, episodes: Path, moments: int, seed: int = 3) -> Rights:
    """What the read-outs say of single moments.

    Args:
        stage: directory of a training stage of the whole model; holds checkpoints/.
        description: directory that describes the model, see architecture.py.
        episodes: directory of one split.
        moments: how many are drawn, evenly over objects, tasks and phases.
        seed: of the draws.

    Raises:
        FileNotFoundError: there is no checkpoint.
        StoreError: it is broken.
        ValueError: it is of another model, or there are no moments to draw.
    """
    if moments < 1:
        raise ValueError(f"{moments} moments: give at least 1")
    snapshot = SnapshotStore(stage / "checkpoints", 1).newest()
    if snapshot is None:
        raise FileNotFoundError(f"no checkpoint in {stage}: run `python -m training.nano train` first")
    model = create(description)
    probes = Probes(model.network.lm_head.weight.shape[1])
    try:
        AnswerObjective(model, probes).load_state_dict(snapshot.tensors("model"))
    except RuntimeError as error:  # torch's, for names and shapes that do not fit
        raise ValueError(
            f"the checkpoint in {stage} is not of the model in {description}: {error}"
        ) from error
    store = EpisodeStore(episodes, without=HELD_OUT_TASKS)
    cut = World(store, None, model).cut  # type: ignore[arg-type]  # clips are not drawn
    rng = np.random.default_rng(seed)
    found: Rights = collections.defaultdict(list)
    with torch.inference_mode():
        for start in range(0, moments, _BATCH):
            drawn = [store.draw(2, rng) for _ in range(min(_BATCH, moments - start))]
            tokens = see(model, torch.from_numpy(np.concatenate([cut(d.frames()) for d in drawn])))
            states = states_of([(d.episode, d.span.last) for d in drawn], HELD_OUT_TASKS)
            openness, placed = probes.patch.read(tokens, states.scene)
            for row, moment in enumerate(drawn):
                scene = moment.episode.scene
                for name, right in _judged(moment, openness[row], placed[row], states.placed[row]):
                    found[scene, name].append(right)
    return found


def _judged(
    moment: Drawn, openness: torch.Tensor, placed: torch.Tensor, truth: torch.Tensor
) -> Iterator[tuple[str, bool]]:
    """(what, whether it is read rightly), where it is not arguable."""
    skill = BY_NAME[moment.episode.scene].skills[0]
    now = completed(skill, float(moment.episode.openness[moment.span.last]))
    if now is not None:
        yield "state", now == (skill.progress(float(openness)) > 0.65)
    for said, is_so in zip((placed > 0).tolist(), truth.tolist(), strict=True):
        if is_so >= 0:
            yield ("in place" if is_so else "not in place"), said == bool(is_so)


def answered(report: Path) -> Rights:
    """How the robot's questions ended, without those with options and of tasks never trained on.

    Args:
        report: what an evaluation wrote.

    Raises:
        FileNotFoundError, ValueError: there is no evaluation, or a file of it is damaged.
    """
    digest = read_run(report)["model"]["digest"]
    items = {item.item_id: item for item in read_items(report / ITEMS)}
    objects = {scene.name for scene in SCENES}
    found: Rights = collections.defaultdict(list)
    for key, said in read_predictions(report / PREDICTIONS).items():
        item = items.get(key.item)
        if item is None or key.model != digest or not key.video or key.rotation or item.query.options:
            continue
        if not objects & set(item.tasks) or HELD_OUT_TEXTS & set(item.tasks):
            continue
        choice = parse_strict(said.output, item.query)
        found[item.tasks[0], item.group].append(normal(choice.text) == normal(item.wanted))
    return found


def table(counts: Rights) -> str:
    """Markdown: a row an object, per cent right and how many."""
    names = sorted({name for _, name in counts})
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for scene in sorted({scene for scene, _ in counts}):
        each = (counts.get((scene, name), []) for name in names)
        cells = [
            f"{100 * sum(rights) / len(rights):.1f} ({len(rights)})" if rights else "" for rights in each
        ]
        lines.append(f"| {scene} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def diagnose(work: Path, stage: str, moments: int, evaluation: Path) -> str:
    """Both tables, of the held-out split: the tower as it was after ``stage``, answers of ``evaluation``."""
    read = seen(work / "work" / stage, work / "model", work / EPISODES / "held_out", moments)
    return "\n\n".join(
        (
            f"Read off the tower after {stage}, of {moments} moments, % right (n)",
            table(read),
            f"Answers in {evaluation}, % right (n)",
            table(answered(evaluation)),
        )
    )
