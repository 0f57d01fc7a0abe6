# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import shutil

import numpy as np
import pytest

from cosmos_reason_node.models.checkpoint import digest
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model
from training.eval import calibration, run
from training.eval.__main__ import main
from training.eval.item import Item, write_items
from training.eval.prediction import Key, Prediction, PredictionLog

YES_NO = Query(QueryKind.COMPLETION, task="open the drawer")
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open it", options=("reach", "pull", "push"))


def overconfident(count=400, factor=3.0, seed=0):
    """Verdicts whose logits are ``factor`` times what the right answers follow."""
    rng = np.random.default_rng(seed)
    logits, right = [], []
    for i in range(count):
        true = rng.normal(0, 1.5, 2 + i % 2)
        shares = np.exp(true) / np.exp(true).sum()
        right.append(int(rng.choice(len(true), p=shares)))
        logits.append(factor * true)
    return logits, right


def test_the_temperature_is_found_again_and_mends_the_error():
    fitted = calibration.fit(*overconfident())
    assert fitted.temperature == pytest.approx(3.0, rel=0.2)
    assert fitted.error_after < 0.5 * fitted.error_before
    assert fitted.loss_after < fitted.loss_before


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


def evaluation(directory, model, count=60):
    """An evaluation on disk, with verdicts as a model would have given them."""
    logits, right = overconfident(count)
    items, said = [], []
    for i, (x, place) in enumerate(zip(logits, right, strict=True)):
        query = OPTIONS if len(x) == 3 else YES_NO
        answer = "ABC"[place] if len(x) == 3 else ("yes", "no")[place]
        item = Item(f"i{i}", "s", query, answer, "completion", "sim", f"c{i}")
        shares = tuple(np.exp(x) / np.exp(x).sum())
        items.append(item)
        for video in (True, False):
            key = Key(item.item_id, item.digest, model, "p", "grammar, greedy, think 0", 0, 0, video)
            said.append(Prediction(key, "text", max(shares), 3, shares=shares if video else (0.5, 0.5)))
    write_items(directory / run.ITEMS, items)
    PredictionLog(directory / run.PREDICTIONS).append(said)
    facts = {
        "model": {"digest": model, "prompt_id": "p"},
        "stage": "sft",
        "held_out_tasks": [],
        "benchmark": {},
        "asked": {"grammar": {"decoding": "grammar, greedy, think 0"}},
    }
    (directory / run.RUN).write_text(json.dumps(facts))
    return logits, right


def test_command_line_writes_it_into_the_checkpoint(model_dir, tmp_path, capsys):
    model = shutil.copytree(model_dir, tmp_path / "model")
    asked = tmp_path / "asked"
    asked.mkdir()
    expected = calibration.fit(*evaluation(asked, digest(model)))
    before = read_model_spec(model)
    assert main(["calibrate", str(asked), "--model", str(model)]) == 0
    assert read_model_spec(model) == before
    assert main(["calibrate", str(asked), "--model", str(model), "--write"]) == 0
    assert "from 60 verdicts" in capsys.readouterr().out
    after = read_model_spec(model)
    fitted = after.calibration(QueryKind.COMPLETION)
    assert fitted == pytest.approx(expected.temperature, rel=0.02)  # shares of next to nothing are cut off
    assert after == dataclasses.replace(before, confidence_temperature=fitted)
    # The checkpoint is another one now: its confidences are no longer those of the evaluation.
    assert main(["calibrate", str(asked), "--model", str(model)]) == 1
    assert "evaluate it first" in capsys.readouterr().err


def test_what_was_said_in_other_ways_is_not_fitted(model_dir, tmp_path):
    """The log keeps answers after reasoning, and to prompts of older versions; the report counts neither."""
    model = digest(model_dir)
    evaluation(tmp_path, model)
    expected = calibration.calibrate(tmp_path, model_dir)
    log = PredictionLog(tmp_path / run.PREDICTIONS)
    wrong = [dataclasses.replace(said, shares=said.shares[::-1]) for said in log.found.values()]
    for change in ({"decoding": "grammar, greedy, think 64"}, {"prompt": "older"}):
        log.append(dataclasses.replace(w, key=dataclasses.replace(w.key, **change)) for w in wrong)
    assert calibration.calibrate(tmp_path, model_dir) == expected


def test_too_few_verdicts_are_refused(model_dir, tmp_path):
    evaluation(tmp_path, digest(model_dir), 10)
    with pytest.raises(ValueError, match="10 verdicts"):
        calibration.calibrate(tmp_path, model_dir)
