# SPDX-License-Identifier: Apache-2.0
"""Settings of supervised fine-tuning. Defaults are the recipe of the Cosmos-Reason1 paper (arXiv 2503.15558).

A *row* is one window with the questions asked about it, packed behind one copy of its visual tokens; with
``branches: 1`` a row is one sample. ``batch`` counts rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from training.settings import ConfigError, read_settings, setting


@dataclass(frozen=True)
class SourceConfig:
    """A data set.

    Attributes:
        path: its folder.
        weight: its share of the rows drawn, relative to the other sources' weights.
        split: only samples of this split; "" = all.
        kind: only samples of this question kind or category of common sense; "" = all. A folder may be named
            once for each of its kinds, so that each is drawn equally often.
        layout: reader (training.data.readers.READERS); "" = find out.
        limit: at most so many samples; 0 = all.
    """

    path: str
    weight: float = setting(1.0, low=1e-6, high=1e6)
    split: str = "train"
    kind: str = ""
    layout: str = ""
    limit: int = setting(0, low=0)


@dataclass(frozen=True)
class DataConfig:
    """What is trained on.

    Attributes:
        sources: data sets that rows are drawn from.
        validation: data sets whose loss is measured every ``run.validate_every`` steps.
        validation_rows: most rows for that.
        max_tokens: bound on rows x longest row of one forward pass on one device. Longer samples are rejected
            and listed, never cut.
        branches: most questions of a row.
        verdict_weight: loss weight of the answer itself, spread over its tokens, against that of a token of
            reasoning or format (1: the paper).
        frames: of a full window; 0 = the checkpoint's.
        fps: of the window's time grid; 0 = the checkpoint's.
        max_pixels: most pixels of a frame; 0 = the checkpoint's. A checkpoint of fixed frame size takes 0.
        augment: change colours and view of each window at random.
        strict: an unusable row of a data set, one whose media are missing or empty too, ends the run before
            it starts; otherwise it is left out, counted and listed. Damage that only decoding shows ends a
            strict run where it is met, and is the loss of the steps since the last checkpoint; otherwise the
            row counts for nothing, unless more than 8 rows and a tenth of those read are damaged.
            ``python -m training.data check`` finds it before.
        workers: threads that decode ahead; 0 = decode in the training thread.
    """

    sources: tuple[SourceConfig, ...]
    validation: tuple[SourceConfig, ...] = ()
    validation_rows: int = setting(256, low=1)
    max_tokens: int = setting(16384, low=64, high=1 << 20)
    branches: int = setting(4, low=1, high=64)
    verdict_weight: float = setting(1.0, low=0.01, high=100)
    frames: int = setting(0, low=0, high=768)
    fps: float = setting(0.0, low=0, high=60)
    max_pixels: int = setting(0, low=0, high=1 << 24)
    augment: bool = False
    strict: bool = True
    workers: int = setting(2, low=0, high=256)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: is empty; name at least one data set")
        if self.frames % 2:
            raise ValueError(f"frames: {self.frames} is odd; frames come in pairs, take {self.frames + 1}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (peft) instead of training all weights; merged into the exported model.

    Attributes:
        rank: of the adapters.
        alpha: they are scaled by alpha / rank.
        dropout: on their input.
        vision: adapt the vision tower too.
    """

    rank: int = setting(16, low=1, high=1024)
    alpha: float = setting(32.0, low=0.01, high=4096)
    dropout: float = setting(0.05, low=0, high=0.9)
    vision: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        path: checkpoint directory to start from.
        weights: type in which parameters (and so gradients and moments) are held: "float32" or "bfloat16".
            Steps of 1e-5 are below bfloat16's resolution: take it only for the frozen weights under ``lora``,
            whose adapters are float32 always.
        compute: type of matrix products: "bfloat16" or "float32".
        train_vision: train the vision tower; False freezes it.
        checkpointing: recompute activations in the backward pass instead of keeping them.
        lora: adapters; None = train all weights.
    """

    path: str
    weights: str = setting("float32", choices=("float32", "bfloat16"))
    compute: str = setting("bfloat16", choices=("bfloat16", "float32"))
    train_vision: bool = True
    checkpointing: bool = True
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.weights == "bfloat16" and self.lora is None:
            raise ValueError(
                "weights: bfloat16 rounds the optimizer's small steps away when all weights are trained; "
                "take float32 (compute stays in bfloat16), or add lora"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a cosine schedule.

    Attributes:
        steps: optimizer steps of the whole run.
        batch: rows of a step, over all devices; accumulated over as many forward passes as
            ``data.max_tokens`` makes necessary.
        peak_rate, final_rate: learning rate after the warm-up and at the end, cosine in between.
        vision_rate: of the vision tower, as a share of that of the rest.
        warm_up: steps of linear warm-up.
        beta1, beta2: of AdamW.
        weight_decay: of matrices; vectors have none.
        clip_norm: gradients are scaled down to at most this norm.
    """

    steps: int = setting(12500, low=1)
    batch: int = setting(256, low=1, high=1 << 20)
    peak_rate: float = setting(1e-5, low=0, high=1)
    final_rate: float = setting(1e-6, low=0, high=1)
    vision_rate: float = setting(1.0, low=0, high=100)
    warm_up: int = setting(0, low=0)
    beta1: float = setting(0.9, low=0, high=0.9999)
    beta2: float = setting(0.95, low=0, high=0.99999)
    weight_decay: float = setting(0.1, low=0, high=10)
    clip_norm: float = setting(1.0, low=1e-6, high=1e6)

    def __post_init__(self) -> None:
        if self.final_rate > self.peak_rate:
            raise ValueError(f"final_rate: {self.final_rate} is above peak_rate {self.peak_rate}; lower it")
        if self.warm_up > self.steps:
            raise ValueError(f"warm_up: {self.warm_up} is more than steps {self.steps}; lower it")

    def rate(self, step: int) -> float:
        """Learning rate of ``step``: linear warm-up, then cosine from the peak to the final rate."""
        if step < self.warm_up:
            return self.peak_rate * (step + 1) / self.warm_up
        done = min(1.0, (step - self.warm_up) / max(1, self.steps - 1 - self.warm_up))
        return self.final_rate + (self.peak_rate - self.final_rate) * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class RunConfig:
    """Where and how it runs.

    Attributes:
        output: directory: checkpoints/, log.jsonl, loss.png, rejected.jsonl, and in the end model/.
        launcher: "inline" (this process), "torchrun", or "ray" (Ray Train, which restarts failed workers
            from the last checkpoint).
        processes: workers of torchrun (on this machine) and ray (in the cluster), one a GPU. Where torchrun
            was called by hand, its numbers hold.
        restarts: of ray's workers after failures.
        device: "auto" (CUDA if there is one; in a cluster of Ray's, if any of its nodes has one), "cpu" or
            "cuda".
        save_every: steps between checkpoints; one is written at the end too.
        keep: newest checkpoints that are kept.
        validate_every: steps between validation losses; 0 = none.
        log_every: steps between progress lines; every step goes to log.jsonl.
        seed: of the order of data, augmentation and dropout.
        timeout_s: longest wait of one process for another.
        check_memory: refuse to start when the memory estimate is above what the device has.
        threads: of torch on a CPU, for each process; 0 = torch's choice.
    """

    output: str
    launcher: str = setting("inline", choices=("inline", "torchrun", "ray"))
    processes: int = setting(1, low=1, high=65536)
    restarts: int = setting(3, low=0, high=1000)
    device: str = setting("auto", choices=("auto", "cpu", "cuda"))
    save_every: int = setting(500, low=1)
    keep: int = setting(2, low=1, high=1000)
    validate_every: int = setting(0, low=0)
    log_every: int = setting(10, low=1)
    seed: int = setting(0, low=0)
    timeout_s: float = setting(1800.0, low=10, high=86400)
    check_memory: bool = True
    threads: int = setting(0, low=0, high=1024)

    def __post_init__(self) -> None:
        if self.launcher == "inline" and self.processes > 1:
            raise ValueError(
                f"processes: {self.processes} need launcher torchrun or ray; inline is one process"
            )


@dataclass(frozen=True)
class SftConfig:
    """A run of supervised fine-tuning."""

    model: ModelConfig
    data: DataConfig
    run: RunConfig
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        if self.optimizer.batch % self.run.processes:
            raise ValueError(
                f"optimizer.batch: {self.optimizer.batch} rows cannot be shared by run.processes = "
                f"{self.run.processes}; take a multiple"
            )
        if self.run.validate_every and not self.data.validation:
            raise ValueError("run.validate_every: there is no data.validation; name a data set or take 0")


def load_config(path: Path) -> SftConfig:
    """Read and check a configuration; ConfigError says what to change."""
    return read_settings(SftConfig, path)


__all__ = [
    "ConfigError",
    "DataConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SftConfig",
    "SourceConfig",
    "load_config",
]
