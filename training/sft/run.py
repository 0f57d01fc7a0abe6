# SPDX-License-Identifier: Apache-2.0
"""A run from its configuration to the finished model: what every worker does, whoever started it."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from cosmos_reason_node.models import parts
from cosmos_reason_node.models.load import load
from cosmos_reason_node.models.qwen2_5_vl import DTYPES, LoadedModel
from cosmos_reason_node.models.spec import CONFIG, TOKENIZER, ModelSpec, read_json, read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from training.data.problems import DataError, Problem
from training.data.readers import find_layout

from . import memory
from .batches import Damage, RowList, RowLoader, RowSource
from .config import ConfigError, SftConfig
from .data import Rejections, RowSampler, Source, adapt_spec, load_sources, spread
from .export import export
from .lock import only_run
from .loop import Job, train
from .lora import add_adapters
from .parallel import Context, gather_model, join, shard
from .rows import AnswerLoss

_SHOWN = 5
_REJECTED = "rejected.jsonl"


def run(config: SftConfig) -> None:
    """Train and write the model; what is there already is gone on with.

    Raises:
        ConfigError, DataError, TrainingError, StoreError, Interrupted, CosmosReasonError: with what to do.
    """
    with join(config.run) as context, _held(config, context):
        if config.optimizer.batch % context.world:
            raise ConfigError(
                f"optimizer.batch: {config.optimizer.batch} rows cannot be shared by {context.world} "
                "processes; take a multiple"
            )
        base = Path(config.model.path).expanduser()
        directory = Path(config.run.output).expanduser()
        try:
            spec = adapt_spec(read_model_spec(base), config.data)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        tokenizer = TextTokenizer(base / TOKENIZER)
        sources, validation = _read_data(config, tokenizer, spec, directory, context)
        _check_memory(config, base, spec, sources, context)
        model, objective = _prepare(config, base, spec, context)
        job = _job(config, directory, model, objective, sources, validation, context)
        train(job, context)
        state = gather_model(objective, trained_only=False)
        if context.rank == 0:
            network = {name.removeprefix("network."): tensor for name, tensor in state.items()}
            target = directory / "model"
            export(network, base, spec, target, lora=config.model.lora)
            print(f"wrote {target}", flush=True)


def check_paths(config: SftConfig) -> None:
    """Look whether there are a checkpoint and data sets where the configuration says so.

    Raises:
        CosmosReasonError: there is no checkpoint.
        DataError: with all folders that are not there or hold nothing known.
    """
    read_model_spec(Path(config.model.path).expanduser())
    problems = []
    for name in ("sources", "validation"):
        for number, source in enumerate(getattr(config.data, name)):
            try:
                find_layout(Path(source.path).expanduser())
            except DataError as error:
                field = f"data.{name}[{number}].path"
                problems += [Problem(source.path, 0, field, p.message) for p in error.problems]
    if problems:
        raise DataError(problems)


def _read_data(
    config: SftConfig, tokenizer: TextTokenizer, spec: ModelSpec, directory: Path, context: Context
) -> tuple[list[Source], list[Source]]:
    rejections = Rejections()
    configs = (*config.data.sources, *config.data.validation)
    loaded = load_sources(configs, config.data, tokenizer, spec, config.run.seed, rejections)
    if context.rank == 0:
        for source in loaded:
            print(f"{source.name}: {source.samples} samples in {len(source.rows)} rows", flush=True)
        rejections.write(directory / _REJECTED)
        if rejections.problems:
            print(f"{len(rejections.problems)} rejected, see {directory / _REJECTED}:", flush=True)
            for problem in rejections.problems[:_SHOWN]:
                print(f"  {problem}", flush=True)
    return loaded[: len(config.data.sources)], loaded[len(config.data.sources) :]


def _check_memory(
    config: SftConfig, base: Path, spec: ModelSpec, sources: list[Source], context: Context
) -> None:
    rows = [row for source in sources for row in source.rows]
    batch = config.optimizer.batch // context.world
    size = memory.largest_pass(rows, config.data.max_tokens, batch, spec.patches.merge)
    if spec.hybrid:  # each branch is read behind a prefix of its own
        size = dataclasses.replace(size, tokens=size.tokens * config.data.branches)
    count = memory.count_parameters(base, config)
    estimated = memory.estimate(read_json(base / CONFIG), count, size, config, context.world)
    held = 2 if config.model.weights == "bfloat16" else 4
    line = memory.check(estimated, count.total * held, config, context)
    if context.rank == 0:
        print(
            f"{count.trained / 1e6:.1f} of {count.total / 1e6:.1f} million parameters are trained", flush=True
        )
        print(line, flush=True)


def _prepare(
    config: SftConfig, base: Path, spec: ModelSpec, context: Context
) -> tuple[LoadedModel, AnswerLoss]:
    """The network, ready to train: adapters, checkpointing, device or shards."""
    settings = config.model
    model = load(base, device="cpu", dtype=settings.weights)
    model = dataclasses.replace(model, spec=spec)
    network = model.network
    if settings.lora:
        add_adapters(network, settings.lora, config.run.seed)
    if not settings.train_vision:
        for part in parts.tower(network):
            part.requires_grad_(False)
    if settings.checkpointing:
        enable = getattr(network, "activation_checkpointing_enable", None)  # the new name in transformers 5
        (enable or network.gradient_checkpointing_enable)({"use_reentrant": False})
    frozen = not any(p.requires_grad for part in parts.tower(network) for p in part.parameters())
    compute = DTYPES[settings.compute]
    objective = AnswerLoss(model, compute, frozen_vision=frozen)
    if context.world > 1:
        shard(objective, parts.blocks(network), context, compute)
        objective.everywhere = True
    objective.to(context.device)
    return model, objective


def _job(
    config: SftConfig,
    directory: Path,
    model: LoadedModel,
    objective: AnswerLoss,
    sources: list[Source],
    validation: list[Source],
    context: Context,
) -> Job:
    data, run = config.data, config.run
    damage = None if data.strict else Damage(directory / _REJECTED)
    loader = RowLoader(model.tokenizer, model.spec, augment=data.augment, seed=run.seed, damage=damage)
    sampler = RowSampler(sources, config.optimizer.batch, run.seed)
    rows = spread(validation, data.validation_rows)
    if rows and len(rows) < context.world:
        raise ConfigError(
            f"data.validation: {len(rows)} rows are fewer than the {context.world} processes; give more"
        )
    plain = RowLoader(model.tokenizer, model.spec, augment=False, seed=run.seed, damage=damage)
    return Job(
        objective=objective,
        source=RowSource(sampler, loader, data.max_tokens, config.optimizer.steps, data.workers),
        optimizer=config.optimizer,
        directory=directory,
        validation=RowList(rows, plain, data.max_tokens) if rows else None,
        save_every=run.save_every,
        validate_every=run.validate_every,
        log_every=run.log_every,
        keep=run.keep,
        seed=run.seed,
        facts=_facts(config, model.digest),
    )


_DATA_FACTS = ("max_tokens", "branches", "verdict_weight", "augment", "frames", "fps", "max_pixels")


def _facts(config: SftConfig, digest: str) -> dict[str, Any]:
    """What a resumed run must have in common with the one that it goes on with."""
    return {
        "model.path digest": digest,
        "model.lora": dataclasses.asdict(config.model.lora) if config.model.lora else None,
        "model.train_vision": config.model.train_vision,
        "model.compute": config.model.compute,
        "data.sources": [dataclasses.asdict(source) for source in config.data.sources],
        **{f"data.{name}": getattr(config.data, name) for name in _DATA_FACTS},
        "optimizer": dataclasses.asdict(config.optimizer),
        "run.seed": config.run.seed,
    }


def _held(config: SftConfig, context: Context) -> AbstractContextManager[None]:
    if context.rank:
        return nullcontext()
    # Ray may start a worker while the one that it stands in for is still dying.
    return only_run(Path(config.run.output).expanduser(), 30.0 if config.run.launcher == "ray" else 0.0)
