# SPDX-License-Identifier: Apache-2.0
"""Causality: what made a standing thing move or fall? The cause is what touched it when it began."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import SEEN, STANDING, first_true, named, onset, travelled
from .question import Question, coin, either, one_of, the

GROUP = "causality"
_PUSHED_M = 0.04
_LENGTH = 12  # shorter windows cannot show that a thing stays, so length would tell


def cause(clip: Clip, span: Span, thing: int, frame: int) -> int:
    """The one thing that touched ``thing`` by ``frame``; -1 for none or several."""
    touched = clip.touch[span.first : frame + 1, thing].any(0)
    found = [int(i) for i in np.flatnonzero(touched) if clip.kinds[i] not in ("board", "screen")]
    return found[0] if len(found) == 1 else -1


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """About one thing that stands at the window's start."""
    if clip.scene not in ("collide", "topple") or span.length < _LENGTH:
        return []
    standing = [
        i
        for i in named(clip, "block", "can")
        if clip.seen[span.first, i] >= SEEN
        and np.abs(clip.pixel[span.first + 1, i] - clip.pixel[span.first, i]).max() < 0.3
    ]
    if clip.plan in ("weigh", "race") or not standing:
        return []
    thing = standing[int(rng.integers(len(standing)))]
    falls = clip.scene == "topple"
    frame = first_true(clip.up[:, thing] < 0.8, span) if falls else onset(clip, span, thing)
    verb = "fall" if falls else "move"
    if not falls and frame >= 0 and travelled(clip, span, thing) < _PUSHED_M:
        return []  # hardly to be seen
    if frame < 0:
        if clip.up[span.last, thing] < STANDING or (falls and coin(rng, 0.6)):
            return []  # leaning; or one of the many that stay, which would outnumber the causes
        culprit, right = -1, f"nothing, it does not {verb}"
    else:
        culprit = cause(clip, span, thing, frame)
        if culprit < 0:
            return []
        right = deed(clip, culprit)
    others = [
        i
        for i in range(len(clip.names))
        if i not in (thing, culprit) and (clip.seen[span.first : span.last + 1, i] > 0.3).any()
    ]
    wrong = [deed(clip, int(i)) for i in rng.permutation(others)[: 3 if culprit < 0 else 2]]
    if culprit >= 0:
        wrong.append(f"nothing, it does not {verb}")
    name = the(clip, thing)
    text = one_of(rng, f"What makes {name} {verb}?", f"Why does {name} {verb}?")
    if culprit < 0:
        why = one_of(rng, f"{name} stays as it is.", f"{name} does not {verb} in the video.")
    else:
        why = one_of(
            rng,
            f"{the(clip, culprit)} touches {name} just before.",
            f"{name} is still until {the(clip, culprit)} touches it.",
        )
    return [either(GROUP, text, right, wrong, why, rng)]


def deed(clip: Clip, thing: int) -> str:
    """What a thing may have done to another, in words."""
    return "the stick pushes it" if clip.kinds[thing] == "stick" else f"{the(clip, thing)} hits it"
