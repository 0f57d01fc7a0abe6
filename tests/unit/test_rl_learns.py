# SPDX-License-Identifier: Apache-2.0
"""A video question goes from chance to nearly always right, from rewards alone.

Three seeds, and the controls (shuffled answers, blank videos): ``python -m training.rl.toy``.
"""

import torch

from training.rl import toy

torch.set_num_threads(1)


def test_from_chance_to_95_percent_of_held_out_videos(tmp_path):
    found = toy.learn(tmp_path, 0)
    assert found["before"] < 0.6
    assert found["after"] >= 0.95
