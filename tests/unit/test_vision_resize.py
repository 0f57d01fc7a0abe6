# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
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


@pytest.mark.parametrize("camera", [(480, 640), (600, 800), (720, 1280), (1080, 1920), (241, 321)])
@pytest.mark.parametrize("max_pixels", [448 * 448, 112 * 112])
def test_shrinking_is_about_as_close_to_the_processors_filter_as_exact_averages(camera, max_pixels):
    height, width = camera
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) // 4 % 256], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(60):
        color = tuple(int(value) for value in rng.integers(0, 255, 3))
        start, end = ((int(rng.integers(width)), int(rng.integers(height))) for _ in range(2))
        cv2.circle(image, start, int(rng.integers(5, height // 6)), color, -1)
        cv2.line(image, start, end, color, 2)
    size = target_size(height, width, max_pixels)
    theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)).astype(int)
    exact = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    distance, distance_of_exact = (np.abs(small - theirs).mean() for small in (resize(image, size), exact))
    assert distance < 3.0  # of 255
    assert distance < distance_of_exact + 0.6
