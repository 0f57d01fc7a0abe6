# SPDX-License-Identifier: Apache-2.0
"""The closed set of words that questions, options, answers and reasoning about clips are made of."""

from __future__ import annotations

from ..physics.palette import COLOURS, SHAPES

_WORDS = """
a after again air all and another are as at away backward ball balls become before behind belong
belongs below block blocks blow board bottom bounce bounces by camera can cannot cause circles
closer colour coloured come comes cup cut did do does down earlier empty end equal fall falls far
farther farthest faster first fits for forward four fourth frame frames friction from gate gentle go
goes half happen happened heavier hidden hides high higher hit hits how in into is it its itself
jump jumps just lands larger last later left less level lies lower lying makes many middle more most
move moves moving must near nearer nearest no not nothing of on one opens or order other out over passes
picture place played possible pulled pushed pushes real rest right rise rises rolls run same screen
second seen shows side sight slide slides slope slopes slowly smaller something standing stands
starts stayed stays steep stick still stops supported table than that the then there thing things
third this three through tile tiles time tipped to too top touches turns two until up upper upright
upward vanish vanished video was way were what when where which while why will with without world
wrong yes
"""


def words() -> tuple[str, ...]:
    """All words, in lower case, sorted; a test proves that no other is ever used.

    At the start of a sentence a word is written with a capital; letters of options are not listed.
    """
    return tuple(sorted({*_WORDS.split(), *COLOURS, *SHAPES}))
