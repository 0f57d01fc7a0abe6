# SPDX-License-Identifier: Apache-2.0
"""Table-top physics under plain MuJoCo: small scenes whose outcome the simulator knows.

    scene (scenes/*.py) -> Script -> World -> Clip -> derive (reverse, puzzle) -> training.data.sim.kinds

A scene draws a plan and writes a script: which things stand where, what drives them, how the camera moves.
The world runs it and records, per frame, the picture and the state that labels are read from. Labels come
from that state, never from the plan's name.
"""
