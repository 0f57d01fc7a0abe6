# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same items, paired."""

import json

import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.eval import run
from training.eval.__main__ import main
from training.eval.compare import compare, table
from training.eval.item import Item, write_items

KINDS = {"order": 30, "states": 10, "affordance": 4}


def items(kinds=None):
    made = []
    for group, count in (kinds or KINDS).items():
        for i in range(count):
            task = "open the door" if group == "affordance" else ""
            about = {"group": group, "source": "x", "tasks": (task,) if task else ()}
            query = Query(QueryKind.QUESTION, question=f"{group} {i}?", yes_no=True)
            made.append(Item(f"{group}{i}", f"s{i}", query, "yes", cluster=f"{group}{i // 2}", **about))
    return made


def write(directory, right, asked=None, seeds=2):
    """An evaluation in which the items whose name ``right`` accepts are answered rightly, with each seed."""
    directory.mkdir()
    asked = asked or items()
    write_items(directory / run.ITEMS, asked)
    decoding = "free, T 0.6, top_p 0.95, 64 tokens"
    settings = {"decoding": decoding, "seeds": seeds, "permutations": 1, "blind": False}
    facts = {
        "model": {"digest": directory.name, "prompt_id": "p"},
        "stage": "sft",
        "held_out_tasks": [" Open the Door"],  # as typed
        "benchmark": {},
        "asked": {run._way(run.PROTOCOLS["strict"]): settings},
    }
    (directory / run.RUN).write_text(json.dumps(facts))
    lines = [
        {
            "item": item.item_id,
            "digest": item.digest,
            "model": directory.name,
            "prompt": "p",
            "decoding": decoding,
            "seed": seed,
            "rotation": 0,
            "video": True,
            "output": f"<think>\n\n</think>\n\n<answer>\n{'yes' if right(item, seed) else 'no'}\n</answer>",
        }
        for item in asked
        for seed in range(seeds)
    ]
    (directory / run.PREDICTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def number(item):
    return int(item.item_id.removeprefix(item.group))


def test_differences_are_paired_and_new_tasks_apart(tmp_path):
    before = write(tmp_path / "before", lambda item, seed: number(item) % 3 == 0)
    after = write(tmp_path / "after", lambda item, seed: number(item) % 3 == 0 or item.group == "order")
    rows = {row["kind"]: row for row in compare(before, after, "strict")}
    assert set(rows) == {"order", "states", "all", "mean of the kinds", "affordance, new tasks"}
    order, states = rows["order"], rows["states"]
    assert (order["n"], order["before"], order["after"]) == (30, 0.3333, 1.0)
    assert order["ci95"][0] > 0.4
    assert order["p"] < 0.01
    assert states["difference"] == 0.0
    assert states["ci95"] == [0.0, 0.0]  # the same items are right: no doubt about it
    assert rows["all"]["difference"] == pytest.approx(20 / 40, abs=1e-4)
    assert rows["mean of the kinds"]["difference"] == pytest.approx((2 / 3 + 0) / 2, abs=1e-4)
    assert rows["mean of the kinds"]["before"] == pytest.approx((1 / 3 + 0.4) / 2, abs=1e-4)
    assert "| order | 30 | 33.3 | 100.0 | +66.7 (" in table(list(rows.values()))


def test_what_cannot_be_compared_is_refused(tmp_path, capsys):
    before = write(tmp_path / "before", lambda item, seed: True)
    other = write(tmp_path / "other", lambda item, seed: True, items(KINDS | {"states": 9}))
    assert main(["compare", str(before), str(other), "--protocol", "strict"]) == 1
    assert "1 items are not the same" in capsys.readouterr().err
    assert main(["compare", str(before), str(before)]) == 1
    assert "was not asked for protocol letter" in capsys.readouterr().err
    lines = (other / run.PREDICTIONS).read_text().splitlines(keepends=True)
    (other / run.PREDICTIONS).write_text("".join(lines[:-1]))
    assert main(["compare", str(other), str(other), "--protocol", "strict"]) == 1
    assert "1 items have not been asked" in capsys.readouterr().err
    assert main(["compare", str(before), str(before), "--protocol", "strict"]) == 0
    assert "| mean of the kinds | 40 | 100.0 | 100.0 | +0.0" in capsys.readouterr().out
