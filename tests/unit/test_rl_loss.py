# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients against exact enumeration of all answers, and against TRL's on a frozen batch."""

import itertools

import numpy as np
import pytest
import torch

from training.rl.advantages import group_advantages, zero_variance
from training.rl.loss import LossSettings, token_losses

torch.set_num_threads(1)
TOKENS, LENGTH = 3, 2
ANSWERS = list(itertools.product(range(TOKENS), repeat=LENGTH))


def tables(seed, scale=1.0):
    """Logits of the first token, and of the second after each first one."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(TOKENS, generator=generator)).double(),
        (scale * torch.randn(TOKENS, TOKENS, generator=generator)).double(),
    ]


def token_log_probs(policy):
    """(answers, LENGTH) of every possible answer."""
    first, second = policy[0].log_softmax(-1), policy[1].log_softmax(-1)
    return torch.stack([torch.stack([first[a], second[a, b]]) for a, b in ANSWERS])


def gradient(value, policy):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, policy)])


def settings(**changes):
    values = {"clip_low": 1.0, "clip_high": 1e9, "importance_cap": 0.0, "kl_coefficient": 0.0} | changes
    return LossSettings(**values)


@pytest.mark.parametrize("cap", [0.0, 1e9])
def test_policy_gradient_of_all_answers_is_that_of_the_expected_reward(cap):
    """On-policy: the mean over answers of the loss' gradient is minus that of the mean reward."""
    policy = [t.requires_grad_() for t in tables(0)]
    rewards = torch.randn(len(ANSWERS), generator=torch.Generator().manual_seed(1)).double()
    log_probs = token_log_probs(policy)
    chance = log_probs.sum(-1).exp()
    wanted = gradient((chance * rewards).sum(), policy)

    log_probs = token_log_probs(policy)
    sampled = log_probs.detach()
    advantages = rewards[:, None].expand(-1, LENGTH)
    losses, _ = token_losses(log_probs, sampled, advantages, settings(importance_cap=cap))
    got = gradient((chance.detach()[:, None] * losses).sum(), policy)
    torch.testing.assert_close(got, -wanted)


def true_kl_gradient(policy, reference):
    """Of the divergence at each token, after prefixes as the policy (held fixed) writes them."""
    first, second = (t.log_softmax(-1) for t in policy)
    other = [t.log_softmax(-1) for t in reference]
    prefix = first.detach().exp()
    value = (first.exp() * (first - other[0])).sum()
    value = value + (prefix[:, None] * second.exp() * (second - other[1])).sum()
    return gradient(value, policy)


@pytest.mark.parametrize("cap", [0.0, 1e9])
def test_the_kl_terms_gradient_is_the_reverse_kls(cap):
    policy, reference = [t.requires_grad_() for t in tables(2)], tables(3)
    log_probs = token_log_probs(policy)
    chance = log_probs.detach().sum(-1).exp()
    zero = torch.zeros_like(log_probs)
    losses, measures = token_losses(
        log_probs,
        log_probs.detach(),
        zero,
        settings(importance_cap=cap, kl_coefficient=1.0),
        reference=token_log_probs(reference),
    )
    got = gradient((chance[:, None] * losses).sum(), policy)
    torch.testing.assert_close(got, true_kl_gradient(policy, reference))
    assert (measures["kl"] >= 0).all()

    # The trap: differentiating the estimate alone gives the other direction's gradient.
    apart = token_log_probs(reference) - token_log_probs(policy)
    naive = gradient((chance[:, None] * (apart.exp() - apart - 1)).sum(), policy)
    assert (naive - got).abs().max() > 0.01


def test_importance_correction_makes_old_answers_unbiased():
    """Tokens sampled with other weights, corrected without a bound, give the present policy's gradient."""
    policy, old = [t.requires_grad_() for t in tables(4)], tables(5, scale=0.5)
    sampled = token_log_probs(old)
    first = torch.randn(
        TOKENS, generator=torch.Generator().manual_seed(6)
    ).double()  # paid for the first token
    advantages = torch.stack([torch.stack([first[a], first[a] * 0]) for a, b in ANSWERS])
    wanted = gradient((policy[0].softmax(-1) * first).sum(), policy[:1])
    for cap in (0.0, 1e9):
        losses, _ = token_losses(token_log_probs(policy), sampled, advantages, settings(importance_cap=cap))
        chance = sampled.sum(-1).exp()
        got = gradient((chance[:, None] * losses).sum(), policy[:1])
        torch.testing.assert_close(got, -wanted)


def test_the_cap_bounds_the_weight_and_the_clip_stops_the_gradient():
    own = torch.tensor([0.0, 0.0], requires_grad=True)
    sampled = torch.tensor([-3.0, -0.01])
    losses, _ = token_losses(own, sampled, torch.ones(2), settings(importance_cap=2.0))
    assert losses[0].item() == pytest.approx(-2.0)
    assert losses[1].item() == pytest.approx(-np.exp(0.01), rel=1e-5)
    narrow = settings(clip_low=0.2, clip_high=0.28)
    for advantage, moved, flows in ((1, 0.4, False), (1, 0.2, True), (-1, -0.4, False), (-1, 0.4, True)):
        own = torch.tensor([moved], requires_grad=True)
        losses, measures = token_losses(own, torch.zeros(1), torch.tensor([float(advantage)]), narrow)
        (slope,) = torch.autograd.grad(losses.sum(), own)
        assert bool(slope) is flows
        assert bool(measures["clip_fraction"]) is not flows


def test_group_advantages():
    rewards = [1.0, 0.0, 0.0, 1.0]
    assert group_advantages(rewards, normalize=False).tolist() == [0.5, -0.5, -0.5, 0.5]
    assert group_advantages(rewards, normalize=True).std(ddof=1) == pytest.approx(1.0, rel=1e-3)
    assert not group_advantages([0.5] * 3, normalize=True).any()
    assert zero_variance([0.5] * 3)
    assert not zero_variance(rewards)


@pytest.mark.parametrize("normalize", [False, True])
def test_groups_that_have_nothing_to_compare_teach_nothing(normalize):
    assert group_advantages([], normalize=normalize).tolist() == []
    assert group_advantages([1.0], normalize=normalize).tolist() == [0.0]
    assert abs(group_advantages([0.1] * 9, normalize=normalize)).max() < 1e-9  # whatever its mean rounds to
    assert zero_variance([])
    assert zero_variance([1.0])


def test_the_group_baselines_bias_is_the_known_one():
    """The mean over all groups of G answers of the gradient is (1 - 1/G) of the true one."""
    size = 2
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    rewards = [1.0, 0.0, 0.4]
    (true,) = torch.autograd.grad((logits.softmax(-1) * torch.tensor(rewards).double()).sum(), logits)
    total = torch.zeros(3, dtype=torch.float64)
    for group in itertools.product(range(3), repeat=size):
        log_probs = logits.log_softmax(-1)[list(group)]
        advantages = torch.from_numpy(group_advantages([rewards[i] for i in group], normalize=False))
        losses, _ = token_losses(log_probs, log_probs.detach(), advantages, settings())
        chance = log_probs.detach().sum().exp()
        total -= chance * torch.autograd.grad(losses.mean(), logits)[0]
    torch.testing.assert_close(total, (1 - 1 / size) * true)
