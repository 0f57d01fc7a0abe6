# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from cosmos_reason_node.vision.resize import resize, target_size


@given(
    height=st.integers(28, 2200),
    width=st.integers(28, 2200),
    max_pixels=st.sampled_from([112 * 112, 224 * 224, 448 * 448, 1280 * 784]),
)
@settings(max_examples=300, deadline=None)
def test_same_size_as_transformers(height, width, max_pixels):
    if max(height, width) / min(height, width) > 15:
        return  # theirs goes over max_pixels when the short side is lifted to one row
    ours = target_size(height, width, max_pixels)
    assert ours == smart_resize(height, width, max_pixels=max_pixels)


@given(height=st.integers(1, 5000), width=st.integers(1, 5000))
@settings(max_examples=200, deadline=None)
def test_bounds_hold(height, width):
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="aspect ratio"):
            target_size(height, width)
        return
    rows, columns = target_size(height, width, max_pixels=112 * 112)
    assert rows % 28 == columns % 28 == 0
    assert 28 * 28 <= rows * columns <= 112 * 112


def test_released_model_sees_448_squares():
    assert target_size(1080, 1080) == (448, 448)
    assert target_size(480, 640) == (364, 504)


@pytest.mark.parametrize(("height", "width", "max_pixels"), [(0, 10, 9999), (10, -1, 9999), (56, 56, 100)])
def test_refuses_sizes(height, width, max_pixels):
    with pytest.raises(ValueError, match="pixel"):
        target_size(height, width, max_pixels)


def test_shrinking_averages():
    checker = np.indices((448, 448)).sum(0) % 2 * 255
    small = resize(np.repeat(checker[..., None], 3, 2).astype(np.uint8), (112, 112))
    assert small.shape == (112, 112, 3)
    assert small.min() >= 126  # grey, not the aliased black or white of subsampling
    assert small.max() <= 129


def test_same_size_costs_nothing():
    image = np.zeros((56, 84, 3), np.uint8)
    assert resize(image, (56, 84)) is image


def test_refuses_other_than_rgb_bytes():
    with pytest.raises(ValueError, match="uint8"):
        resize(np.zeros((56, 56)), (28, 28))
