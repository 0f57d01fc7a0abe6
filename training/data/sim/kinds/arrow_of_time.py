# SPDX-License-Identifier: Apache-2.0
"""Arrow of time: is the clip played forward or backward?

Asked only where it can be decided, and of windows that move from their first pair of frames to their last.
What decides: things fall over, drop out of a tipped cup, bounce lower and lower, or slide to rest after a
blow; the other way round no cause is in sight. Both directions are asked about the same windows.

Robot episodes are left out: opening a drawer backwards is closing a drawer. The arm moves slowly and is
symmetric in time, so the only evidence would be where an episode happens to start.
"""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from ..physics.derive import forward_states
from .motion import SEEN, moves_at, travelled
from .question import Question, choice, free, one_of, yes_no

GROUP = "arrow_of_time"
_LENGTHS = (16, 14, 12, 10, 8)
_DROP_M = 0.06
_LOSS = 0.6  # bounced at most this share of the height


def spans(clip: Clip) -> list[Span]:
    """All windows of a recorded clip whose direction can be decided."""
    return [
        span
        for length in _LENGTHS
        for first in range(0, clip.length - length + 1, 2)
        if evidence(clip, span := Span(first, length))
        and moves_at(clip, span.first)
        and moves_at(clip, span.last - 1)
    ]


def evidence(clip: Clip, span: Span) -> str:
    """What decides the direction of a window: "fall", "spill", "bounce", "slide", or "" for nothing."""
    frames = slice(span.first, span.last + 1)
    up, height = clip.up[frames], clip.position[frames, :, 2]
    for i in clip.of_kind("block", "can"):
        if clip.seen[frames, i].max() < SEEN:
            continue
        if up[0, i] > 0.95 and up[-1, i] < 0.6 and height[0, i] - height[-1, i] > _DROP_M:
            return "fall"
        if _slid_to_rest(clip, span, i):
            return "slide"
    balls = clip.of_kind("ball")
    if clip.scene == "spill" and np.count_nonzero(height[0, balls] - height[-1, balls] > _DROP_M) >= 3:
        return "spill"
    return "bounce" if clip.scene == "drop" and any(_loses_height(clip, span, i) for i in balls) else ""


def _loses_height(clip: Clip, span: Span, ball: int) -> bool:
    """Whether a ball bounces off the table much lower than it came from, both in view."""
    height = clip.position[:, ball, 2] - clip.half[ball, 2]
    for frame in np.flatnonzero(clip.landed[:, ball]):
        if span.first + 2 <= frame <= span.last - 2:
            before = height[span.first : frame].max()
            after = height[frame + 1 : span.last + 1]
            if before > 0.1 and 0.02 < after.max() < _LOSS * before and after.argmax() > 0:
                return True
    return False


def _slid_to_rest(clip: Clip, span: Span, thing: int) -> bool:
    """Whether a thing stood, was hit, slid on by itself and stopped, all in the window."""
    speed = np.linalg.norm(np.diff(clip.position[span.first : span.last + 1, thing], axis=0), axis=-1)
    touched = clip.touch[span.first + 1 : span.last + 1, thing].any(-1)
    if (
        travelled(clip, span, thing) < 0.08
        or speed[:2].max() > 0.002
        or speed[-1] > 0.002
        or not touched.any()
    ):
        return False
    last_touch = int(np.flatnonzero(touched).max())
    return int(np.count_nonzero(speed[last_touch + 1 :] > 0.008)) >= 2


_FORWARD = {
    "fall": ("a block falls over", "a block goes down by itself"),
    "spill": ("the balls fall out of the cup", "the balls are in the cup first and fall out"),
    "bounce": (
        "the ball bounces lower and lower",
        "after the bounce the ball does not come as high as before",
    ),
    "slide": ("it slides after the blow and stops", "friction stops it after the blow"),
}
_BACKWARD = {
    "fall": ("a block rises by itself", "a block that is down goes up by itself"),
    "spill": ("the balls rise into the cup", "the balls jump from the table into the cup"),
    "bounce": ("the ball bounces higher and higher", "after the bounce the ball comes higher than before"),
    "slide": ("it starts to slide with no cause", "nothing touches it and it starts to slide"),
}


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """The question of a forward or reversed window."""
    backward = clip.variant == "reversed"
    if backward:
        kind = evidence(forward_states(clip), Span(clip.length - 1 - span.last, span.length))
    else:
        kind = evidence(clip, span)
    if not kind or not (moves_at(clip, span.first) and moves_at(clip, span.last - 1)):
        return []
    right, wrong = ("backward", "forward") if backward else ("forward", "backward")
    why = one_of(rng, *(_BACKWARD if backward else _FORWARD)[kind]) + "."
    form = int(rng.integers(3))
    if form == 0:
        text = one_of(rng, "Is the video played backward?", "Does time run backward in the video?")
        return [yes_no(GROUP, text, backward, why)]
    text = one_of(rng, "Which way is the video played?", "Is the video played forward or backward?")
    return [choice(GROUP, text, right, [wrong], why, rng) if form == 1 else free(GROUP, text, right, why)]
