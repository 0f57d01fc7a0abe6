# SPDX-License-Identifier: Apache-2.0
"""A model whose network is exported graphs: what the engine on torch asks of a checkpoint and of its decoder.

    embed          rows of the table that lies beside the graphs, read where it is on disk
    read, write    rows -> mask, cosines, sines -> the decoder graph -> new keys and values into their place

The caches are the runtime's: a graph is given the prefix's and the branches' rows where they lie, and gives
back the new rows only, which are copied to their place once. The runtime copies none of the old rows.
(Inside the graph old and new rows are joined before attention; what TensorRT makes of that is its own.)

Axes: B branches, L tokens of each, R = B*L rows of a call, P rows of a prefix, S rows of branches, N layers,
G key/value heads, C channels of a head, D hidden size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CosmosReasonError, ErrorCode
from ..models.spec import TOKENIZER, ModelSpec
from ..models.tokenizer import TextTokenizer
from .graphs import Executor
from .manifest import CACHE_INPUTS, CACHE_OUTPUTS, EMBEDDING, Manifest, cache_name

MASKED = -30000.0  # added to a score that must not count; finite in float16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class GraphModel:
    """Stands in for models.qwen2_5_vl.LoadedModel.

    Args:
        directory: of the export.
        manifest: its manifest.
        spec: its description.
        executor: runs its graphs.
    """

    def __init__(self, directory: Path, manifest: Manifest, spec: ModelSpec, executor: Executor) -> None:
        self.spec = spec
        self.digest = manifest.model_digest
        self.dtype = DTYPES[manifest.dtype]
        self.device = executor.device
        self.tokenizer = TextTokenizer(directory / TOKENIZER)
        with safe_open(directory / EMBEDDING, framework="pt") as file:
            self._table = file.get_tensor("weight")
        self._executor = executor
        sizes = manifest.dimensions
        self._pixels = torch.zeros(1, sizes.patch_rows, sizes.patch_dim, device=self.device)
        self._features = torch.zeros(
            1, sizes.patch_tokens, sizes.hidden, dtype=self.dtype, device=self.device
        )

    def encode(self, patches: Tensor) -> Tensor:
        """One temporal patch, beside other work: (rows, values) float32 to (tokens, D).

        Always in a call of its own, so that its features have the same bits in every window.
        """
        with self._executor.beside():
            self._pixels[0].copy_(patches)
            self._executor.run("vision", {"pixels": self._pixels}, {"features": self._features})
            return self._features[0].clone()

    def embed(self, tokens: Tensor, features: Tensor | None = None) -> Tensor:
        """See LoadedModel.embed."""
        embedded = self._table[tokens.cpu()].to(self.device)
        if features is None:
            return embedded
        places = tokens == self.spec.video_token
        return embedded.masked_scatter(places[..., None], features)


class GraphPrefix:
    """Stands in for models.decoder.Prefix.

    Attributes:
        cache: (N, 2, capacity, G, C).
        length: rows that are filled in; the others are finite, and masked.
    """

    def __init__(self, cache: Tensor) -> None:
        self.cache = cache
        self.length = 0

    @property
    def capacity(self) -> int:
        """Rows it has room for."""
        return self.cache.shape[2]

    @property
    def nbytes(self) -> int:
        """Memory of it."""
        return self.cache.nbytes

    def usable(self, length: int) -> int:
        """See Prefix."""
        return length

    def copy_from(self, other: GraphPrefix, length: int) -> None:
        """Take over the first ``length`` rows of another."""
        self.cache[:, :, :length] = other.cache[:, :, :length]
        self.length = length


class GraphBranches:
    """Stands in for models.decoder.Branches: regions one after another, so that some in a row are one piece.

    Attributes:
        cache: (N, 2, regions * capacity, G, C).
        capacity: rows of a region.
    """

    def __init__(self, cache: Tensor, capacity: int) -> None:
        self.cache = cache
        self.capacity = capacity

    @property
    def regions(self) -> int:
        """Branches it has room for."""
        return self.cache.shape[2] // self.capacity

    def copy_from(self, other: GraphBranches) -> None:
        """Take over the contents of a smaller one."""
        mine, theirs = (own.cache.unflatten(2, (-1, own.capacity)) for own in (self, other))
        mine[:, :, : other.regions, : other.capacity] = theirs

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a branch of ``length`` rows into another region."""
        regions = self.cache.unflatten(2, (-1, self.capacity))
        regions[:, :, target, :length] = regions[:, :, source, :length]

    def wipe(self, region: int) -> None:
        """Fill a region with zeros, whatever it holds."""
        self.cache[:, :, region * self.capacity : (region + 1) * self.capacity] = 0


class GraphDecoder:
    """Stands in for models.decoder.Decoder.

    Args:
        manifest: of the export.
        executor: runs its graphs.
    """

    can_draft = True

    def __init__(self, manifest: Manifest, executor: Executor) -> None:
        self._sizes = sizes = manifest.dimensions
        self._executor = executor
        self._dtype, self._device = DTYPES[manifest.dtype], executor.device
        pairs = torch.arange(0, sizes.channels, 2, dtype=torch.float32)
        self._frequencies = (sizes.theta ** -(pairs / sizes.channels)).to(self._device)
        rows = [row % 3 for row, size in enumerate(sizes.sections) for _ in range(size)]
        self._row_of_channel = torch.tensor(rows, device=self._device)
        # Owned once: a graph that was captured with them can be replayed.
        most = sizes.max_rows
        self._embeds = self._empty(most, sizes.hidden)
        self._cosines, self._sines = (torch.zeros(most, sizes.channels, device=self._device) for _ in "cs")
        self._mask = self._empty(most * (sizes.max_prefix + sizes.max_own + most))
        self._hidden = self._empty(most, sizes.hidden)
        self._new = self._empty(sizes.layers, 2, most, sizes.key_heads, sizes.channels)
        self._logits = torch.zeros(most, sizes.vocabulary, device=self._device)
        self._no_branch = self.new_branches(1, 1)

    def new_prefix(self, capacity: int) -> GraphPrefix:
        """An empty prefix.

        Raises:
            CosmosReasonError: QUESTION_TOO_LONG, over what the graphs were exported for.
        """
        more = "export again with a larger --max-tokens"
        return GraphPrefix(self._cache(self._room(capacity, self._sizes.max_prefix, "a prompt", more)))

    def new_branches(self, regions: int, capacity: int) -> GraphBranches:
        """Empty regions; see ``new_prefix``."""
        less = "ask for fewer think_tokens"
        room = self._room(capacity, self._sizes.max_own, "a question with its answer", less)
        return GraphBranches(self._cache(regions * room), room)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, D) hidden states to (B, V) logits."""
        count = len(hidden)
        logits = []
        for begin in range(0, count, self._sizes.max_rows):
            part = hidden[begin : begin + self._sizes.max_rows]
            rows = _bucket(len(part), self._sizes.max_rows)
            self._embeds[: len(part)] = part
            self._executor.run("head", {"hidden": self._embeds[:rows]}, {"logits": self._logits[:rows]})
            logits.append(self._logits[: len(part)].clone())
        return torch.cat(logits)

    def read(self, embedded: Tensor, positions: Tensor, prefix: GraphPrefix) -> None:
        """Append rows to a prefix: (L, D) at (3, L) M-RoPE positions, a chunk at a time."""
        for begin in range(0, len(embedded), self._sizes.max_rows):
            part = embedded[begin : begin + self._sizes.max_rows]
            rows, past = len(part), prefix.length
            at = positions[:, begin : begin + rows].T[:, self._row_of_channel]
            seen = torch.ones(rows, rows, dtype=torch.bool, device=self._device).tril()
            hidden = seen.new_zeros(rows, self._no_branch.capacity)
            self._run(part, at, prefix, self._no_branch.cache, hidden, seen)
            prefix.cache[:, :, past : past + rows] = self._new[:, :, :rows]
            prefix.length += rows

    def write(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        ends: Tensor,
        prefix: GraphPrefix,
        branches: GraphBranches,
        first: int = 0,
        *,
        prefix_room: int = 0,
        room: int = 0,
        every: bool = False,
    ) -> Tensor:
        """Take tokens of branches through the network, into their regions; see Decoder.write.

        As many branches as the graph has room for go together. ``prefix_room`` and ``room`` have no meaning
        here: a call sees whole regions, and masks what is not filled.
        """
        branch_count, length, width = embedded.shape
        together = max(1, min(self._sizes.max_own // branches.capacity, self._sizes.max_rows // length))
        hidden = embedded.new_empty(branch_count, length, width)
        for begin in range(0, branch_count, together):
            own = slice(begin, min(branch_count, begin + together))
            for at in range(0, length, self._sizes.max_rows):  # a question longer than the graph's rows
                part = slice(at, min(length, at + self._sizes.max_rows))
                hidden[own, part] = self._write(
                    embedded[own, part], starts[own] + at, lengths[own] + at, prefix, branches, first + begin
                )
        return hidden if every else hidden[torch.arange(branch_count, device=self._device), ends]

    def _write(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        prefix: GraphPrefix,
        branches: GraphBranches,
        first: int,
    ) -> Tensor:
        count, length, width = embedded.shape
        rows, capacity = count * length, branches.capacity
        steps = torch.arange(length, device=self._device)
        places = lengths[:, None] + steps  # (B, L)
        at = (starts[:, None] + steps).reshape(rows, 1).expand(-1, len(self._row_of_channel))
        branch = torch.arange(count, device=self._device).repeat_interleave(length)  # (R,)
        step = steps.repeat(count)
        column = torch.arange(count * capacity, device=self._device)
        old = (column // capacity == branch[:, None]) & (column % capacity < lengths[branch][:, None])
        new = (branch == branch[:, None]) & (step <= step[:, None])
        own = branches.cache[:, :, first * capacity : (first + count) * capacity]
        self._run(embedded.reshape(rows, width), at, prefix, own, old, new)
        # A row that pads a short chunk may lie behind its region: it has no place, and nobody sees it.
        fits = (places < capacity).flatten()
        target = ((first + torch.arange(count, device=self._device))[:, None] * capacity + places).flatten()
        branches.cache[:, :, target[fits]] = self._new[:, :, :rows][:, :, fits]
        return self._hidden[:rows].reshape(count, length, width)

    def _run(
        self, embedded: Tensor, at: Tensor, prefix: GraphPrefix, own: Tensor, old: Tensor, new: Tensor
    ) -> None:
        """One call of the graph: results in the first rows of ``_hidden`` and ``_new``.

        Args:
            embedded: (R, D).
            at: (R, C/2) position of each row for each pair of channels.
            prefix: seen as far as it is filled in.
            own: (N, 2, S, G, C).
            old: (R, S) bool, which of ``own`` a row sees.
            new: (R, R) bool, which of the new rows a row sees.
        """
        count = len(embedded)
        rows = _bucket(count, self._sizes.max_rows)
        angles = at * self._frequencies
        self._embeds[:count] = embedded
        self._embeds[count:rows] = 0  # what a call before left there may not be finite
        self._cosines[:count] = angles.cos().repeat(1, 2)
        self._sines[:count] = angles.sin().repeat(1, 2)
        held, own_rows = prefix.capacity, own.shape[2]
        # Rows that fill the bucket up see one another: a softmax over nothing would be NaN.
        mask = self._mask[: rows * (held + own_rows + rows)].view(rows, -1)
        mask.fill_(MASKED)
        mask[:count, : prefix.length] = 0
        mask[:count, held : held + own_rows].masked_fill_(old, 0)
        mask[:count, held + own_rows : held + own_rows + count].masked_fill_(new, 0)
        mask[count:, held + own_rows + count :] = 0
        inputs = {
            "embeds": self._embeds[:rows],
            "cos": self._cosines[:rows],
            "sin": self._sines[:rows],
            "mask": mask,
        }
        outputs = {"hidden": self._hidden[:rows]}
        for layer in range(self._sizes.layers):
            old_rows = (*prefix.cache[layer], *own[layer])
            for name, tensor in zip(CACHE_INPUTS, old_rows, strict=True):
                inputs[cache_name(name, layer)] = tensor
            for name, tensor in zip(CACHE_OUTPUTS, self._new[layer, :, :rows], strict=True):
                outputs[cache_name(name, layer)] = tensor
        self._executor.run("decoder", inputs, outputs)

    def _room(self, wanted: int, most: int, what: str, advice: str) -> int:
        step = self._sizes.cache_step
        room = -(-max(1, wanted) // step) * step
        if room > most:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"{what} needs {wanted} tokens, the graphs were exported for {most}: {advice}",
            )
        return room

    def _cache(self, rows: int) -> Tensor:
        sizes = self._sizes
        return self._empty(sizes.layers, 2, rows, sizes.key_heads, sizes.channels)

    def _empty(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self._dtype, device=self._device)


def _bucket(rows: int, most: int) -> int:
    """The next power of two: few shapes are captured few times."""
    return min(most, 1 << (rows - 1).bit_length())
