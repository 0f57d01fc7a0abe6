# SPDX-License-Identifier: Apache-2.0
import numpy as np

from training.sft.augment import Augmentation


def test_a_window_is_changed_as_one():
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (112, 112, 3), np.uint8)
    changed = Augmentation((112, 112), rng).frames(np.stack([frame, frame]))
    assert changed.shape == (2, 112, 112, 3)
    np.testing.assert_array_equal(changed[0], changed[1])
    assert not np.array_equal(changed[0], frame)


def test_points_move_with_the_picture():
    rng = np.random.default_rng(1)
    for _ in range(10):
        frame = np.full((1, 112, 112, 3), 128, np.uint8)
        x, y = rng.integers(35, 77, 2)
        frame[0, y - 2 : y + 3, x - 2 : x + 3] = 255
        change = Augmentation((112, 112), rng)
        seen = change.frames(frame)[0].sum(-1).astype(int)
        bright = np.argwhere(seen > (seen.min() + seen.max()) / 2)[:, ::-1].mean(0)
        np.testing.assert_allclose(change.points(np.array([[x, y]]) / 112)[0] * 112, bright, atol=0.6)


def test_without_hue_colours_stay_what_they_are_called():
    rng = np.random.default_rng(2)
    frame = np.zeros((1, 112, 112, 3), np.uint8)
    frame[..., 0] = 200
    for _ in range(10):
        red, green, blue = Augmentation((112, 112), rng, hue=False).frames(frame)[0, 56, 56].astype(int)
        assert red > 170
        assert max(green, blue) < 10
