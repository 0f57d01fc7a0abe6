# SPDX-License-Identifier: Apache-2.0
"""Object permanence: a thing goes out of sight behind a screen; is it there when its place is seen again?

Asked when the window shows the thing, then hides all of it, then shows its place again. The question names
things that were seen, so what must be remembered is which they were.
"""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import SEEN, named
from .question import Question, choice, coin, free, one_of, pick, the, upper, yes_no

GROUP = "object_permanence"


def hidden_and_back(clip: Clip, span: Span) -> list[int]:
    """Things that were seen, then hidden, and whose place is in view at the end of the window."""
    found = []
    for i in named(clip):
        seen = clip.seen[span.first : span.last + 1, i]
        hidden = np.flatnonzero(seen == 0.0)
        if (
            len(hidden)
            and (seen[: hidden[0]] >= SEEN).any()
            and seen[-1] >= SEEN
            and clip.present[span.first, i]
        ):
            found.append(i)
    return found


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """Whether a thing is still there, and what vanished."""
    back = hidden_and_back(clip, span)
    if not back or not clip.of_kind("screen"):
        return []
    gone = [i for i in back if not clip.present[span.last, i]]
    thing = gone[0] if gone else pick(rng, back)
    return [_still_there(clip, thing, rng), *_what(clip, span, thing if gone else -1, rng)]


def _still_there(clip: Clip, thing: int, rng: np.random.Generator) -> Question:
    name = the(clip, thing)
    gone = not clip.present[-1, thing]
    form = int(rng.integers(3))
    why = _why(clip, thing, gone, rng)
    if form == 0:
        text = one_of(rng, f"Is {name} still there at the end?", f"Is {name} still on the table at the end?")
        return yes_no(GROUP, text, not gone, why)
    if form == 1:
        text = one_of(
            rng, "Did something vanish while it was hidden?", "Did a thing vanish behind the screen?"
        )
        return yes_no(GROUP, text, gone, why)
    text = f"What happened to {name} while it was hidden?"
    right, wrong = ("it vanished", "it stayed there") if gone else ("it stayed there", "it vanished")
    return choice(GROUP, text, right, [wrong], why, rng)


def _what(clip: Clip, span: Span, gone: int, rng: np.random.Generator) -> list[Question]:
    """Which thing vanished; "nothing" no more often than a thing of the picture."""
    shown = [i for i in named(clip) if (clip.seen[span.first : span.last + 1, i] >= SEEN).any()]
    if gone < 0 and coin(rng, 0.6):
        return []
    text = one_of(rng, "What vanished while it was hidden?", "Which thing vanished behind the screen?")
    options = [*(the(clip, i) for i in shown), "nothing"]
    right = the(clip, gone) if gone >= 0 else "nothing"
    why = _why(clip, gone, True, rng) if gone >= 0 else "all things that were hidden are seen again."
    if coin(rng, 0.6):
        return [choice(GROUP, text, right, [option for option in options if option != right], why, rng)]
    return [free(GROUP, text, right, why)]


def _why(clip: Clip, thing: int, gone: bool, rng: np.random.Generator) -> str:
    name = the(clip, thing)
    start = one_of(
        rng, f"{name} goes out of sight behind the screen.", f"the screen hides {name} for a while."
    )
    if gone:
        end = one_of(rng, "then its place is empty.", "when its place is seen again, it is not there.")
    else:
        end = one_of(rng, "then it is seen again.", "when its place is seen again, it is there.")
    return f"{upper(start)} {upper(end)}"
