# SPDX-License-Identifier: Apache-2.0
"""The report: complete, self-contained, and deaf to what models write."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from cosmos_reason_node.demo import album, report
from cosmos_reason_node.demo.markup import Markup, element, join, json_block
from cosmos_reason_node.demo.session import LATENCY_PARTS, Record, Session, load, save

ZERO = 1_700_000_000_000_000_000
HOSTILE = """</script></style><script>alert("x")</script><img src=x onerror=alert(1)>'"&amp;"""
OPTIONS = ("reach", "pull", "move away")


class Page(HTMLParser):
    """Tags, attributes, script bodies and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.texts, self._inside = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in ("meta", "br", "img", "link"):
            self._inside.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if self._inside and self._inside[-1] == "script":
            self.scripts[-1] += data
        elif not self._inside or self._inside[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def jpeg(shade=100, size=(90, 120)):
    return cv2.imencode(".jpg", np.full((*size, 3), shade, np.uint8))[1].tobytes()


def record(index=0, **changes):
    stamp = ZERO + index * 500_000_000
    values = {
        "decision_id": f"id{index}",
        "kind": "completion",
        "source": "monitor",
        "question": "Is the task complete?",
        "options": (),
        "verdict": "NO",
        "answer": "no",
        "option_index": -1,
        "confidence": 0.9,
        "reasoning": "The drawer is shut.",
        "stamp_ns": stamp,
        "published_ns": stamp + 300_000_000,
        "valid_until_ns": stamp + 5_000_000_000,
        "age_s": 0.3,
        "cameras": ("front",),
        "frame_stamps_ns": tuple(ZERO + k * 250_000_000 for k in range(2 * index + 2)),
        "num_frames": 2 * index + 2,
        "num_asked": 32,
        "num_held": 0,
        "fps": 4.0,
        "latency_s": dict.fromkeys(LATENCY_PARTS, 0.06),
        "model": {"model_id": "nano", "digest": "ab" * 32, "prompt_id": "cafe", "engine": "torch"},
        "prompt_tokens": 100,
        "output_tokens": 9,
        "error": "",
        "error_msg": "",
    }
    return Record(**{**values, **changes})


def choice(index, option, **changes):
    values = {"kind": "next_action", "verdict": "CHOICE", "answer": "ABC"[option], "option_index": option}
    return record(index, **{**values, "options": OPTIONS, **changes})


def session(**changes):
    values = {"started": "2026-01-02T03:04:05", "source": "clip.mp4", "duration_s": 4.0, "task": "open it"}
    return Session(**{**values, "first_stamp_ns": ZERO, "options": OPTIONS, **changes})


def frames(count=16):
    return {ZERO + k * 250_000_000: jpeg(10 * k) for k in range(count)}


def test_text_becomes_text_wherever_it_is_put():
    made = element("p", HOSTILE, element("b", HOSTILE), title=HOSTILE, class_="a", hidden=True, id=None)
    page = Page(made)
    assert page.tags == ["p", "b"]
    assert page.text.count(HOSTILE) == 2
    assert ("p", "title", HOSTILE) in page.attributes
    assert ("p", "hidden", None) in page.attributes
    assert not any(name == "id" for _, name, _ in page.attributes)
    assert join(["a<", Markup("<br>")], None, 1.5) == "a&lt;<br>1.5"


def test_no_string_ends_a_block_of_data():
    block = json_block("data", {"text": HOSTILE + "<!--"})
    assert block.lower().count("</script") == 1
    assert "<!--" not in block
    assert json.loads(Page(block).scripts[0]) == {"text": HOSTILE + "<!--"}


def test_hostile_text_in_every_field_stays_text():
    hostile = {
        "reasoning": HOSTILE,
        "answer": HOSTILE,
        "question": HOSTILE,
        "decision_id": HOSTILE,
        "cameras": (HOSTILE,),
        "model": {"model_id": HOSTILE, "digest": HOSTILE, "prompt_id": HOSTILE, "engine": HOSTILE},
    }
    records = [
        record(0, **hostile),
        choice(1, 0, **{**hostile, "options": (HOSTILE, "b")}),
        record(2, **hostile, source="service", kind="question", verdict="CHOICE"),
        record(3, **hostile, error=HOSTILE, error_msg=HOSTILE),
    ]
    watched = session(
        task=HOSTILE,
        action=HOSTILE,
        source=HOSTILE,
        source_note=HOSTILE,
        machine=HOSTILE,
        options=(HOSTILE,),
        truth={"next_action": ((0.0, 2.0, HOSTILE),)},
        cameras=({"name": HOSTILE, "topic": HOSTILE, "received": 3},),
        counters={HOSTILE: 1},
    )
    page = Page(report.build(watched, records, frames()))
    assert page.tags.count("script") == 2  # the data and the page's own
    assert "img" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count(HOSTILE) > 10


def test_the_page_asks_nothing_of_the_network_and_runs_only_its_own_script():
    text = report.build(session(), [record(0), choice(1, 2)], frames())
    page = Page(text)
    links = [value for _, name, value in page.attributes if name in ("href", "src", "action", "srcset")]
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in links)
    assert not re.search(r"url\(|@import", text)
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "src" in v)
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_decisions_errors_and_counts_are_all_shown():
    records = [
        record(0),
        record(1, verdict="YES", confidence=0.8, reasoning="Now it is open.", num_held=2),
        choice(1, 1),
        record(2, verdict="UNKNOWN", error="ENGINE_DIED", error_msg="it was killed", confidence=0.0),
        record(2, source="action", kind="question", verdict="CHOICE", answer="a blue drawer"),
    ]
    watched = session(
        cameras=({"name": "front", "received": 77, "gaps": 3, "bad_images": 0},),
        counters={"engine_restarts": 5},
    )
    page = Page(report.build(watched, records, frames()))
    assert page.tags.count("details") == len(records)
    for piece in ("Now it is open.", "engine died", "ENGINE_DIED: it was killed", "a blue drawer", "pull"):
        assert piece in page.text
    for piece in ("77", "gaps", "engine restarts", "4 of 32 frames", "2 repeated", "nano", "abababababab"):
        assert piece in page.text
    data = json.loads(page.scripts[0])
    assert [entry[:4] for entry in data["lanes"]["completion"]] == [
        [0.0, "NO", "no", 90],
        [0.5, "YES", "yes", 80],
        [1.0, "engine died", "error", 0],
    ]


def test_every_reference_to_a_frame_is_defined_and_none_is_stored_twice():
    page = Page(report.build(session(), [record(i) for i in range(6)], frames()))
    uses = {value for tag, name, value in page.attributes if (tag, name) == ("use", "href")}
    images = [value for tag, name, value in page.attributes if tag == "image" and name == "href"]
    identifiers = {f"#{value}" for tag, name, value in page.attributes if tag == "image" and name == "id"}
    assert uses
    assert uses <= identifiers
    assert len(images) == 12  # the frames of all windows; the other four were in none


def test_frames_over_the_budget_are_thinned_evenly(monkeypatch):
    pictures = {ZERO + k * 250_000_000: jpeg() for k in range(40)}
    budget = 10 * len(jpeg())
    monkeypatch.setattr(album, "PICTURE_BUDGET", budget)
    seen = record(0, frame_stamps_ns=tuple(pictures))
    kept = [picture.stamp_ns for picture in album.Album(pictures, [seen]).pictures]
    assert len(kept) == 10
    assert set(np.diff(kept)) == {1_000_000_000}


@pytest.mark.parametrize(
    "records", [[], [record(0, stamp_ns=0, frame_stamps_ns=(), num_frames=0, error="NO_FRAMES")]]
)
def test_an_empty_session_still_has_a_page(records):
    page = Page(report.build(session(duration_s=0.0, task=""), records, {}))
    assert "No task was set" in page.text


def test_a_damaged_picture_and_odd_numbers_do_not_stop_the_report():
    pictures = {**frames(2), ZERO: b"not a jpeg"}
    odd = record(0, confidence=7.0, latency_s={**dict.fromkeys(LATENCY_PARTS, 0.0), "queue": -1.0})
    assert "details" in Page(report.build(session(), [odd], pictures)).tags


def decision_line(**changes):
    return {
        "decision_id": "1",
        "kind": "NEXT_ACTION",
        "source": "MONITOR",
        "question": "what next?",
        "options": ["a", "b"],
        "verdict": "CHOICE",
        "answer": "B",
        "option_index": 1,
        "confidence": 0.5,
        "reasoning": "",
        "stamp_ns": ZERO,
        "published_ns": ZERO + 1,
        "valid_until_ns": ZERO + 2,
        "age_s": 0.25,
        "windows": [
            {
                "camera": "front",
                "frame_stamps_ns": [ZERO - 5, ZERO],
                "num_frames": 2,
                "num_asked": 8,
                "num_held": 0,
                "fps": 4.0,
            }
        ],
        "latency": {f"{part}_s": 0.1 for part in LATENCY_PARTS},
        "model": {"model_id": "m"},
        "prompt_tokens": 3,
        "output_tokens": 4,
        "error": "NONE",
        "error_msg": "",
        **changes,
    }


def test_a_session_comes_back_as_it_was_saved(tmp_path):
    watched = session(
        truth={"completion": ((0.0, 1.0, "no"),)}, cameras=({"name": "front"},), counters={"superseded": 2}
    )
    (tmp_path / "decisions.jsonl").write_text(json.dumps(decision_line()) + "\n\n")
    save(tmp_path, watched, {ZERO: jpeg()})
    loaded, records, pictures = load(tmp_path)
    assert loaded == watched
    assert [r.headline for r in records] == ["b"]
    assert records[0].frame_stamps_ns == (ZERO - 5, ZERO)
    assert not records[0].failed
    assert pictures == {ZERO: jpeg()}
    assert report.write(tmp_path).read_text().startswith("<!doctype html>")


def test_a_damaged_line_is_named(tmp_path):
    broken = decision_line()
    del broken["verdict"]
    (tmp_path / "decisions.jsonl").write_text(json.dumps(decision_line()) + "\n" + json.dumps(broken) + "\n")
    save(tmp_path, session(), {})
    with pytest.raises(ValueError, match=r"decisions\.jsonl, line 2: KeyError: 'verdict'"):
        load(tmp_path)
    (tmp_path / "session.json").write_text('{"started": ')
    with pytest.raises(ValueError, match=r"session\.json is damaged"):
        load(tmp_path)


def test_numbers_that_are_none_do_not_reach_the_page():
    line = decision_line(confidence=float("nan"), age_s=float("inf"))
    made = Record.from_json(line)
    assert (made.confidence, made.age_s) == (0.0, 0.0)
    assert dataclasses.replace(made, verdict="NO").headline == "NO"


def test_a_full_stop_makes_no_other_answer_of_it():
    moments = [
        record(i, kind="next_action", verdict="CHOICE", answer=text)
        for i, text in enumerate(("pull", "pull."))
    ]
    assert {moment.headline for moment in moments} == {"pull"}
