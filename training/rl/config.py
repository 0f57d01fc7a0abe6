# SPDX-License-Identifier: Apache-2.0
"""Settings of reinforcement learning. Defaults are the recipe of the Cosmos-Reason1 paper (arXiv 2503.15558).

An *iteration* takes ``optimizer.batch * grpo.minibatches`` questions, answers each ``grpo.group_size`` times
and makes ``grpo.minibatches`` optimizer steps; the weights after iteration *n* are *version* *n*.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.settings import ConfigError, make_settings, read_yaml, setting
from training.sft import config as sft

# Field values of GrpoConfig that a preset stands for; what a file says beside it wins.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "kl_coefficient": 0.005,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "loss_aggregation": "sequence",
        "normalize_advantages": True,
        "dynamic_sampling": False,
        "importance_cap": 0.0,
    },
    "modern": {
        "kl_coefficient": 0.0,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "loss_aggregation": "token",
        "normalize_advantages": False,
        "dynamic_sampling": True,
        "importance_cap": 2.0,
        "minibatches": 2,
    },
}

# The paper's: 500 steps on 128 questions.
RECIPE = sft.OptimizerConfig(steps=500, batch=128, peak_rate=4e-6, final_rate=4e-6)


@dataclass(frozen=True)
class GrpoConfig:
    """The algorithm: group relative policy optimisation and its variants.

    Attributes:
        preset: values of the other settings: "paper" (GRPO as in the paper) or "modern" (token-level loss,
            clip-higher, dynamic sampling, no KL term, truncated importance sampling).
        group_size: answers a question.
        kl_coefficient: weight of the reverse KL divergence to the starting weights; 0 = no reference model.
        clip_low, clip_high: the probability ratio is clipped to [1 - clip_low, 1 + clip_high].
        loss_aggregation: "sequence" (mean over each answer's tokens, then over answers), "token" (mean over
            all tokens), or "constant" (sum over tokens by ``max_tokens``: length changes nothing).
        normalize_advantages: divide by the group's standard deviation.
        dynamic_sampling: ask another question where all answers of a group have the same reward.
        max_attempts: questions drawn for one place of a batch: after failures, and by dynamic sampling.
        importance_cap: truncated importance sampling: the ratio of the trainer's probabilities to those that
            a token was sampled with, at most this. 0: none; the clipped ratio is then taken against the
            sampled probabilities.
        minibatches: optimizer steps of an iteration, each on its own questions.
        format_reward: reward of an answer in the asked format, right or wrong.
        thought_words: least words of the reasoning, which has to end as a sentence does, for that reward. A
            model that answers better at once learns to think one word, which the tags alone allow. 0: any.
        accuracy_reward: reward of a right answer.
    """

    preset: str = setting("paper", choices=tuple(PRESETS))
    group_size: int = setting(9, low=2, high=1024)
    kl_coefficient: float = setting(0.005, low=0, high=10)
    clip_low: float = setting(0.2, low=0, high=1)
    clip_high: float = setting(0.2, low=0, high=10)
    loss_aggregation: str = setting("sequence", choices=("sequence", "token", "constant"))
    normalize_advantages: bool = True
    dynamic_sampling: bool = False
    max_attempts: int = setting(4, low=1, high=64)
    importance_cap: float = setting(0.0, low=0, high=1000)
    minibatches: int = setting(1, low=1, high=64)
    format_reward: float = setting(0.5, low=0, high=100)
    thought_words: int = setting(0, low=0, high=1000)
    accuracy_reward: float = setting(1.0, low=0, high=100)


@dataclass(frozen=True)
class DataConfig:
    """What is asked.

    Attributes:
        sources: data sets; each is drawn from with equal probability unless weights say otherwise.
        shuffle_options: show a question's options in another order each time it is drawn.
        none_share: share of multiple-choice questions that get "none of the options" as their last option; in
            half of them in place of the right one, so that rejecting all others is right. Questions that
            have that option already are left as they are.
        at_once_share: share of questions that are answered without reasoning: the empty thought is given, the
            answer is sampled. For models that are asked in both ways; the paper's always reasons.
        max_tokens: bound on rows x longest row of one forward pass of the trainer; a row is a question with
            its group of answers.
        strict: an unusable row of a data set ends the run; otherwise it is left out and counted.
    """

    sources: tuple[sft.SourceConfig, ...]
    shuffle_options: bool = True
    none_share: float = setting(0.0, low=0, high=1)
    at_once_share: float = setting(0.0, low=0, high=1)
    max_tokens: int = setting(16384, low=64, high=1 << 20)
    strict: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: is empty; name at least one data set")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        path: checkpoint to start from, after supervised fine-tuning; the reference of the KL term too.
        compute: type of matrix products: "bfloat16" or "float32". Weights are held in float32.
        train_vision: train the vision tower; False freezes it.
        checkpointing: recompute activations in the backward pass instead of keeping them.
    """

    path: str
    compute: str = setting("bfloat16", choices=("bfloat16", "float32"))
    train_vision: bool = True
    checkpointing: bool = True


@dataclass(frozen=True)
class RolloutConfig:
    """How answers are sampled. Always at temperature 1 and top_p 1: the policy that is trained.

    Attributes:
        workers: processes with an engine each, anywhere in the cluster. Of launcher ray.
        gpus: of a worker; may be a fraction.
        dtype: of the engine's weights: "auto" is float32 on a CPU, bfloat16 on CUDA.
        max_tokens: bound on an answer, reasoning included; answers that are asked for at once end after 48.
        together: questions of a batch whose groups a worker writes in step: small models are mostly waiting
            for operations to start, and more answers cost them little. Hybrid models write one after the
            other all the same. Runs that were interrupted and had questions that failed may differ in the
            last bits.
        max_staleness: a batch is trained on answers of weights at most so many versions old. 0: synchronous.
        deadline_s: longest time for the answers of a round; then its questions have failed and others are
            asked. A worker that says nothing for twice as long, at least 30 s, hangs: it is ended, and
            another one gets its questions.
        reward_workers: processes that judge answers.
    """

    workers: int = setting(1, low=1, high=65536)
    gpus: float = setting(0.0, low=0, high=64)
    dtype: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    max_tokens: int = setting(6144, low=2, high=8192)
    together: int = setting(1, low=1, high=256)
    max_staleness: int = setting(1, low=0, high=4)
    deadline_s: float = setting(600.0, low=0.1, high=86400)
    reward_workers: int = setting(1, low=1, high=1024)

    @property
    def silence_s(self) -> float:
        """How long a worker may say nothing; it loads weights meanwhile too."""
        return max(30.0, 2.0 * self.deadline_s)


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs.

    Attributes:
        output: directory: checkpoints/, weights/, rollouts/, log.jsonl, rl.html, events for TensorBoard, and
            in the end model/. With several nodes on a file system that all of them share.
        launcher: "inline" (one process, everything in turn) or "ray" (processes of their own for rollouts,
            rewards and training; any of them may die and is replaced).
        processes: of the trainer, one a GPU (FSDP2). Of launcher ray.
        gpus: of a trainer that is one process; a fraction leaves room for rollout workers on the same card.
        restarts: of the trainer's processes after failures.
        device: "auto" (CUDA if there is one; in a cluster of Ray's, if any of its nodes has one), "cpu" or
            "cuda".
        save_every: iterations between checkpoints; one is written at the end too.
        keep: newest checkpoints that are kept; with grpo.minibatches at least two.
        log_every: iterations between progress lines; every one goes to the log.
        seed: of questions, option orders and sampling.
        timeout_s: longest wait of one process for another; of the trainer, until something is judged. On Ray
            more than twice ``rollout.deadline_s``, or the run would end before a worker that hangs is missed.
        check_memory: refuse to start when the memory estimate is above what there is.
        threads: of torch on a CPU, for each process; 0 = torch's choice.
    """

    output: str
    launcher: str = setting("inline", choices=("inline", "ray"))
    processes: int = setting(1, low=1, high=65536)
    gpus: float = setting(1.0, low=0.01, high=1)
    restarts: int = setting(10, low=0, high=1000)
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    save_every: int = setting(10, low=1)
    keep: int = setting(2, low=1, high=1000)
    log_every: int = setting(1, low=1)
    seed: int = setting(0, low=0)
    timeout_s: float = setting(1800.0, low=1, high=86400)
    check_memory: bool = True
    threads: int = setting(0, low=0, high=1024)

    def for_training(self) -> sft.RunConfig:
        """The part that a training process is started with."""
        return sft.RunConfig(
            output=self.output,
            device=self.device,
            timeout_s=max(10.0, self.timeout_s),
            check_memory=self.check_memory,
            threads=self.threads,
            restarts=self.restarts,
            processes=self.processes,
            launcher="ray" if self.launcher == "ray" else "inline",
        )


@dataclass(frozen=True)
class RlConfig:
    """A run of reinforcement learning."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    grpo: GrpoConfig = GrpoConfig()
    rollout: RolloutConfig = RolloutConfig()
    optimizer: sft.OptimizerConfig = RECIPE

    def __post_init__(self) -> None:
        if self.run.launcher == "inline" and (self.run.processes > 1 or self.rollout.max_staleness):
            raise ValueError(
                "run.launcher: inline is one process and synchronous; take ray, or run.processes 1 and "
                "rollout.max_staleness 0"
            )
        if self.optimizer.batch % self.run.processes:
            raise ValueError(
                f"optimizer.batch: {self.optimizer.batch} questions cannot be shared by run.processes = "
                f"{self.run.processes}; take a multiple"
            )
        if self.optimizer.steps % self.grpo.minibatches:
            raise ValueError(
                f"optimizer.steps: {self.optimizer.steps} is no multiple of grpo.minibatches = "
                f"{self.grpo.minibatches}"
            )

        if self.run.launcher == "ray" and self.run.timeout_s <= self.rollout.silence_s:
            raise ValueError(
                f"run.timeout_s: {self.run.timeout_s:g} s end the run before a worker that hangs is missed "
                f"({self.rollout.silence_s:g} s); raise it, or lower rollout.deadline_s"
            )

    @property
    def questions(self) -> int:
        """Questions of an iteration."""
        return self.optimizer.batch * self.grpo.minibatches

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return self.optimizer.steps // self.grpo.minibatches


def load_config(path: Path) -> RlConfig:
    """Read and check a configuration; ConfigError says what to change."""
    value = read_yaml(path)
    try:
        return make_config(value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def make_config(value: Any) -> RlConfig:
    """A configuration from a mapping; the preset's values are put under those of ``grpo``."""
    if isinstance(value, dict) and isinstance(value.get("grpo", {}), dict):
        grpo = value.get("grpo", {})
        preset = str(grpo.get("preset", "paper"))  # a wrong one is refused below
        value = {**value, "grpo": {**PRESETS.get(preset, {}), **grpo}}
        recipe = dataclasses.asdict(RECIPE)
        if isinstance(value.get("optimizer", {}), dict):
            value["optimizer"] = {**recipe, **value.get("optimizer", {})}
    return make_settings(RlConfig, value)
