# SPDX-License-Identifier: Apache-2.0
"""Captions that lie beside the videos, for runs without a vision model."""

from __future__ import annotations

import json
from pathlib import Path

from .config import Caption
from .message import whole_characters
from .outcome import Rejected


def read_caption(video: Path, settings: Caption) -> str:
    """The caption in the file with the video's name and the suffix ``settings.sidecar``.

    Raises:
        Rejected: "no_sidecar" or "bad_sidecar".
    """
    path = video.with_suffix(settings.sidecar)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Rejected("no_sidecar", f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Rejected("bad_sidecar", f"{path} is not UTF-8 text") from error
    if path.suffix.lower() == ".json":
        try:
            text = json.loads(text)[settings.field]
        except (ValueError, KeyError, TypeError) as error:
            raise Rejected("bad_sidecar", f"{path} is no JSON object with {settings.field!r}") from error
        if not isinstance(text, str):
            raise Rejected("bad_sidecar", f"{path}: {settings.field!r} is no text")
        text = whole_characters(text)
    return text.strip()
