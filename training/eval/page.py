# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML file: chart, tables, and failures to look at. No external requests.

Everything a model or a data set wrote is escaped, and the page's content policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_reason_node.demo.markup import Markup, element, join
from cosmos_reason_node.prompt import letter, question_text

from .chart import chart
from .failures import Failure, choose
from .markdown import OTHER_BENCHMARK_NOTE, PUBLISHED_NOTE, heads, paper_values, percent, values
from .scoring import Outcome
from .thumbnails import strip_path

_HERE = Path(__file__).parent
# Most JPEG bytes in a page; failures beyond are shown without a picture.
PICTURE_BUDGET = 4_000_000


def page(report: Mapping[str, Any], outcomes: Sequence[Outcome], frames: Path) -> str:
    """The whole page.

    Args:
        report: see report.build.
        outcomes: that it was made of.
        frames: folder of the windows' strips.
    """
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    failures = choose(outcomes, report["held_out_tasks"])
    body = join(
        _header(report),
        element("main", _results(report), _paper(report), _details(report), _failures(failures, frames)),
        element("footer", "Made by cosmos_reason from items.jsonl and predictions.jsonl."),
        element("script", Markup(script)),
    )
    model = report["model"]["model_id"]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element(
            "title", f"Evaluation of {model}: {report['benchmark']['name']}, {report['protocol']['name']}"
        ),
        element("style", Markup((_HERE / "page.css").read_text(encoding="utf-8"))),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _header(report: Mapping[str, Any]) -> Markup:
    model, overall, settings = report["model"], report["overall"], report["settings"]
    facts = {
        "Benchmark": f"{report['benchmark']['name']}, {report['benchmark']['items']} questions about "
        f"{report['benchmark']['windows']} windows",
        "Protocol": f"{report['protocol']['name']}: {report['protocol']['about']}",
        "Runs": f"{settings['seeds']}; {settings['decoding']}",
        "Checkpoint": f"{model['digest'][:12]} ({report['stage']}), prompts {model['prompt_id']}, "
        f"{model['engine']} on {model['device']}, {model['dtype']}",
    }
    gain = overall.get("above_blind")
    tiles = [
        (f"{percent(overall['mean'])} %", f"right, of {overall['n']} questions"),
        (f"{100 * gain['mean']:+.1f}", "points above the same model without video") if gain else None,
        (f"{percent(overall['best_without_video']['mean'])} %", "best possible without video"),
        (f"{overall['ece']:.3f}", "expected calibration error") if "ece" in overall else None,
        (str(overall["unparsed"] + overall["errors"]), "outputs unparsed or missing: counted as wrong"),
    ]
    notes = list(report["benchmark"]["notes"])
    if report["unasked"]:
        notes.insert(
            0, f"{report['unasked']} questions have not been asked yet: this is not the final result."
        )
    return element(
        "header",
        element("p", "cosmos_reason · evaluation", class_="brand"),
        element("h1", f"{model['model_id']} on {report['benchmark']['name']}"),
        element("dl", [element("div", element("dt", k), element("dd", v)) for k, v in facts.items()]),
        element(
            "ul",
            [element("li", element("b", t[0]), element("span", t[1])) for t in tiles if t],
            class_="tiles",
        ),
        element("ul", [element("li", note) for note in notes], class_="notes") if notes else None,
    )


def _results(report: Mapping[str, Any]) -> Markup:
    new = report["new_tasks"]
    return element(
        "section",
        element("h2", "Results by kind"),
        chart({**report["by_kind"], "all": report["overall"]}),
        element("h3", "Tasks never trained on: " + ", ".join(report["held_out_tasks"])) if new else None,
        chart(new) if new else None,
        _table("kind", {**report["by_kind"], "all": report["overall"]}),
        _table("kind, new tasks", new) if new else None,
        element(
            "p",
            "Intervals are 95 % (bootstrap over recordings and runs). Best without video: always the most "
            "frequent right answer to a question's text. Same option in every order: share of "
            "multiple-choice items whose chosen option's text stays when the options are rotated.",
            class_="note",
        ),
    )


def _paper(report: Mapping[str, Any]) -> Markup:
    note = PUBLISHED_NOTE.replace("*", "")
    sections = []
    for paper in report["paper"].values():
        head = element("tr", [element("th", name) for name in ["model", *paper["columns"]]])
        counts = [element("td", count) for count in (*paper["n"], sum(paper["n"]))]
        asked = element("tr", element("th", "questions asked"), counts, class_="asked")
        rows = element("tbody", asked, [_paper_row(row) for row in paper["rows"]])
        sections.append(
            element(
                "section",
                element("h2", f"{paper['title']}, in the paper's layout"),
                element("div", element("table", element("thead", head), rows), class_="wide"),
                element(
                    "p", note if paper["comparable"] else f"{note} {OTHER_BENCHMARK_NOTE}", class_="note"
                ),
            )
        )
    return join(*sections)


def _paper_row(row: Mapping[str, Any]) -> Markup:
    name = [element("span", "published", class_="tag"), " ", row["name"]] if row["published"] else row["name"]
    cells = [element("td", value) for value in paper_values(row)]
    return element("tr", element("th", name), cells, class_="published" if row["published"] else "ours")


def _details(report: Mapping[str, Any]) -> Markup:
    parts = [
        element("details", element("summary", f"By {title}"), _table(title, report[key]))
        for key, title in (
            ("by_kind_and_form", "kind and form"),
            ("by_category", "category of the ontology"),
            ("by_source", "source"),
        )
        if len(report[key]) > 1
    ]
    parts.append(
        element("details", element("summary", "Answers given"), _answers(report["by_kind_and_form"]))
    )
    return element("section", element("h2", "Other breakdowns"), parts)


def _answers(cells: Mapping[str, Mapping[str, Any]]) -> Markup:
    """How often each letter or word was said: a model that has given up looking says one thing."""
    rows = []
    for name, cell in cells.items():
        total = sum(cell["said"].values())
        shares = ", ".join(f"{said} {100 * count / total:.0f} %" for said, count in cell["said"].items())
        rows.append(element("tr", element("th", name.replace("_", " ")), element("td", shares)))
    return element("div", element("table", element("tbody", rows)), class_="wide")


def _table(title: str, cells: Mapping[str, Mapping[str, Any]]) -> Markup:
    head = element("tr", [element("th", name) for name in (title, *heads())])
    rows = [
        element("tr", element("th", name.replace("_", " ")), [element("td", value) for value in values(cell)])
        for name, cell in cells.items()
    ]
    return element("div", element("table", element("thead", head), element("tbody", rows)), class_="wide")


def _failures(failures: Sequence[Failure], frames: Path) -> Markup:
    if not failures:
        return element("section", element("h2", "Failures"), element("p", "Every answer is right."))
    counts: dict[str, int] = {}
    for failure in failures:
        for tag in failure.tags:
            counts[tag] = counts.get(tag, 0) + 1
    buttons = [
        element(
            "button",
            f"{tag.replace('_', ' ')} ({count})",
            type="button",
            data_filter=tag,
            aria_pressed="true" if tag == "all" else "false",
        )
        for tag, count in {"all": len(failures), **dict(sorted(counts.items()))}.items()
    ]
    left = PICTURE_BUDGET
    pictures: dict[str, str] = {}
    definitions, cards = [], []
    for failure in failures:
        key = failure.outcome.item.stimulus
        if key not in pictures:
            path = strip_path(frames, key)
            jpeg = path.read_bytes() if path.exists() else b""
            left -= len(jpeg)
            pictures[key] = f"strip{len(pictures)}" if jpeg and left >= 0 else ""
            if pictures[key]:
                definitions.append(_rule(pictures[key], jpeg))
        cards.append(_card(failure, pictures[key]))
    return element(
        "section",
        element("style", definitions),
        element("h2", "Failures"),
        element(
            "p",
            f"{len(failures)} of the questions answered wrongly, by kind in turn, the surest of each first.",
            class_="note",
        ),
        element("div", buttons, class_="filters"),
        element("div", cards, id="failures"),
    )


def _rule(name: str, jpeg: bytes) -> Markup:
    """A picture as a style rule, so that cards of one window share it."""
    data = base64.b64encode(jpeg).decode()
    return Markup(f".{name}{{content:url(data:image/jpeg;base64,{data})}}\n")


def _card(failure: Failure, picture: str) -> Markup:
    item, given = failure.outcome.item, failure.given
    prediction = given.prediction
    got = given.choice.text or (prediction.error or "could not be parsed")
    options = [
        element(
            "li",
            f"({letter(i)}) {option}",
            class_="wanted" if option == item.wanted else "got" if option == given.choice.text else None,
        )
        for i, option in enumerate(item.query.options)
    ]
    runs = len(failure.outcome.seeing)
    facts = {
        "wanted": item.wanted,
        "got": got,
        "confidence": f"{percent(prediction.confidence)} %"
        + (f", wrong in {failure.wrong} of {runs} runs" if runs > 1 else ""),
        "reasoning": given.choice.reasoning or "none",
        "output": prediction.output if not given.choice.text and not prediction.error else "",
        "from": f"{item.source}, {item.stimulus.split('@')[0]}",
    }
    return element(
        "article",
        element("img", class_=picture, alt="frames of the window, oldest first") if picture else None,
        element(
            "div",
            element("p", element("span", item.group.replace("_", " "), class_="tag"), class_="kind"),
            element("h3", question_text(item.query)),
            element("ol", options) if options else None,
            element(
                "dl",
                [
                    join(element("dt", name), element("dd", value, class_=name))
                    for name, value in facts.items()
                    if value
                ],
            ),
            class_="text",
        ),
        data_tags=" ".join(failure.tags),
    )


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
