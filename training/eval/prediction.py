# SPDX-License-Identifier: Apache-2.0
"""What a model said, kept as JSON Lines: appended request by request, read again after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """What was asked, of whom and how.

    Attributes:
        item: id of the item.
        digest: of the item as it was asked.
        model: digest of the checkpoint.
        prompt: id of the prompt conventions.
        decoding: Protocol.decoding.
        seed: of sampling; 0 when greedy.
        rotation: Item.rotated.
        video: false: asked without video.
    """

    item: str
    digest: str
    model: str
    prompt: str
    decoding: str
    seed: int
    rotation: int
    video: bool


@dataclass(frozen=True)
class Prediction:
    """An answer.

    Attributes:
        key: what was asked.
        output: the text that the model wrote, tags included.
        confidence: of its answer, 0 to 1; see cosmos_reason_node.types.Answer and engine/free.py.
        output_tokens: length.
        cut: the token budget ended it.
        shares: probability of each choice, where there was one; see Answer.shares.
        error: why there is no output: media that cannot be read, an engine's refusal. Counts as wrong, and is
            asked again by the next run.
    """

    key: Key
    output: str
    confidence: float = 0.0
    output_tokens: int = 0
    cut: bool = False
    error: str = ""
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """A list, as JSON has it, becomes a tuple."""
        object.__setattr__(self, "shares", tuple(self.shares))


class PredictionLog:
    """The file of predictions.

    Args:
        path: made when missing. A line that a kill cut off is removed.

    Raises:
        ValueError: a line in the middle is damaged; the message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_end(path)
        self.found: dict[Key, Prediction] = read_predictions(path)

    def has(self, key: Key) -> bool:
        """Whether this was asked and answered."""
        return key in self.found and not self.found[key].error

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add predictions in one write that is on the disk when this returns.

        Raises:
            OSError: it could not be written, e.g. because the disk is full; the next run goes on from there.
        """
        predictions = list(predictions)
        data = "".join(_line(prediction) for prediction in predictions).encode()
        with open(self.path, "ab", buffering=0) as stream:
            while data:
                data = data[stream.write(data) :]
            os.fsync(stream.fileno())
        self.found |= {prediction.key: prediction for prediction in predictions}


def read_predictions(path: Path) -> dict[Key, Prediction]:
    """All predictions of a file, the last one of each key; none where there is no file.

    Raises:
        ValueError: a line is damaged.
    """
    found: dict[Key, Prediction] = {}
    if not path.exists():
        return found
    names = {field.name for field in fields(Key)}
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            try:
                record = json.loads(line)
                key = Key(**{name: record.pop(name) for name in names})
                found[key] = Prediction(key, **record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, row {number}: is no prediction ({error}); remove the row to have it asked again"
                ) from error
    return found


def _line(prediction: Prediction) -> str:
    record = asdict(prediction)
    return json.dumps({**record.pop("key"), **record}, ensure_ascii=False, separators=(",", ":")) + "\n"


def _drop_torn_end(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        data = stream.read()
        if data and not data.endswith(b"\n"):
            stream.truncate(data.rfind(b"\n") + 1)
