# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cosmos_reason_node.vision.patchify import PatchSpec, patchify
from cosmos_reason_node.vision.resize import resize, target_size

SPEC = PatchSpec()


def reference(frames: np.ndarray, max_pixels: int = 28 * 28 * 1280) -> np.ndarray:
    """Patches by transformers' own processor, which sees one image at a time and repeats it along time."""
    processor = Qwen2VLImageProcessorPil(max_pixels=max_pixels)
    images = [
        processor(images=[frame], return_tensors="np", input_data_format="channels_last")["pixel_values"]
        for frame in frames
    ]
    per_frame = np.stack([image.reshape(len(image), 3, 2, 14 * 14)[:, :, 0] for image in images])
    pairs = per_frame.reshape(len(frames) // 2, 2, *per_frame.shape[1:])  # (t, 2, hw, C, pp)
    return pairs.transpose(0, 2, 3, 1, 4).reshape(-1, SPEC.patch_dim)


@pytest.mark.parametrize("size", [(112, 112), (84, 168)])
def test_same_numbers_as_transformers(size, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    patches, grid = patchify(frames, SPEC)
    difference = np.abs(patches - reference(frames)).max()
    with capsys.disabled():
        print(f"\npatchify {size}: largest difference from transformers {difference:.1e}")
    assert grid == (2, size[0] // 14, size[1] // 14)
    assert patches.dtype == np.float32
    assert difference <= 1e-5


@pytest.mark.parametrize("max_pixels", [28 * 28 * 1280, 448 * 448, 112 * 112])
def test_resizing_is_close_to_transformers(capsys, max_pixels):
    # A smooth scene with edges, as cameras give; noise would measure the filters, not the images.
    y, x = np.mgrid[0:480, 0:640]
    scene = np.stack([x * 255 / 640, y * 255 / 480, 127 + 100 * np.sin(x / 40) * np.cos(y / 30)], -1)
    scene[100:220, 200:360] = (230, 40, 40)
    frame = scene.astype(np.uint8)
    size = target_size(480, 640, max_pixels)
    ours, _ = patchify(np.stack([resize(frame, size)] * 2), SPEC)
    theirs = reference(np.stack([frame] * 2), max_pixels)
    levels = np.abs(ours - theirs) * np.repeat(np.array(SPEC.std) * 255, 2 * 14 * 14)
    with capsys.disabled():
        print(f"\n480x640 to {size}: mean difference {levels.mean():.2f}, largest {levels.max():.0f} of 255")
    assert ours.shape == theirs.shape
    assert levels.mean() < 1.0


def test_temporal_patches_are_independent_rows():
    frames = np.random.default_rng(1).integers(0, 256, (6, 56, 84, 3), dtype=np.uint8)
    whole, (t, h, w) = patchify(frames, SPEC)
    parts = [patchify(frames[i : i + 2], SPEC)[0] for i in range(0, 6, 2)]
    assert (t, h, w) == (3, 4, 6)
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert SPEC.visual_tokens((t, h, w)) == 18


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((3, 56, 56, 3), np.uint8, "multiple of 2 frames"),
        ((0, 56, 56, 3), np.uint8, "multiple of 2 frames"),
        ((2, 60, 56, 3), np.uint8, "multiples of 28"),
        ((2, 56, 0, 3), np.uint8, "multiples of 28"),
        ((2, 56, 56, 4), np.uint8, "uint8 frames"),
        ((2, 56, 56, 3), np.float32, "uint8 frames"),
        ((56, 56, 3), np.uint8, "uint8 frames"),
    ],
)
def test_refuses(shape, dtype, reason):
    with pytest.raises(ValueError, match=reason):
        patchify(np.zeros(shape, dtype), SPEC)
