# SPDX-License-Identifier: Apache-2.0
"""Where in a clip's window the things are that a question names.

Words and pictures meet nowhere else: to say how the red ball stands, it has to be found. From answers alone a
small model does not learn to, for a question or two a window say little; here every name in a question says
which visual tokens it is about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from cosmos_reason_node import prompt
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query
from training.data.sim.kinds.motion import named
from training.data.sim.kinds.spatial_puzzle import ORDINALS
from training.data.sim.physics.clip import Clip
from training.data.sim.physics.derive import PLACES
from training.data.sim.physics.palette import COLOURS, SHAPES
from training.data.sim.sample import Span

from .probe import SEEN, Points

LATEST, EARLIEST = 0, 1  # pair of frames in which a thing is in view
Places = tuple[list[int], list[int]]  # visual tokens of the latest and of the earliest such pair
_NAME = re.compile(
    rf"\b({'|'.join(COLOURS)}) ({'|'.join((*SHAPES, 'thing'))})\b|\bthe ({'|'.join(SHAPES)})\b"
)
_TILE = re.compile(rf"\b({'|'.join(ORDINALS)}) tile\b|\b({'|'.join(PLACES)})\b")


def mentions(
    query: Query,
    tokens: Sequence[int],
    window: tuple[Clip, Span, Points],
    cells: int,
    tokenizer: TextTokenizer,
) -> list[tuple[int, Places]]:
    """What a question about a window names.

    Args:
        query: the question.
        tokens: of ``prompt.suffix(query)``.
        window: clip, its frames that are shown, and where the view's change puts points.
        cells: visual tokens of a pair of frames, a square in raster order.
        tokenizer: of the model.

    Returns:
        For each name index in ``tokens`` of its last token, and indices of the visual tokens that show it,
        counted from the window's first; the one past the last (<|vision_end|>) for a thing that is not in
        view in the last pair, none for one that never was.
    """
    text, clip = prompt.user_text(query), window[0]
    found = []
    for match in (_TILE if clip.variant == "puzzle" else _NAME).finditer(text):
        head = tokenizer.encode(text[: match.end()], add_special_tokens=False)
        if list(tokens[: len(head)]) != head:
            continue
        if clip.variant == "puzzle":
            shown: Places | None = _tile(match, clip.tiles.tolist(), cells)
        else:
            shown = _thing(match, *window, cells)
        if shown is not None:
            found.append((len(head) - 1, shown))
    return found


def _tile(match: re.Match[str], order: Sequence[int], cells: int) -> Places:
    ordinal, place = match.groups()
    number = ORDINALS.index(ordinal) if ordinal else order.index(PLACES.index(place))
    tokens = list(range(number * cells, (number + 1) * cells))
    return tokens, tokens


def _thing(match: re.Match[str], clip: Clip, span: Span, points: Points, cells: int) -> Places | None:
    colour, noun, alone = match.groups()
    kind = alone or noun
    things = [
        i
        for i in named(clip)
        if (kind == "thing" or clip.kinds[i] == kind) and (not colour or clip.colours[i] == colour)
    ]
    if len(things) > 1:
        return None  # what is meant does not follow from the words
    side = math.isqrt(cells)
    views: list[int] = []
    pairs = span.length // 2
    for pair in range(pairs):
        frame = span.first + 2 * pair + 1
        for i in things:
            if clip.seen[frame, i] >= SEEN and clip.present[frame, i]:
                x, y = (points(clip.pixel[frame, i][None] / clip.frames.shape[1])[0] * side).astype(int)
                if 0 <= x < side and 0 <= y < side:
                    views.append(pair * cells + int(y) * side + int(x))
    last = views[-1] if views and views[-1] >= (pairs - 1) * cells else pairs * cells
    return [last], views[:1]
