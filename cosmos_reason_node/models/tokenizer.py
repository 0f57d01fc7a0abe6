# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a checkpoint, from its tokenizer.json alone: no remote code, no version drift."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders

from ..errors import CosmosReasonError, ErrorCode

_CONTROL = re.compile(r"<\|[^|<>]*\|>")


class TextTokenizer:
    """Text to ids and back. Satisfies ``prompt.Tokenizer``.

    Args:
        path: a tokenizer.json.

    Raises:
        CosmosReasonError: MODEL_INVALID when the file is missing or cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CosmosReasonError(
                ErrorCode.MODEL_INVALID, f"cannot read the tokenizer {path}: {error}; copy the file anew"
            ) from error
        self._fast.no_padding()
        self._fast.no_truncation()

    def __len__(self) -> int:
        """Number of ids, added tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; control tokens written out in it become their single ids."""
        return self._fast.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, control tokens included; bytes that are not whole characters become U+FFFD."""
        return self._fast.decode(list(ids), skip_special_tokens=False)

    def id_of(self, token: str) -> int | None:
        """Id of one token's exact text, or None."""
        return self._fast.token_to_id(token)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids that never occur in free text: special tokens, and everything of the form <|...|>."""
        added = self._fast.get_added_tokens_decoder()
        return frozenset(
            i for i, token in added.items() if token.special or _CONTROL.fullmatch(token.content)
        )

    def plain_text(self, token: int) -> str | None:
        """Text of an id that is the same wherever it stands; None where that depends on its neighbours."""
        if not self._joins_plainly:
            return None
        text = self.texts[token]
        return None if "\ufffd" in text else text

    @cached_property
    def _joins_plainly(self) -> bool:
        """Whether the text of ids is that of each on its own, where those are whole characters."""
        return isinstance(self._fast.decoder, decoders.ByteLevel)

    @cached_property
    def texts(self) -> list[str]:
        """Text of every id on its own, by id."""
        return self._fast.decode_batch([[i] for i in range(len(self))], skip_special_tokens=False)
