# SPDX-License-Identifier: Apache-2.0
"""The whole pipeline against a real language model (135M parameters) behind a real OpenAI-compatible server.

The model writes poor questions: what is asserted is that the rules and the books cope with whatever comes.
"""

import json
import urllib.request

import pytest

from tests.unit.curation_data import save, scene, write_config
from tests.unit.language_model_server import KEY, missing, served
from training.data.curation.__main__ import DONE, main
from training.data.problems import Report
from training.data.readers.jsonl import read_samples

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

VIDEOS = 2
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


def test_every_input_ends_as_a_sample_or_as_a_counted_rejection(tmp_path, url, monkeypatch):
    (tmp_path / "videos").mkdir()
    for seed in range(VIDEOS):
        save(tmp_path / "videos" / f"take {seed}.mp4", scene(seed), caption=f"{CAPTION} Take {seed}.")
    save(tmp_path / "videos" / "still.mp4", scene(9, 1).repeat(30, 0))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    monkeypatch.setenv("CURATION_TEST_KEY", KEY)
    call = {"endpoint": "local", "max_tokens": 100, "parameters": {"temperature": 0.3, "seed": 1}}
    path = write_config(
        tmp_path,
        url,
        endpoints__local__api_key_env="CURATION_TEST_KEY",
        endpoints__local__model="smollm2-135m-instruct",
        endpoints__local__structured=True,
        endpoints__local__timeout_s=300.0,
        write={"call": call, "sets": [{"style": "reasoning", "form": "free", "count": 1}], "attempts": 1},
        blind={"call": {**call, "max_tokens": 20}, "trials": 2},
        trace={**call, "max_tokens": 50},
    )
    assert main(["--config", str(path)]) == DONE
    out = tmp_path / "out"
    report = json.loads((out / "report.json").read_text())
    first = (out / "samples.jsonl").read_bytes()
    written = tokens_written(url)
    assert written == sum(both["now"]["output_tokens"] for both in report["steps"].values())

    assert main(["--config", str(path)]) == DONE
    assert tokens_written(url) == written, "the second run is answered from the store alone"
    assert (out / "samples.jsonl").read_bytes() == first
    again = json.loads((out / "report.json").read_text())
    for step, both in report["steps"].items():
        assert both["now"]["answers"] == again["steps"][step]["from_store"]["answers"] > 0
        assert again["steps"][step]["now"]["answers"] == 0

    assert report["balanced"]
    assert report["complete"]
    stages = report["stages"]
    assert stages["select"]["rejected"] == {"too_still": 1, "unreadable": 1}
    assert stages["caption"]["kept"] == VIDEOS
    assert stages["write"]["entered"] == VIDEOS
    assert report["all_runs"]["by_state"] == {"answered": report["all_runs"]["requests"]}
    problems = Report()
    samples = list(read_samples(out, problems))
    assert problems.problems == []
    assert stages["clean"]["kept"] == len(samples)
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == sum(sum(stage["rejected"].values()) for stage in stages.values())
    assert all(loss["reason"] and loss["final"] for loss in rejected)
    for sample in samples:
        step = next(step for step in sample.provenance.steps if step.name == "write")
        assert step.model == "smollm2-135m-instruct"
        assert step.parameters["temperature"] == 0.3
