# SPDX-License-Identifier: Apache-2.0
"""The decoder over preallocated caches against transformers' own forward pass."""

import copy

import pytest
import torch
from transformers import DynamicCache

from cosmos_reason_node.models.decoder import Decoder, attend, hidden_places, rotate
from tests import tiny_model


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    return tiny_model.build_network(tiny_model.build_tokenizer())


def whole(network, embedded, positions):
    """transformers, everything at once: (L, D)."""
    model = network.model.language_model
    return model(
        inputs_embeds=embedded[None], position_ids=positions[:, None], past_key_values=DynamicCache()
    ).last_hidden_state[0]


def prompt(length, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(length).repeat(3, 1)
    positions[1:, 3:9] = torch.randint(0, 4, (2, 6), generator=generator)  # as of a video
    return torch.randn(length, 64, generator=generator), positions


@torch.inference_mode()
@pytest.mark.parametrize(("pieces", "join"), [((20,), False), ((7, 13), False), ((1, 18, 1), True)])
def test_branches_give_what_whole_sequences_give(network, pieces, join):
    decoder = Decoder(copy.deepcopy(network) if join else network, join=join)
    shared, positions = prompt(20, 0)
    prefix = decoder.new_prefix(32)
    start = 0
    for piece in pieces:  # read in pieces, as a growing window does
        decoder.read(shared[start : start + piece], positions[:, start : start + piece], prefix)
        start += piece
    assert prefix.length == 20
    branches = decoder.new_branches(3, 24)
    texts = [torch.randn(12, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    chunks = [(5, 3, 4), (2, 8, 2), (4, 4, 4)]  # ragged: rows are padded to the longest
    lengths, outputs = torch.zeros(3, dtype=torch.long), []
    for step in range(3):
        now = [chunks[row][step] for row in range(3)]
        rows = torch.zeros(3, max(now), 64)
        for row in range(3):
            at = int(lengths[row])
            rows[row, : now[row]] = texts[row][at : at + now[row]]
        room = {"prefix_room": 32, "room": 24} if step == 1 else {}  # static shapes, masked
        ends = torch.tensor(now) - 1
        hidden = decoder.write(rows, 50 + lengths, lengths, ends, prefix, branches, **room)
        lengths = lengths + torch.tensor(now)
        outputs.append((lengths - 1, hidden))
    for row in range(3):
        full = torch.cat((shared, texts[row]))
        at = torch.cat((positions, 50 + torch.arange(12).repeat(3, 1)), 1)
        expected = whole(network, full, at)[20:]
        for last, hidden in outputs:
            torch.testing.assert_close(hidden[row], expected[last[row]], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_branch_moves_and_others_are_left_alone(network):
    decoder = Decoder(network)
    shared, positions = prompt(10, 1)
    prefix = decoder.new_prefix(10)
    decoder.read(shared, positions, prefix)
    branches = decoder.new_branches(3, 8)
    texts = torch.randn(3, 4, 64, generator=torch.Generator().manual_seed(3))
    none = torch.zeros(3, dtype=torch.long)
    decoder.write(texts, none + 30, none, none + 3, prefix, branches)
    more = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(4))
    branches.move(2, 0, 4)
    branches.wipe(2)
    bigger = decoder.new_branches(4, 16)
    bigger.copy_from(branches)
    four = torch.full((2,), 4)
    # Rows 0 and 1 are now the third and the second branch.
    hidden = decoder.write(more, four + 30, four, four - 4, prefix, bigger)
    for row, text in ((0, texts[2]), (1, texts[1])):
        full = torch.cat((shared, text, more[row]))
        at = torch.cat((positions, 30 + torch.arange(5).repeat(3, 1)), 1)
        torch.testing.assert_close(hidden[row], whole(network, full, at)[-1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rotations_add_up(network):
    decoder = Decoder(network)
    vector = torch.randn(1, 1, 2, 16, generator=torch.Generator().manual_seed(0))
    here, there = torch.tensor([3, 1, 2]).view(3, 1, 1), torch.tensor([-2, 0, 5]).view(3, 1, 1)
    once = rotate(vector.clone(), *decoder.rotation(here + there, torch.float32))
    twice = rotate(
        rotate(vector.clone(), *decoder.rotation(here, torch.float32)),
        *decoder.rotation(there, torch.float32),
    )
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("join", [False, True])
def test_changed_weights_are_seen(network, join):
    network = copy.deepcopy(network)
    decoder = Decoder(network, join=join)
    shared, positions = prompt(10, 2)
    with torch.no_grad():
        before = decoder.new_prefix(10)
        decoder.read(shared, positions, before)
        weight = network.model.language_model.layers[0].self_attn.k_proj.weight
        weight.mul_(2)
        after = decoder.new_prefix(10)
        decoder.read(shared, positions, after)
    assert not torch.allclose(before.cache[0, 0], after.cache[0, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_as_large_as_qwen_s_biases_make_them_lose_nothing_in_half_precision(dtype):
    """Some heads' products exceed 65,504; what tells keys apart is a few units of that."""
    torch.manual_seed(0)
    channels, room, length, scale = 128, 8, 2, 128**-0.5
    query, prefix, own = (
        torch.randn(shape).to(dtype)
        for shape in ((1, length, 4, channels), (2, 2, 6, channels), (2, 2, room, channels))
    )
    query[..., -1], prefix[0, ..., -1], own[0, ..., -1] = 250.0, 280.0, 280.0  # 70,000 on every product
    hides = hidden_places(torch.tensor([[3, 4]]), 6, room, 6, 2)
    exact = attend(query.float(), prefix.float(), own.float(), hides, scale)
    assert (attend(query, prefix, own, hides, scale).float() - exact).abs().max() < 0.02
