# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5-VL checkpoints (nano, Cosmos-Reason1-7B) on transformers' classes, for the engine and for training.

``load`` gives a ``LoadedModel``; its few functions are the only way in which this project runs the network,
so a training step and the engine compute the same thing: patches -> ``visual_features`` -> ``embed`` ->
``decode``.

Axes: B batch, L tokens, D hidden size, N visual tokens, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CosmosReasonError, ErrorCode
from .checkpoint import check_files, digest
from .decoder import Decoder
from .spec import TOKENIZER, ModelSpec, invalid, read_model_spec
from .tokenizer import TextTokenizer
from .vision_attention import SegmentAttention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LoadedModel:
    """A checkpoint in memory.

    Attributes:
        network: transformers' Qwen2_5_VLForConditionalGeneration.
        tokenizer: its tokenizer.
        spec: what the directory says about it.
        digest: sha256 (hex) of its files; empty for a model that was not loaded from files.
    """

    network: Any
    tokenizer: TextTokenizer
    spec: ModelSpec
    digest: str = ""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self.network.lm_head.weight.dtype

    def visual_features(self, patches: Tensor, grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """Run the vision tower.

        Each temporal patch is computed apart from all others (attention never crosses it), so the features of
        two frames do not depend on the window that they are in.

        Args:
            patches: (sum of t*h*w, patch_dim) of one or more videos.
            grids: their (t, h, w).

        Returns:
            (N, D), the videos' tokens one after another.
        """
        rows = [[1, h, w] for t, h, w in grids for _ in range(t)]
        pixels = patches.to(device=self.device, dtype=self.dtype)
        grid = torch.tensor(rows, dtype=torch.long, device=self.device)
        return self.network.model.visual(pixels, grid_thw=grid).pooler_output

    def embed(self, tokens: Tensor, features: Tensor | None = None) -> Tensor:
        """Embed tokens, with visual features in the places of <|video_pad|>.

        Args:
            tokens: (B, L) ids.
            features: (N, D), N = number of placeholders in ``tokens``; None when there are none.

        Returns:
            (B, L, D).
        """
        return self.fill(self.network.model.language_model.embed_tokens(tokens), tokens, features)

    def fill(self, embedded: Tensor, tokens: Tensor, features: Tensor | None) -> Tensor:
        """Put visual features into the places of <|video_pad|>; arguments as ``embed`` has them."""
        if features is None:
            return embedded
        places = tokens == self.spec.video_token
        if int(places.sum()) != len(features):
            raise ValueError(f"{int(places.sum())} placeholders for {len(features)} visual tokens")
        return embedded.masked_scatter(places[..., None], features.to(embedded.dtype))

    def decode(
        self, embedded: Tensor, positions: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Run the language model.

        Args:
            embedded: (B, L, D).
            positions: (3, B, L) M-RoPE positions.
            cache: a transformers Cache that holds what came before and takes up these tokens, or None.
            attention_mask: (B, past + L), 0 for padding, or (B, 1, L, past + L) bool, true where a row may
                attend; None: causal, without padding.

        Returns:
            (B, L, D) last hidden states; ``logits`` turns (a part of) them into logits.
        """
        return self.network.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., V) logits."""
        return self.network.lm_head(hidden)

    def decoder(self, *, join: bool = False) -> Any:
        """The language model over caches of its own, for the engine; ``join`` as models.decoder has it."""
        return Decoder(self.network, join=join)


class LinearPatchEmbed(nn.Module):
    """The patch embedding as a matrix product.

    Patches do not overlap, so transformers' Conv3d is this product; on CPU the product is several times
    faster. The parameter stays the convolution's own, so saved checkpoints do not change.

    Args:
        conv: holder of the (D, 3, temporal_patch, patch, patch) weight.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.proj = conv

    def forward(self, patches: Tensor) -> Tensor:
        """(N, patch_dim) to (N, D)."""
        weight = self.proj.weight
        return F.linear(patches.to(weight.dtype), weight.flatten(1))


def wrap(network: Any, tokenizer: TextTokenizer, spec: ModelSpec, model_digest: str = "") -> LoadedModel:
    """A LoadedModel around a network made elsewhere (training from scratch, tests)."""
    visual = network.model.visual
    if not isinstance(visual.patch_embed, LinearPatchEmbed):
        visual.patch_embed = LinearPatchEmbed(visual.patch_embed.proj)
    for block in visual.blocks:
        if not isinstance(block.attn, SegmentAttention):
            block.attn = SegmentAttention(block.attn)
    return LoadedModel(network, tokenizer, spec, model_digest)


def load(model_dir: str | Path, device: str = "auto", dtype: str = "auto") -> LoadedModel:
    """Load a checkpoint directory: local files, safetensors, no code from the directory.

    Args:
        model_dir: directory in Hugging Face layout.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:N".
        dtype: "auto" (float32 on cpu, bfloat16 on CUDA) or a name in DTYPES.

    Raises:
        CosmosReasonError: MODEL_NOT_FOUND, MODEL_INVALID, OUT_OF_MEMORY or INVALID_REQUEST, with what to do.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    spec = read_model_spec(model_dir).require_qwen()
    return wrap(
        *load_parts(Qwen2_5_VLForConditionalGeneration, Path(model_dir).expanduser(), spec, device, dtype)
    )


def load_parts(
    kind: Any,
    directory: Path,
    spec: ModelSpec,
    device: str,
    dtype: str,
    renamed: Mapping[str, str] | None = None,
) -> tuple[Any, TextTokenizer, ModelSpec, str]:
    """What a LoadedModel is made of, checked.

    Args:
        kind: class of the network.
        directory: the checkpoint's.
        spec: read from it.
        device: as ``load`` has it.
        dtype: as ``load`` has it.
        renamed: tensors that the checkpoint has by other names: regular expression -> name in the network.

    Returns:
        Network, tokenizer, ``spec`` and digest.
    """
    check_files(directory)
    where = choose_device(device)
    of_weights = choose_dtype(dtype, where)
    with _Digest(directory) as model_digest:
        tokenizer = TextTokenizer(directory / TOKENIZER)
        network = _load_network(kind, directory, where, of_weights, renamed)
        _check_tokenizer(directory, tokenizer, spec, network)
        _check_finite(directory, network)
    return network.eval(), tokenizer, spec, model_digest.value


def choose_device(name: str) -> torch.device:
    """The torch device of a setting; INVALID_REQUEST when this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = parse_device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"there is no device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; take cpu",
        )
    return device


def parse_device(name: str) -> torch.device:
    """The torch device of that name; INVALID_REQUEST when it is none."""
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"device must be auto, cpu, cuda or cuda:N, not {name!r}"
        ) from error


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a setting."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"dtype must be auto or one of {', '.join(DTYPES)}, not {name!r}"
        )
    return DTYPES[name]


class _Digest:
    """Computes the digest in a thread while the model loads."""

    def __init__(self, directory: Path) -> None:
        self.value = ""
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(directory,), name="digest", daemon=True)

    def _run(self, directory: Path) -> None:
        try:
            self.value = digest(directory)
        except Exception as error:  # handed to the loading thread
            self._error = error

    def __enter__(self) -> _Digest:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            return
        self._thread.join()
        if self._error is not None:
            raise self._error


def _load_network(
    kind: Any, directory: Path, device: torch.device, dtype: torch.dtype, renamed: Mapping[str, str] | None
) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = kind.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            key_mapping=dict(renamed) if renamed else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below, which is an error too
        )
        network, report = loaded
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a damaged directory makes transformers raise
        raise invalid(directory, f"transformers cannot load it ({type(error).__name__}: {error})") from error
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        found = report.get(what)
        if found:
            names = ", ".join(
                sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in found)[:5]
            )
            fault = {"missing_keys": "missing", "mismatched_keys": "of the wrong shape"}.get(
                what, "unreadable"
            )
            raise invalid(directory, f"{len(found)} tensors are {fault} ({names}, ...)")
    try:
        return network.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise CosmosReasonError(
            ErrorCode.OUT_OF_MEMORY, f"{device} has too little free memory for the model: {error}"
        ) from error


def _check_tokenizer(directory: Path, tokenizer: TextTokenizer, spec: ModelSpec, network: Any) -> None:
    wanted = {"<|video_pad|>": spec.video_token}
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *wanted):
        found = tokenizer.id_of(token)
        if found is None or found != wanted.get(token, found):
            raise invalid(
                directory / TOKENIZER, f"token {token} has id {found}, expected {wanted.get(token, 'one')}"
            )
    rows = network.lm_head.weight.shape[0]
    if len(tokenizer) > rows:
        raise invalid(directory / TOKENIZER, f"it has {len(tokenizer)} tokens, the model only {rows}")


def _check_finite(directory: Path, network: Any) -> None:
    for name, weight in network.named_parameters():
        # One pass without a temporary of the weight's size; an infinity or a NaN survives any sum.
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)):
            raise invalid(directory, f"tensor {name} holds values that are not finite")
