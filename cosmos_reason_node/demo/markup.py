# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG that cannot be broken by what is put into them: plain text is escaped, always."""

from __future__ import annotations

import html
import json
from typing import Any

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Markup(str):
    """Text that is markup already; every other ``str`` is escaped where it becomes a child."""

    __slots__ = ()


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element with its children.

    Args:
        name: tag name.
        children: Markup is kept, anything else becomes escaped text, None is left out, lists are flattened.
        attributes: a trailing ``_`` is dropped (``class_``) and other ``_`` become ``-``; None and False
            leave the attribute out, True writes it without a value; floats are written with two decimals.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.removesuffix("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(_text(value), quote=True)}"')
    head = f"<{' '.join(parts)}>"
    return Markup(head if name in _VOID else f"{head}{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Children without an element around them."""
    return Markup("".join(_child(child) for child in children))


def json_block(identifier: str, value: Any) -> Markup:
    """Data for a script, as a block that no string in it can close."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=identifier)


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)):
        return join(*child)
    return html.escape(_text(child), quote=False)


def _text(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
