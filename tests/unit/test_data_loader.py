# SPDX-License-Identifier: Apache-2.0
"""Loaded samples are the same with and without workers, in order, and none is dropped."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cosmos_reason_node.vision.patchify import PatchSpec, patchify
from tests.unit.video_files import steady, write_video
from training.data.loader import Windows, load, loader
from training.data.media import WindowSpec, load_window
from training.data.schema import Media, Provenance, QuestionKind, Sample, Video

SPEC = WindowSpec(250_000_000, 4, PatchSpec(), frame_size=(28, 28))


def sample(name: str, *media: Media) -> Sample:
    return Sample(name, media, QuestionKind.OTHER, "x", Provenance("t"), question="?")


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", steady(4 + 2 * i, 4))
    (tmp_path / "bad.mp4").write_bytes(b"x")
    samples = [sample(f"s{i}", Video(f"{i}.mp4")) for i in range(4)]
    samples += [
        sample("bad", Video("bad.mp4")),
        sample("text"),
        sample("two", Video("0.mp4"), Video("1.mp4")),
    ]
    return Windows(tmp_path, samples, SPEC)


def test_patches_are_those_of_the_window(windows: Windows):
    loaded = windows[6]
    expected = [
        patchify(load_window(windows.root, m, SPEC).pixels(), SPEC.patches) for m in loaded.sample.media
    ]
    np.testing.assert_array_equal(
        loaded.patches.numpy(), np.concatenate([patches for patches, _ in expected])
    )
    assert loaded.grids == tuple(grid for _, grid in expected) == ((2, 2, 2), (2, 2, 2))
    assert loaded.period_ns == (250_000_000, 250_000_000)


def test_what_cannot_be_read_stays_in_its_place(windows: Windows):
    loaded = [load(windows.root, s, SPEC) for s in windows.samples]
    assert [item.sample.sample_id for item in loaded if item.error] == ["bad"]
    assert "bad.mp4 cannot be decoded" in loaded[4].error
    assert loaded[5].patches is None
    assert loaded[5].error == ""


def test_workers_start_although_opencv_has_threads_here(windows: Windows):
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 0)  # has them started
    assert len(list(loader(windows, workers=2, order=[0, 1], timeout_s=60.0))) == 2


def test_workers_give_the_same_in_the_same_order(windows: Windows):
    order = [3, 0, 4, 5, 6, 1]
    alone = [item for batch in loader(windows, batch=2, order=order) for item in batch]
    together = [item for batch in loader(windows, batch=2, workers=2, order=order) for item in batch]
    assert [item.sample.sample_id for item in together] == ["s3", "s0", "bad", "text", "two", "s1"]
    for one, other in zip(alone, together, strict=True):
        assert (one.sample, one.grids, one.error) == (other.sample, other.grids, other.error)
        assert (one.patches is None) == (other.patches is None)
        assert one.patches is None or torch.equal(one.patches, other.patches)
