# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="the simulator is only needed for training: requirements/train.txt")
pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from training.data.sim.episode import HELD_OUT_SEED
from training.data.sim.kinds.mechanics import gives_way
from training.data.sim.kinds.motion import LYING, STANDING
from training.data.sim.physics.clip import FRAME_SIDE, Clip, clip_path, load_clip, save_clip
from training.data.sim.physics.derive import PLACES, forward_states, puzzle, reverse, tiles
from training.data.sim.physics.palette import NAMED_HUES, NAMED_VALUES
from training.data.sim.physics.run import SCENES, run_clip
from training.data.sim.physics.script import CLIP_FRAMES
from training.data.sim.physics.stage import AZIMUTHS
from training.data.sim.physics.world import World

EVERY_PLAN = [(scene, plan) for scene, (module, _) in SCENES.items() for plan in module.PLANS]
STATES = [field.name for field in dataclasses.fields(Clip) if field.name != "frames"]


def same(one, other, names):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_seed_determines_its_clip_frames_included():
    first, again = run_clip(3), run_clip(3)
    assert same(first, again, [*STATES, "frames"])
    assert not np.array_equal(first.position, run_clip(4, scene=first.scene).position)


def test_states_do_not_depend_on_rendering():
    assert same(run_clip(11), run_clip(11, render=False), STATES)


@pytest.mark.parametrize(("scene", "plan"), EVERY_PLAN)
def test_every_plan_makes_a_clip_of_one_length(scene, plan):
    for seed in (1, HELD_OUT_SEED + 1):
        clip = run_clip(seed, scene=scene, plan=plan, render=False)
        assert (clip.scene, clip.plan, clip.length) == (scene, plan, CLIP_FRAMES)
        assert len(set(clip.names.tolist())) == len(clip.names)
        assert np.isfinite(clip.position).all()
        assert (clip.position[..., 2] > -0.02).all(), "nothing sinks into the table"
        things = [i for i in range(len(clip.names)) if clip.colours[i]]
        steps = np.linalg.norm(np.diff(clip.position[:, things], axis=0), axis=-1)
        assert plan == "jump" or steps.max() < 0.2, "no contact throws a thing away"


def test_pictures_show_the_things_where_the_states_say():
    clip = run_clip(5, scene="tabletop", plan="still")
    assert clip.frames.shape == (CLIP_FRAMES, FRAME_SIDE, FRAME_SIDE, 3)
    assert clip.frames.std() > 10
    moved = run_clip(5, scene="tabletop", plan="left")
    x, y = np.rint(moved.pixel[0, 0]).astype(int)
    later_x, later_y = np.rint(moved.pixel[-1, 0]).astype(int)
    assert later_x - x > 10, "a camera that moves to the left moves the picture to the right"
    before, after = moved.frames[0, y, x].astype(int), moved.frames[-1, later_y, later_x].astype(int)
    assert np.abs(before - after).max() < 40, "the same thing, so about the same colour"


def test_projection_agrees_with_the_renderer():
    """The projected centre of a thing is a pixel that shows it, by segmentation."""
    rng = np.random.default_rng(0)
    script = SCENES["tabletop"][0].script("still", "train", rng)
    world = World(script, "train", rng)
    view = script.view(0.0)
    try:
        assert (world.visible_pixels(view) > 40).all()
        centre, _ = view.project(world.data.xpos[world.model.body("thing0").id])
        x, y = np.rint(2 * centre).astype(int)
        canvas, camera = world._look(view)
        assert canvas.geoms(world.data, camera)[y, x] == world.model.body("thing0").geomadr[0]
    finally:
        world.close()


@pytest.mark.parametrize(
    ("scene", "plan", "thing", "falls"),
    [
        ("topple", "push", 0, True),
        ("topple", "light_ball", 0, False),
        ("stack", "stable", -2, False),
        ("stack", "unstable", -2, True),
    ],
)
def test_plans_mostly_have_the_outcome_they_are_made_for(scene, plan, thing, falls):
    """Labels do not rely on it, but without it the answers would not be balanced."""
    clips = [run_clip(seed, scene=scene, plan=plan, render=False) for seed in range(12)]
    if scene == "topple":
        fell = [
            {True: up < LYING, False: up > STANDING}[falls] for up in (clip.up[-1, thing] for clip in clips)
        ]
    else:
        fell = [gives_way(clip, thing) is falls for clip in clips]
    assert np.mean(fell) >= 0.8


@pytest.mark.parametrize("how", ["pass", "orbit"])
def test_what_is_taken_away_cannot_be_told_before_its_place_is_seen_again(how):
    for seed in (0, 1, 2, HELD_OUT_SEED):
        taken = run_clip(seed, scene="hide", plan=f"{how}_taken")
        kept = run_clip(seed, scene="hide", plan=f"{how}_kept")
        gone = np.flatnonzero(~taken.present[-1])
        assert len(gone) == 1
        vanishes = int(np.argmin(taken.present[:, gone[0]]))
        back = vanishes + int(np.argmax(kept.seen[vanishes:, gone[0]] > 0))
        assert back > vanishes, "its place is seen again within the clip"
        np.testing.assert_array_equal(taken.frames[: vanishes + 1], kept.frames[: vanishes + 1])
        differs = np.flatnonzero([(a != b).any() for a, b in zip(taken.frames, kept.frames, strict=True)])
        assert vanishes < differs[0] <= back
        assert kept.seen[-1, gone[0]] >= 0.6


@pytest.mark.parametrize("seed", range(6))
def test_a_thing_is_taken_away_only_while_it_has_no_pixel(seed, monkeypatch):
    shown = []

    def spy(world, index):
        # Called between two frames' pictures: what the camera would show at this very moment.
        frame = round(world.data.time / world.script.frame_s)
        shown.append(world.visible_pixels(world.script.view(frame / (CLIP_FRAMES - 1)))[index])
        original(world, index)

    original = World.remove
    monkeypatch.setattr(World, "remove", spy)
    run_clip(seed, scene="hide", plan="orbit_taken" if seed % 2 else "pass_taken")
    assert shown == [0]


@pytest.mark.parametrize(
    "ranges", [AZIMUTHS, *NAMED_HUES.values(), *NAMED_VALUES.values()], ids=lambda ranges: str(ranges)[:24]
)
def test_held_out_looks_are_never_trained_on(ranges):
    for low, high in ranges["held_out"]:
        assert low < high
        assert all(high <= other_low or low >= other_high for other_low, other_high in ranges["train"])


def test_held_out_clips_have_cameras_and_counts_of_their_own():
    counts = {"train": set(), "held_out": set()}
    for base in (0, HELD_OUT_SEED):
        for seed in range(base, base + 8):
            clip = run_clip(seed, scene="stack", render=False)
            azimuth = float(clip.camera[0, 0])
            assert any(low <= azimuth <= high for low, high in AZIMUTHS[clip.split])
            counts[clip.split].add(len(clip.of_kind("block")))
    assert not counts["train"] & counts["held_out"]


def test_a_reversed_clip_is_the_clip_backwards_and_turns_round_again():
    clip = run_clip(2, scene="topple", plan="push", render=False)
    back = reverse(clip)
    np.testing.assert_array_equal(back.position[0], clip.position[-1])
    assert same(forward_states(back), clip, ["position", "up", "touch", "camera"])
    with pytest.raises(ValueError, match="recorded"):
        reverse(back)


def test_tiles_put_back_in_their_places_are_the_frame():
    frame = (
        np.kron(np.arange(4).reshape(2, 2) * 60, np.ones((56, 56)))[..., None].repeat(3, -1).astype(np.uint8)
    )
    order = np.array([2, 0, 3, 1])
    clip = puzzle(frame, order, seed=1, split="train", scene="room")
    assert clip.frames.shape == (8, FRAME_SIDE, FRAME_SIDE, 3)
    for shown, place in enumerate(order):
        assert (clip.frames[2 * shown] == 60 * place).all(), PLACES[place]
        assert (clip.frames[2 * shown + 1] == clip.frames[2 * shown]).all()
    assert clip.length == 8
    with pytest.raises(ValueError, match="no order"):
        puzzle(frame, np.array([0, 0, 1, 2]), seed=1, split="train", scene="room")
    assert tiles(frame, order).flags.c_contiguous


def test_a_clip_survives_the_disk(tmp_path):
    clip = run_clip(HELD_OUT_SEED + 7)
    path = save_clip(tmp_path, clip)
    assert (
        path
        == clip_path(tmp_path, HELD_OUT_SEED + 7)
        == tmp_path / "held_out" / f"clip{HELD_OUT_SEED + 7}.npz"
    )
    assert not list(path.parent.glob("*.part"))
    back = load_clip(path)
    assert same(back, clip, [*STATES, "frames"])
    assert type(back.seed) is int


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "clip0000001.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip0000001\.npz is not a readable clip"):
        load_clip(path)
    with pytest.raises(FileNotFoundError):
        load_clip(tmp_path / "none.npz")


def test_unknown_scenes_and_plans_are_refused():
    with pytest.raises(ValueError, match="scenes are topple"):
        run_clip(0, scene="kitchen")
    with pytest.raises(ValueError, match="plans are stable, unstable"):
        run_clip(0, scene="stack", plan="maybe")
