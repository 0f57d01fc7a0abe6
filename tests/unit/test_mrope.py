# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from cosmos_reason_node.models.mrope import VideoGrid, prompt_positions, text_positions, video_positions
from tests import tiny_model

VIDEO, TEXT = 7, 1
CONSTANTS = {"video_token": VIDEO, "merge": 2, "tokens_per_second": 2}


def ids(*runs):
    return [token for token, length in runs for _ in range(length)]


@pytest.fixture(scope="module")
def reference():
    network = tiny_model.build_network(tiny_model.build_tokenizer())

    def positions(tokens, videos):
        tensor = torch.tensor([tokens])
        return network.model.get_rope_index(
            tensor,
            mm_token_type_ids=(tensor == VIDEO).int() * 2,
            video_grid_thw=torch.tensor([video.grid for video in videos]),
            second_per_grid_ts=torch.tensor([video.seconds_per_patch for video in videos]),
        )[0][:, 0].numpy()

    return positions


@pytest.mark.parametrize(
    ("grid", "seconds"),
    [
        ((16, 32, 32), 0.5),  # the released setting: 448x448, 32 frames at 4 fps
        ((1, 8, 8), 0.5),
        ((4, 8, 4), 0.5),
        ((2, 4, 6), 1.0),
        ((3, 16, 16), 0.35),
    ],
)
def test_equals_installed_transformers(reference, grid, seconds):
    # Cases in which the time span is no longer than the larger side, so that both conventions agree after the
    # video.
    video = VideoGrid(grid, seconds)
    n = grid[0] * grid[1] * grid[2] // 4
    tokens = ids((TEXT, 5), (VIDEO, n), (TEXT, 4), (VIDEO, n), (TEXT, 3))
    ours, following = prompt_positions(tokens, [video, video], **CONSTANTS)
    np.testing.assert_array_equal(ours, reference(tokens, [video, video]))
    assert following == ours[:, -1].max() + 1


def test_differs_from_installed_transformers_only_after_long_videos(reference):
    video = VideoGrid((16, 8, 8), 1.0)  # spans 31 positions of time over a grid of 4x4
    tokens = ids((TEXT, 5), (VIDEO, 256), (TEXT, 3))
    ours, following = prompt_positions(tokens, [video], **CONSTANTS)
    theirs = reference(tokens, [video])
    np.testing.assert_array_equal(ours[:, :261], theirs[:, :261])
    assert ours[0, 261:].tolist() == [
        36,
        37,
        38,
    ]  # past the whole video, as transformers 4.5x and the training code
    assert theirs[0, 261:].tolist() == [9, 10, 11]  # inside its time span
    assert following == 39


def test_time_at_four_frames_per_second():
    video = VideoGrid((4, 2, 2), 0.5)
    constants = {"merge": 2, "tokens_per_second": 2}
    assert video_positions(video, 3, **constants)[0].tolist() == [3, 4, 5, 6]
    assert video_positions(video, 3, mrope_time="legacy_zero", **constants)[0].tolist() == [3, 3, 3, 3]
    slow = VideoGrid((3, 2, 2), 2.0)
    for mode in ("float", "legacy_zero"):  # whole seconds: the old cast did no harm
        assert video_positions(slow, 0, mrope_time=mode, **constants)[0].tolist() == [0, 4, 8]


def test_prefix_and_rest_make_the_whole():
    video = VideoGrid((4, 4, 4), 0.5)
    tokens = ids((TEXT, 5), (VIDEO, 16), (TEXT, 9))
    whole, end = prompt_positions(tokens, [video], **CONSTANTS)
    prefix, following = prompt_positions(tokens[:22], [video], **CONSTANTS)
    np.testing.assert_array_equal(whole, np.concatenate([prefix, text_positions(following, 8)], 1))
    assert end == following + 8


def test_text_alone():
    positions, following = prompt_positions([TEXT] * 4, [], **CONSTANTS)
    assert positions.tolist() == [[0, 1, 2, 3]] * 3
    assert following == 4


def test_refuses_mismatches():
    video = VideoGrid((1, 4, 4), 0.5)
    with pytest.raises(ValueError, match="0 runs"):
        prompt_positions([TEXT], [video], **CONSTANTS)
    with pytest.raises(ValueError, match="4 tokens, its run 3"):
        prompt_positions(ids((VIDEO, 3)), [video], **CONSTANTS)
    with pytest.raises(ValueError, match="mrope_time"):
        video_positions(video, 0, merge=2, tokens_per_second=2, mrope_time="int")
