# SPDX-License-Identifier: Apache-2.0
"""Loss and gradients equal TRL's on a frozen batch: same tokens, same weights, ours and theirs."""

import pytest
import torch

from tests.unit.nano_files import NANO
from training.rl.loss import LossSettings, token_losses

pytest.importorskip("trl", reason="the oracle: requirements/test.txt")
torch.set_num_threads(1)
ROWS, PROMPT, LENGTH, VOCABULARY = 6, 3, 5, 32


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    settings = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        max_completion_length=LENGTH,
        beta=0.0,
        use_bias_correction_kl=True,
        gradient_checkpointing=False,
    )
    return GRPOTrainer(
        model=Qwen2ForCausalLM(config),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": ["a"] * ROWS}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_file=str(NANO / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
        ),
    )


def frozen_batch():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([5, 3, 4, 1, 5, 2])
    completion = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator)
    return {
        "prompt_ids": torch.randint(0, VOCABULARY, (ROWS, PROMPT), generator=generator),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.long),
        "completion_ids": completion,
        "completion_mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
        "advantages": torch.randn(ROWS, generator=generator),
        "old_per_token_logps": -3.4 + 0.4 * torch.randn(ROWS, LENGTH, generator=generator),
        "ref_per_token_logps": -3.4 + 0.4 * torch.randn(ROWS, LENGTH, generator=generator),
        "num_items_in_batch": lengths.sum(),
    }


@pytest.mark.parametrize(
    ("aggregation", "theirs"), [("sequence", "grpo"), ("token", "bnpo"), ("constant", "dr_grpo")]
)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradients(trainer, aggregation, theirs, beta):
    model, batch = trainer.model, frozen_batch()
    trainer.beta, trainer.loss_type, trainer.epsilon_low, trainer.epsilon_high = beta, theirs, 0.2, 0.28
    model.eval()  # no gradient accumulation in the normaliser
    model.zero_grad()
    wanted = trainer._compute_loss(model, batch)
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    logits = model(tokens).logits[:, PROMPT - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(-1, batch["completion_ids"][..., None])[..., 0]
    mask = batch["completion_mask"].bool()
    losses, measures = token_losses(
        log_probs[mask],
        batch["old_per_token_logps"][mask],
        batch["advantages"][:, None].expand(-1, LENGTH)[mask],
        LossSettings(clip_low=0.2, clip_high=0.28, importance_cap=0.0, kl_coefficient=beta),
        reference=batch["ref_per_token_logps"][mask] if beta else None,
    )
    lengths = mask.sum(1, keepdim=True).expand(-1, LENGTH)[mask]
    weights = {
        "sequence": 1 / lengths / ROWS,
        "token": torch.full_like(losses, 1 / int(mask.sum())),
        "constant": torch.full_like(losses, 1 / LENGTH / ROWS),
    }[aggregation]
    loss = (losses * weights).sum()
    loss.backward()
    assert measures["clip_fraction"].any()
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-7, rtol=1e-4)
