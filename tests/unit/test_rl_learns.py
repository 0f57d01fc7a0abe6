# SPDX-License-Identifier: Apache-2.0
"""A video question goes from chance to nearly always right, from rewards alone.

Three seeds, and the controls (shuffled answers, blank videos): ``python -m training.rl.toy``.
"""

import numpy as np
import torch

from cosmos_reason_node.models.tokenizer import TextTokenizer
from training.rl import toy

torch.set_num_threads(1)


def test_from_chance_to_95_percent_of_held_out_videos(tmp_path):
    found = toy.learn(tmp_path, 0)
    assert found["before"] < 0.6
    assert found["after"] >= 0.95


def test_thoughts_have_a_long_tail_and_fit_the_bound(tmp_path):
    tokenizer = TextTokenizer(toy.write_model(tmp_path, 0) / "tokenizer.json")
    rng = np.random.default_rng(0)
    lengths = [len(tokenizer.encode(toy.draw_thought(rng))) for _ in range(2000)]
    assert min(lengths) == 1
    assert max(lengths) == toy.MAX_THOUGHT
    assert np.mean(lengths) > 2 * np.median(lengths)
    assert np.log(lengths).std() > 0.8
