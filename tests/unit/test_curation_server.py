# SPDX-License-Identifier: Apache-2.0
"""The pipeline against a real language model (135M parameters) behind a real OpenAI-compatible server.

The model writes poor questions and poor answers: what is asserted is that rules and books cope with
whatever comes.
"""

import json
import urllib.request

import pytest

from tests.unit.curation_data import save, scene, write_config
from tests.unit.curation_server import good, serving
from tests.unit.language_model_server import KEY, missing, served
from training.data.curation.__main__ import DONE, main
from training.data.problems import Report
from training.data.readers.jsonl import read_samples
from training.data.schema import Style

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MODEL = "smollm2-135m-instruct"
CAPTION = (
    "A robot arm pulls a wooden drawer open, takes a red cup from a white table and puts it into the drawer. "
    "The cup tips over. The arm pushes the drawer shut."
)


@pytest.fixture(scope="module")
def url():
    with served() as url:
        yield url


def tokens_written(url):
    """How many tokens the server has generated, by its own count."""
    metrics = urllib.request.Request(
        url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(metrics, timeout=30) as response:
        lines = response.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("llamacpp:tokens_predicted_total ")))


def run(folder, url, count, monkeypatch, **changes):
    """Curate ``count`` good videos, a still one and a broken one, twice; the report of each run.

    All that holds whatever the model says is asserted here.
    """
    videos, out = folder / "videos", folder / "out"
    videos.mkdir()
    for seed in range(count):
        save(videos / f"take {seed}.mp4", scene(seed), caption=CAPTION)
    save(videos / "still.mp4", scene(9, 1).repeat(30, 0))
    (videos / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setenv("CURATION_TEST_KEY", KEY)
    call = {"endpoint": "local", "parameters": {"temperature": 0.3, "seed": 1}}
    local = {
        "base_url": url,
        "model": MODEL,
        "api_key_env": "CURATION_TEST_KEY",
        "structured": True,
        "concurrency": 2,
        "timeout_s": 500.0,
    }
    steps = {
        "endpoints": {"local": local},
        "write": {"call": {**call, "max_tokens": 100}, "attempts": 1},
        "blind": {"call": {**call, "max_tokens": 20}},
        "trace": {**call, "max_tokens": 50},
    }
    path = write_config(folder, url, **{**steps, **changes})
    before = tokens_written(url)
    assert main(["--config", str(path)]) == DONE
    report, first = json.loads((out / "report.json").read_text()), (out / "samples.jsonl").read_bytes()
    written = tokens_written(url)
    by_model = [both["now"] for both in report["steps"].values() if both["now"]["models"] == [MODEL]]
    assert written - before == sum(step["output_tokens"] for step in by_model), "the server counts the same"

    assert main(["--config", str(path)]) == DONE
    assert tokens_written(url) == written, "the second run is answered from the store alone"
    assert (out / "samples.jsonl").read_bytes() == first
    again = json.loads((out / "report.json").read_text())
    assert again["stages"] == report["stages"]
    for step, both in report["steps"].items():
        assert both["now"]["answers"] == again["steps"][step]["from_store"]["answers"] > 0
        assert again["steps"][step]["now"]["answers"] == 0

    assert report["balanced"]
    assert report["complete"]
    assert report["all_runs"]["by_state"] == {"answered": report["all_runs"]["requests"]}
    stages = report["stages"]
    assert stages["select"]["rejected"] == {"too_still": 1, "unreadable": 1}
    assert stages["caption"]["kept"] == count
    problems = Report()
    samples = list(read_samples(out, problems))
    assert problems.problems == []
    understood = sum(sample.style is Style.UNDERSTANDING for sample in samples)
    assert stages["blind"]["kept"] == understood + stages["trace"]["entered"]
    assert stages["clean"]["kept"] == len(samples) - understood
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == sum(sum(stage["rejected"].values()) for stage in stages.values())
    assert all(loss["reason"] and loss["final"] for loss in rejected)
    return report


def test_whatever_a_model_writes_ends_as_samples_or_as_counted_rejections(tmp_path, url, monkeypatch):
    sets = [{"style": "understanding", "form": "free", "count": 1}]
    call = {"endpoint": "local", "max_tokens": 130, "parameters": {"temperature": 0.3, "seed": 1}}
    report = run(tmp_path, url, 2, monkeypatch, write={"call": call, "attempts": 1, "sets": sets})
    assert report["stages"]["write"]["entered"] == 2
    assert report["steps"]["write"]["now"]["answers"] == 1, "equal captions are one request"


def test_good_questions_meet_a_model_that_guesses_and_reasons(tmp_path, url, monkeypatch):
    """Questions from one endpoint, blind check and traces from another, as in practice."""
    with serving(good) as writer:
        local = {"base_url": url, "model": MODEL, "api_key_env": "CURATION_TEST_KEY", "timeout_s": 500.0}
        endpoints = {"local": local, "writer": {"base_url": writer.url, "model": "scripted-1"}}
        sets = [{"style": "understanding", "form": "free", "count": 1}, {"style": "reasoning", "count": 1}]
        write = {"call": {"endpoint": "writer"}, "sets": sets}
        report = run(tmp_path, url, 1, monkeypatch, endpoints=endpoints, write=write)
    assert report["stages"]["blind"]["entered"] == 2
    assert report["steps"]["blind"]["now"]["models"] == [MODEL]
    asked = report["steps"].get("trace", {"now": {"answers": 0}})["now"]["answers"]
    assert report["stages"]["trace"]["entered"] == asked <= 1
