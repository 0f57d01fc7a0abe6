# SPDX-License-Identifier: Apache-2.0
"""How much memory a trainer's device and a rollout worker need, estimated before any weight is loaded.

What fine-tuning holds as well is counted by training.sft.memory. Added are the reference, answers whose
logits are read a piece at a time, and the engines of the rollout workers. Tests compare both estimates with
torch's own accounting.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.run import FORCED_TOKENS
from cosmos_reason_node.models.spec import CONFIG, TOKENIZER, read_json, read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from training.sft import config as sft
from training.sft import memory
from training.sft.parallel import Context, join

from .config import ConfigError, RlConfig
from .policy import LOGIT_TOKENS, visual_tokens
from .publish import rollout_dtype
from .tasks import TaskSampler

# Bytes of float32 for each answer token and word: masked logits, their logarithm and its gradient, and what
# becomes of them on the way to the entropy.
_READING = 5 * 4
_MARKS = 3  # states that a hybrid's prefix keeps (models/hybrid_decoder.py)


@dataclass(frozen=True)
class Question:
    """Tokens of the longest prompt that may be asked.

    Attributes:
        shared: of the whole prompt, that all answers follow.
        text: of them, the question itself.
        visual: of them, the videos.
    """

    shared: int
    text: int
    visual: int


@dataclass(frozen=True)
class TrainerEstimate(memory.Estimate):
    """Bytes on one of the trainer's devices.

    Attributes:
        reference: weights of the network that the KL term compares with.
        engines: of the rollout workers that take of the same memory.
    """

    reference: int = 0
    engines: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return super().total + self.reference + self.engines


@dataclass(frozen=True)
class EngineEstimate:
    """Bytes of a rollout worker's engine.

    Attributes:
        weights: in the engine's type.
        cache: keys and values of the prompts and of the answers of a round.
        activations: of reading the largest prompt.
    """

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_mib(value)}" for name, value in vars(self).items())
        return f"{_mib(self.total)} of a rollout worker: {parts}"


def longest_question(config: RlConfig, sampler: TaskSampler) -> Question:
    """Bounds over all questions; of texts, the one of most characters is taken for the longest."""
    base = Path(config.model.path).expanduser()
    spec, tokenizer = read_model_spec(base), TextTokenizer(base / TOKENIZER)
    media, text, characters = 0, 0, -1
    for sample in sampler.samples:
        media = max(media, len(sample.media))
        written = sum(map(len, (sample.question, sample.task, sample.action, *sample.options)))
        if written > characters:
            text, characters = len(prompt.encode_suffix(tokenizer, sample.to_query(think_tokens=0))), written
    visual = visual_tokens(spec, sampler.window, media)
    return Question(len(prompt.encode_prefix(tokenizer, [])) + visual + text, text, visual)


def largest_pass(config: RlConfig, question: Question, merge: int) -> memory.PassSize:
    """Bounds over the forward passes of the trainer, see policy.RowPacker.

    Args:
        config: of the run.
        question: the longest.
        merge: patches of a visual token, along one side.
    """
    most, group = config.rollout.max_tokens, config.grpo.group_size
    whole = question.shared + group * most
    length = max(question.shared + most, min(config.data.max_tokens, whole))
    tokens = max(length, min(config.data.max_tokens, config.optimizer.batch * whole))
    answers = math.ceil(tokens * (length - question.shared) / length)
    rows = max(1, min(config.optimizer.batch, tokens // (question.shared + group)))
    return memory.PassSize(tokens, length, rows * question.visual * merge**2, answers)


def estimate_trainer(
    architecture: dict[str, Any], count: memory.Parameters, size: memory.PassSize, config: RlConfig
) -> TrainerEstimate:
    """What one of ``run.processes`` devices holds; engines are added by ``check_memory``.

    Args:
        architecture: config.json.
        count: of its parameters.
        size: of the largest pass.
        config: of the run.
    """
    world = config.run.processes
    common = memory.estimate(architecture, count, size, fine_tuning(config), world)
    read = min(size.answers, LOGIT_TOKENS)
    reference = 0
    if config.grpo.kl_coefficient:
        # What is not trained, a frozen tower, is shared with the policy. Autocast keeps no copy of it.
        reference = 4 * count.trained // world
        if world > 1:
            compute = 2 if config.model.compute == "bfloat16" else 4
            reference += compute * (2 * count.largest_block + count.outside)
    parts = vars(common) | {"logits": read * _text(architecture)["vocab_size"] * _READING}
    return TrainerEstimate(**parts, reference=reference)


def estimate_engine(
    architecture: dict[str, Any], count: memory.Parameters, question: Question, config: RlConfig, merge: int
) -> EngineEstimate:
    """What an engine holds while it answers the longest question; arguments as above."""
    text, vision, each = _text(architecture), architecture["vision_config"], rollout_dtype(config).itemsize
    heads = text["num_attention_heads"]
    together = 1 if "layers_block_type" in text else min(config.rollout.together, config.questions)
    group = config.grpo.group_size * together
    wide, states = text["hidden_size"], 0
    if "layers_block_type" in text:  # a hybrid: few layers have keys, the others a state an answer
        kinds = text["layers_block_type"]
        keys = 2 * text["num_key_value_heads"] * text["head_dim"] * kinds.count("full_attention")
        inner = text["mamba_num_heads"] * text["mamba_head_dim"]
        states = 4 * inner * text["ssm_state_size"] * kinds.count("linear_attention")
    else:
        keys = 2 * wide * text["num_key_value_heads"] // heads * text["num_hidden_layers"]
    region = question.text + config.rollout.max_tokens + FORCED_TOKENS
    prefix = question.shared - question.text
    layer = (8 * wide + 3 * text["intermediate_size"]) * each
    patches = question.visual * merge**2
    seeing = patches * (8 * vision["hidden_size"] + 3 * vision["intermediate_size"]) * each
    # The question is read once, then every answer a token a step. Scores are float32, before and after they
    # are joined, and so are the probabilities of all tokens.
    starting = question.text * (layer + 4 * 4 * heads * question.shared)
    writing = group * (layer + 4 * 4 * heads * (question.shared + config.rollout.max_tokens))
    writing += group * 4 * 6 * text["vocab_size"]
    return EngineEstimate(
        weights=count.total * each,
        # Prefixes of a round are copied beside one another.
        cache=keys * each * (prefix * (1 if together == 1 else 2 * together) + group * region)
        + states * (_MARKS + group),
        activations=max(prefix * layer, seeing, starting, writing),
    )


def check_memory(config: RlConfig, question: Question, nodes: int = 1) -> list[str]:
    """Compare what the run needs with what there is here: a place like that of a trainer process.

    Args:
        config: of the run.
        question: the longest.
        nodes: machines that the processes are spread over.

    Returns:
        Lines to print.

    Raises:
        ConfigError: it does not fit, with what to change; not with ``run.check_memory`` off.
    """
    base, run, rollout = Path(config.model.path).expanduser(), config.run, config.rollout
    architecture, merge = read_json(base / CONFIG), read_model_spec(base).patches.merge
    count = memory.count_parameters(base, fine_tuning(config))
    trainer = estimate_trainer(architecture, count, largest_pass(config, question, merge), config)
    with join(run.for_training()) as here:
        trainers = math.ceil(run.processes / nodes)
        place = dataclasses.replace(here, world=run.processes, per_host=trainers)
        cuda = here.device.type == "cuda"
        engine = estimate_engine(architecture, count, question, config, merge)
        workers = math.ceil(rollout.workers / nodes)
        beside = _engines_beside(config, math.ceil(workers / trainers), cuda=cuda)
        trainer = dataclasses.replace(trainer, engines=beside * engine.total)
        lines = [f"memory estimate: {engine}"] if beside else []
        lines.append(_checked(trainer, 4 * count.total, config, place, _advice(trainer, config)))
        if not beside:
            if rollout.gpus:  # GPUs are taken to be alike, and this one is free
                place = dataclasses.replace(here, per_host=1)
            else:
                place = Context(0, 1, workers, torch.device("cpu"))
            lines.append(_checked(engine, 0, config, place, _ENGINE_ADVICE))
    return lines


def _engines_beside(config: RlConfig, each: int, *, cuda: bool) -> int:
    """Engines in the memory of a trainer process; without GPUs, ``each``."""
    run, rollout = config.run, config.rollout
    if run.launcher == "inline":
        return 1
    if not cuda:
        return each
    if run.processes > 1 or not rollout.gpus:
        return 0
    return min(rollout.workers, int((1.0 - run.gpus) / rollout.gpus + 1e-6))


def fine_tuning(config: RlConfig) -> sft.SftConfig:
    """The part of the settings that fine-tuning has too."""
    model = config.model
    return sft.SftConfig(
        model=sft.ModelConfig(
            path=model.path,
            compute=model.compute,
            train_vision=model.train_vision,
            checkpointing=model.checkpointing,
        ),
        data=sft.DataConfig(sources=config.data.sources, max_tokens=config.data.max_tokens),
        run=config.run.for_training(),
        optimizer=config.optimizer,
    )


def _checked(
    estimated: TrainerEstimate | EngineEstimate,
    host: int,
    config: RlConfig,
    place: Context,
    advice: Sequence[str],
) -> str:
    """Fine-tuning's line; what to change differs."""
    found = memory.fit(estimated, host, place)
    if config.run.check_memory and not (found.device and found.host):
        loading = f" (and {_mib(host)} of the host's memory while a process loads)" if host else ""
        raise ConfigError(
            f"{found.line}{loading}. To fit: {', or '.join(advice)}, or run.check_memory: false to try anyway"
        )
    return found.line


_ENGINE_ADVICE = (
    "lower rollout.max_tokens, rollout.together or grpo.group_size",
    "give each worker more of a GPU (rollout.gpus)",
    "start fewer workers (rollout.workers)",
)


def _advice(estimated: TrainerEstimate, config: RlConfig) -> list[str]:
    advice = []
    if estimated.activations + estimated.logits > estimated.total // 4:
        if not config.model.checkpointing:
            advice.append("set model.checkpointing: true")
        advice.append(f"lower data.max_tokens (now {config.data.max_tokens}) or rollout.max_tokens")
    if estimated.reference:
        advice.append("do without a reference (grpo.kl_coefficient: 0)")
    if config.model.train_vision:
        advice.append("freeze the vision tower (model.train_vision: false)")
    if estimated.engines:
        advice.append("leave the rollout workers less (rollout.workers, rollout.max_tokens, grpo.group_size)")
    advice.append(
        f"share the model among more GPUs (launcher ray, run.processes, now {config.run.processes})"
    )
    return advice


def _text(architecture: dict[str, Any]) -> dict[str, Any]:
    return architecture.get("text_config") or architecture


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"
