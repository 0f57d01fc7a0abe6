# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from cosmos_reason_node.engine.base import Sampling
from cosmos_reason_node.engine.sampling import branch_generator, choose, draw, sample_tokens

LOGITS = torch.tensor([0.0, 2.0, 1.0, 5.0, -1.0])
FORBIDDEN = torch.tensor([False, False, False, True, False])


def sample_token(logits, forbidden, sampling, generator):
    """Token and log probability of a single row."""
    tokens, log_probs = sample_tokens(logits[None], forbidden, [sampling], [draw(sampling, generator)])
    return int(tokens[0]), float(log_probs[0])


def draws(sampling, count=2000):
    generator = branch_generator(sampling, 0)
    return [sample_token(LOGITS, FORBIDDEN, sampling, generator)[0] for _ in range(count)]


def test_greedy_takes_the_best_allowed_token():
    token, log_prob = sample_token(LOGITS, FORBIDDEN, Sampling(), branch_generator(Sampling(), 0))
    allowed = [0.0, 2.0, 1.0, -1.0]
    assert token == 1
    assert log_prob == pytest.approx(2.0 - math.log(sum(map(math.exp, allowed))), abs=1e-5)


def test_sampling_follows_the_distribution():
    drawn = draws(Sampling(temperature=1.0, seed=3))
    expected = torch.tensor([0.0, 2.0, 1.0, -torch.inf, -1.0]).softmax(0)
    for token in range(5):
        assert drawn.count(token) / len(drawn) == pytest.approx(float(expected[token]), abs=0.04)
    assert 3 not in drawn


def test_a_point_next_to_one_never_falls_off_the_end():
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    forbidden = torch.arange(1000) >= 990
    for temperature in (0.1, 1.0, 10.0):
        point = math.nextafter(1.0, 0.0)  # float32 makes 1 of it
        tokens, _ = sample_tokens(logits, forbidden, [Sampling(temperature=temperature)], [point])
        assert 0 <= int(tokens[0]) < 990


def test_nucleus_leaves_the_tail_out():
    # Probabilities 0.61, 0.22, 0.08, ...: 0.7 of the mass is in the first two.
    assert set(draws(Sampling(temperature=1.0, top_p=0.7), 300)) == {1, 2}
    assert set(draws(Sampling(temperature=1.0, top_p=0.5), 50)) == {1}
    assert set(draws(Sampling(temperature=1.0, top_p=1e-6), 50)) == {1}


def test_seeds_and_branches_differ():
    hot = Sampling(temperature=5.0, seed=1)
    assert draws(hot, 20) == draws(hot, 20)
    other_seed = draws(Sampling(temperature=5.0, seed=2), 20)
    generator = branch_generator(hot, 1)
    other_branch = [sample_token(LOGITS, FORBIDDEN, hot, generator)[0] for _ in range(20)]
    assert len({tuple(draws(hot, 20)), tuple(other_seed), tuple(other_branch)}) == 3


def test_choices_sum_their_spellings():
    # Alone token 1 is the likeliest; the spellings of the other choice together are likelier.
    logits = torch.tensor([1.8, 2.0, 1.8])
    index, shares = choose(logits, [(1,), (0, 2)], Sampling(), 0.0)
    mass = 2 * math.exp(1.8) / (2 * math.exp(1.8) + math.exp(2.0))
    assert index == 1
    assert shares == pytest.approx([1 - mass, mass], abs=1e-5)


def test_sampled_choices_report_the_model_s_confidence():
    hot = Sampling(temperature=100.0, seed=0)
    generator = branch_generator(hot, 0)
    logits = torch.tensor([2.0, 0.0])
    drawn = [choose(logits, [(0,), (1,)], hot, draw(hot, generator)) for _ in range(100)]
    assert {index for index, _ in drawn} == {0, 1}
    winner = 1 / (1 + math.exp(-2.0))
    for _, shares in drawn:
        assert shares == pytest.approx([winner, 1 - winner], abs=1e-5)


def test_rows_are_chosen_as_if_alone():
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3
    samplings = [Sampling(), Sampling(1.0, 0.9, 1), Sampling(2.0, 1.0, 2), Sampling()]
    points = [draw(sampling, branch_generator(sampling, 0)) for sampling in samplings]
    tokens, log_probs = sample_tokens(rows, FORBIDDEN, samplings, points)
    for row, sampling in enumerate(samplings):
        alone = sample_token(rows[row], FORBIDDEN, sampling, branch_generator(sampling, 0))
        assert (int(tokens[row]), float(log_probs[row])) == pytest.approx(alone)


def test_a_row_that_is_not_finite_says_so_and_leaves_the_others_alone():
    rows = torch.stack([LOGITS, LOGITS * torch.nan, LOGITS])
    samplings = [Sampling(), Sampling(1.0), Sampling(1.0)]
    _, log_probs = sample_tokens(rows, FORBIDDEN, samplings, [0.0, 0.5, 0.5])
    assert [math.isfinite(value) for value in log_probs] == [True, False, True]
