# SPDX-License-Identifier: Apache-2.0
"""What is true of the things that a question names, from the simulator's state."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from training.data.sample import Span
from training.data.sim.kinds.motion import named
from training.data.sim.physics.derive import puzzle
from training.data.sim.physics.run import run_clip
from training.nano.facts import FACTS, FactProbe, facts_of, thing_facts


def still(points):
    return points


def column(table, name):
    return table[:, FACTS.index(name)]


def known(values):
    return {int(i): float(values[i]) for i in np.flatnonzero(~np.isnan(values))}


def scene_where(name, right, seeds=range(60)):
    """The first clip of a scene, made without pictures, of which something holds."""
    return next(clip for seed in seeds if right(clip := run_clip(seed, scene=name, render=False)))


def test_where_things_are_is_as_the_camera_sees_them():
    clip = run_clip(3, scene="tabletop", render=False)
    span = Span(0, clip.length)
    table = thing_facts(clip, span, still)
    across, depth = known(column(table, "across")), known(column(table, "depth"))
    assert len(across) >= 2
    by_picture = sorted(across, key=lambda i: clip.pixel[span.last, i, 0])
    assert sorted(across, key=across.get) == by_picture
    assert sorted(depth, key=depth.get) == sorted(depth, key=lambda i: clip.depth[span.last, i])
    shifted = known(column(thing_facts(clip, span, lambda points: points + np.array([0.1, 0.0])), "across"))
    assert all(shifted[i] == pytest.approx(across[i] + 0.4, abs=1e-5) for i in across)
    assert not known(column(table, "moves"))  # the camera moves: pixels tell nothing of things


def test_times_are_in_the_order_of_what_happens():
    def two_land(clip):
        landed = [np.flatnonzero(clip.landed[:, i]) for i in named(clip, "ball")]
        return len(landed) >= 2 and all(len(frames) and frames[0] > 0 for frames in landed)

    clip = scene_where("drop", two_land)
    when = known(column(thing_facts(clip, Span(0, clip.length), still), "when"))
    first = {i: int(np.flatnonzero(clip.landed[:, i])[0]) for i in when}
    assert len(when) >= 2
    for i in when:
        assert when[i] == pytest.approx(4 * (first[i] / clip.length - 0.5), abs=1e-5)


def test_what_is_hit_starts_and_what_is_not_never_does():
    clip = scene_where("collide", lambda clip: clip.plan not in ("weigh", "race"))
    span = Span(0, clip.length)
    table = thing_facts(clip, span, still)
    for i, starts in known(column(table, "starts")).items():
        moved = np.linalg.norm(clip.position[:, i] - clip.position[0, i], axis=-1).max() > 0.015
        assert (starts < 2.0) == moved


def test_what_vanished_is_gone():
    clip = scene_where("hide", lambda clip: (~clip.present[-1]).any())
    gone = known(column(thing_facts(clip, Span(0, clip.length), still), "gone"))
    assert 1.0 in gone.values()
    assert all(value == float(not clip.present[-1, i]) for i, value in gone.items())


def test_a_window_has_at_most_what_its_scene_decides():
    windows = []
    for name in ("tabletop", "odd", "ramp", "room"):
        clip = run_clip(5, scene=name, render=name == "room")
        if name == "room":
            clip = puzzle(clip.frames[0], np.arange(4), seed=0, split="train", scene="room")
        last = clip.release if clip.release > 0 else clip.length
        windows.append((clip, Span(0, last), still))
    facts = facts_of([], windows)
    assert facts.things.shape == (0, len(FACTS))
    assert facts.camera[3] == facts.odd[0] == facts.odd[3] == facts.goes[0] == facts.goes[3] == -1
    assert facts.camera[0] >= 0
    assert np.isnan(thing_facts(*windows[3])).all()


def test_facts_are_read_off_what_holds_them():
    torch.manual_seed(0)
    table = torch.randn(64, len(FACTS))
    table[torch.rand(64, len(FACTS)) < 0.3] = math.nan
    facts = facts_of([], [(run_clip(5, scene="tabletop", render=False), Span(0, 16), still)])
    facts = type(facts)(table, facts.camera, facts.odd, facts.goes)
    probe = FactProbe(16)
    names = torch.cat([table.nan_to_num(), torch.randn(64, 16 - len(FACTS))], 1)
    summary = torch.randn(1, 16)
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.03)
    losses = []
    for _ in range(150):
        loss, measures = probe(names, summary, facts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert measures["camera_right"] == 1.0
    assert measures["odd_right"] == 0.0  # nothing was to be read
    assert all(p.grad is not None for p in probe.parameters())
