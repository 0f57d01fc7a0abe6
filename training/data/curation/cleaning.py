# SPDX-License-Identifier: Apache-2.0
"""Rules for text that a model wrote: what is rewritten, and what is rejected.

A trace is written from a caption by a model that saw no video, and trains one that does see it. So speaking
of the caption becomes speaking of the video, and talk about the exercise itself goes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from .agreement import words
from .config import Clean
from .outcome import Rejected

RULES = "2"  # version of all rules here and in questions.py; raise it when one changes

_NOUN = (
    r"(?:(?:video|image|scene|given|provided|detailed|text|textual|written|visual|above)['’]?s?\s+)*"
    r"(?:captions?|descriptions?|transcripts?|narration)"
)
_TELLS = (
    r"(?:says?|states?|mentions?|describes?|notes?|indicates?|reports?|specif(?:y|ies)|explains?|tells us)"
)
_TOLD = r"(?:mentioned|described|stated|noted|specified|reported)"
_REWRITES = [
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (rf"\b(?:the|this|that|your)\s+{_NOUN}\b", "the video"),
        (r"\bthe\s+(?:given|provided|above)\s+(?:text|passage|scenario)\b", "the video"),
        (rf"\bthe text\s+(?={_TELLS}\b)", "the video "),
        (rf"\bthe video\s+(?:explicitly\s+|clearly\s+|also\s+)?{_TELLS}\b", "the video shows"),
        (
            rf"\bthe video\s+(?:does\s+not|doesn['’]t|did\s+not|didn['’]t)\s+(?:explicitly\s+)?{_TELLS}\b",
            "the video does not show",
        ),
        (rf"\b(is|are|was|were)(\s+not)?\s+(?:explicitly\s+|clearly\s+)?{_TOLD}\b", r"\1\2 shown"),
        (rf"\bas\s+{_TOLD}\b", "as shown"),
        (r"\bno mention of\b", "no sign of"),
    )
]
_CAPTION = re.compile(
    r"\b(?:captions?|descriptions?|transcripts?|narration"
    r"|(?:given|provided|above)\s+(?:text|passage|scenario|context|information))\b",
    re.IGNORECASE,
)

_OPENER = re.compile(
    r"\A(?:okay|ok|alright|all right|hmm+|well|wait|sure|certainly)\b[,.!:;…\s]*", re.IGNORECASE
)
_PLAN = re.compile(
    r"\A(?:(?:so|first|now|then)[,\s]+)?"
    r"(?:let me|let['’]s|let us|(?:i|we) (?:need|have|want) to|(?:i|we)(?:['’]ll| will| should))"
    r"\s+(?:just |first |now |carefully )*"
    r"(?:see|think|check|double-check|look|figure|work|analy[sz]e|consider|go|start|begin|try|break|determine"
    r"|recall|find|verify|answer|read|re-?read|review)\b"
    r"[^.,;:!?]*[.,;:!?]+\s*",
    re.IGNORECASE,
)
_META = re.compile(
    r"\b(?:the user|as an ai|language model|the prompt|the question (?:is asking|asks|wants|is about)"
    r"|i(?: was| am|['’]m| have been|['’]ve been) (?:given|asked|told|supposed|provided)"
    r"|i (?:cannot|can['’]t|could not|couldn['’]t|do not|don['’]t) (?:actually )?"
    r"(?:see|watch|view|(?:have )?access)"
    r"|re-?read|answer key|the (?:expected|required) (?:answer|format)|my (?:final )?(?:answer|response))\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:i['’]?m sorry|i am sorry|i apologi[sz]e|as an ai|i (?:cannot|can['’]t|am unable to) "
    r"(?:help|assist|see|view|watch|process|provide|describe|analy[sz]e))",
    re.IGNORECASE,
)
_MARKDOWN = [
    (re.compile(pattern, re.MULTILINE), replacement)
    for pattern, replacement in (
        (r"^\s*```\w*\s*$", ""),
        (r"\\boxed\{([^{}]*)\}", r"\1"),
        (r"\*\*(.+?)\*\*", r"\1"),
        (r"^\s*#{1,6}\s+", ""),
        (r"^\s*[-*•]\s+", ""),
        (r"`([^`\n]*)`", r"\1"),
    )
]
_TAG = re.compile(r"<[/|a-zA-Z][^<>]*>")
_CONCLUSION = re.compile(
    r"\b(?:answer|choice|option)\s+(?:is|must be|should be|would be)\s*:?\s*(?:option\s+)?\(?([A-Z])\b(?!')"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_RUN, _RUNS = 8, 3  # so many words in a row, so many times, are a loop


def rewrite(trace: str) -> str:
    """A trace in plain prose that speaks of the video and not of the exercise."""
    for pattern, replacement in _MARKDOWN:
        trace = pattern.sub(replacement, trace)
    lines = []
    for line in trace.splitlines():
        sentences = [_rewrite_sentence(sentence) for sentence in _SENTENCE_END.split(line.strip())]
        lines.append(" ".join(sentence for sentence in sentences if sentence))
    return "\n".join(line for line in lines if line)


def check_trace(trace: str, question: str, key: str, settings: Clean) -> None:
    """What a rewritten trace must hold to.

    Args:
        trace: after ``rewrite``.
        question: with its options; the trace is in a language of it.
        key: the right answer; where it is a letter, the trace must not end with another one.
        settings: bounds.

    Raises:
        Rejected: with the rule's name.
    """
    check_no_tags(trace)
    check_no_caption(trace)
    count = len(trace.split())
    if count < settings.min_words:
        raise Rejected("too_short", f"{count} words, needed {settings.min_words}")
    if count > settings.max_words:
        raise Rejected("too_long", f"{count} words, allowed {settings.max_words}")
    check_no_loop(trace)
    if len(strays := _letters_of_other_scripts(trace, question)) > 1:
        raise Rejected("mixed_language", f"letters of another script: {''.join(strays[:10])}")
    conclusions = _CONCLUSION.findall(trace)
    if len(key) == 1 and conclusions and conclusions[-1] != key:
        raise Rejected("disagrees", f"the trace ends with {conclusions[-1]}, the key is {key}")


def check_caption(caption: str, min_words: int) -> None:
    """What a caption must hold to.

    Raises:
        Rejected: with the rule's name.
    """
    if _REFUSAL.search(caption):
        raise Rejected("refusal", caption[:80])
    if len(caption.split()) < min_words:
        raise Rejected("too_short", f"{len(caption.split())} words, needed {min_words}")
    check_no_loop(caption)


def check_no_caption(text: str) -> None:
    """Raises Rejected("mentions_caption") when a text speaks of the caption that it was written from."""
    if match := _CAPTION.search(text):
        raise Rejected("mentions_caption", f"{match.group()!r} in {text[:80]!r}")


def check_no_tags(text: str) -> None:
    """Raises Rejected("wrong_tags") when a text holds tags or control tokens: they would be trained on."""
    if match := _TAG.search(text):
        raise Rejected("wrong_tags", f"{match.group()!r} in {text[:80]!r}")


def check_no_loop(text: str) -> None:
    """Raises Rejected("repetitive") when a text runs in a loop, as small models do."""
    folded = words(text)
    runs = Counter(tuple(folded[i : i + _RUN]) for i in range(len(folded) - _RUN + 1))
    for run, count in runs.most_common(1):
        if count >= _RUNS:
            raise Rejected("repetitive", f"{count} times {' '.join(run)!r}")


def _rewrite_sentence(sentence: str) -> str:
    """The sentence, rewritten; "" when it is about the exercise."""
    text = _OPENER.sub("", sentence)
    text = _PLAN.sub("", text)
    if _META.search(text):
        return ""
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text[:1].upper() + text[1:] if text != sentence else text


def _letters_of_other_scripts(trace: str, question: str) -> list[str]:
    known = {_script(char) for char in question if char.isalpha()} | {"LATIN", "GREEK"}
    return [char for char in trace if char.isalpha() and _script(char) not in known]


def _script(char: str) -> str:
    return unicodedata.name(char, "?").split()[0]
