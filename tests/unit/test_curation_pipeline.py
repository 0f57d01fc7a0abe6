# SPDX-License-Identifier: Apache-2.0
import base64
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.curation_data import CAPTION, save, scene, write_config
from tests.unit.curation_server import Reply, good, right_answer, serving
from training.data.curation.__main__ import DONE, FAILED, UNFINISHED, main
from training.data.problems import Report
from training.data.readers.jsonl import read_samples

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-not-for-anyone-0123456789"
VIDEOS, SETS = 3, 4


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three good videos with captions in sidecars, one with a name in Korean; shared, never changed."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("a", "b", "서랍 열기")):
        save(
            folder / f"{name}.mp4",
            scene(seed),
            caption=f"{CAPTION} Take {seed}.",
        )
    return folder


@pytest.fixture(scope="module")
def needed(videos, tmp_path_factory):
    """Number of requests of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with serving(good) as server:
        assert curate(config(folder, server.url, videos)) == DONE
        return len(server.arrived)


def config(folder, url, videos, **changes):
    return write_config(folder, url, videos=[str(videos)], **changes)


def curate(*arguments):
    return main(["--config", *map(str, arguments)])


def started(path):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "training.data.curation", "--config", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(server, count, process):
    """Wait until ``count`` requests have arrived."""
    with server.changed:
        while len(server.arrived) < count:
            assert process.poll() is None, process.communicate()
            server.changed.wait(0.1)


def report(folder):
    found = json.loads((folder / "out" / "report.json").read_text())
    assert found["balanced"]
    return found


def samples(folder):
    problems = Report()
    found = list(read_samples(folder / "out", problems))
    assert problems.problems == []
    return found


def rejected(folder):
    return [json.loads(line) for line in (folder / "out" / "rejected.jsonl").read_text("utf-8").splitlines()]


def test_every_video_becomes_samples_in_the_projects_conventions(tmp_path, videos):
    with serving(good) as server:
        assert curate(config(tmp_path, server.url, videos)) == DONE
    found = samples(tmp_path)
    assert len(found) == VIDEOS * SETS
    assert {(sample.style.value, sample.form) for sample in found} == {
        (style, form) for style in ("understanding", "reasoning") for form in ("choice", "free")
    }
    for sample in found:
        media = tmp_path / "out" / sample.media[0].path
        assert cv2.VideoCapture(str(media)).isOpened()
        assert (videos / sample.provenance.file).samefile(media)
        if sample.options:
            assert sample.options[sample.answer_index] in ("a red cup", "it has tipped over")
        if sample.style.value == "reasoning":
            assert sample.reasoning == (
                "According to the video, the arm pulls the drawer open and the cup goes into it. "
                "The cup tips over inside, and then the drawer is pushed shut."
            )
        steps = [step.name for step in sample.provenance.steps]
        wanted = ["caption", "write", "blind", *["trace"] * bool(sample.reasoning), "rules"]
        assert steps == wanted
        for step in sample.provenance.steps[1:-1]:
            assert step.model == "scripted-1"
            assert "@1:" in step.prompt
            assert step.parameters["max_tokens"] == 300
            assert step.started.endswith("+00:00")
            assert step.cost == pytest.approx((100 * 1.0 + 20 * 2.0) / 1e6)
    assert {sample.category for sample in found} == {"actions", "order", "causality", "affordance"}


def test_the_books_hold_and_the_cost_is_that_of_the_requests(tmp_path, videos, capsys):
    with serving(good) as server:
        curate(config(tmp_path, server.url, videos))
    found = report(tmp_path)
    kept = {name: stage["kept"] for name, stage in found["stages"].items()}
    assert kept == {"select": 3, "caption": 3, "write": 12, "check": 12, "blind": 12, "trace": 6, "clean": 6}
    # The same free questions are asked of each video: blind, they are one request.
    assert server.steps() == {"write": 12, "trace": 6, "blind": len(server.arrived) - 18}
    assert len({seen.key for seen in server.arrived}) == len(server.arrived) <= 18 + 6 + 2
    assert found["all_runs"]["requests"] == len(server.arrived)
    assert found["all_runs"]["cost"] == pytest.approx(len(server.arrived) * 140e-6)
    assert found["all_runs"]["tokens"] == len(server.arrived) * 120
    assert found["in_doubt"] == 0
    assert (
        f"all runs: {len(server.arrived)} requests, {len(server.arrived) * 120} tokens"
        in capsys.readouterr().out
    )


def test_a_second_run_asks_nothing_and_writes_the_same(tmp_path, videos):
    with serving(good) as server:
        path = config(tmp_path, server.url, videos)
        assert curate(path) == DONE
        first, count = (tmp_path / "out" / "samples.jsonl").read_bytes(), len(server.arrived)
        assert curate(path) == DONE
        assert len(server.arrived) == count
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == first
    steps = report(tmp_path)["steps"]
    assert all(both["now"]["answers"] == 0 for both in steps.values())
    assert sum(both["from_store"]["answers"] for both in steps.values()) == count


def test_a_video_that_moved_is_not_paid_for_again(tmp_path, videos):
    with serving(good) as server:
        assert curate(config(tmp_path, server.url, videos)) == DONE
        count = len(server.arrived)
        moved = tmp_path / "moved"
        moved.mkdir()
        for path in videos.iterdir():
            (moved / f"new {path.name}").write_bytes(path.read_bytes())
        assert curate(config(tmp_path, server.url, moved)) == DONE
        assert len(server.arrived) == count


def test_what_is_rejected_is_counted_with_its_reason(tmp_path, videos):
    def mixed(seen):
        if seen.step == "write" and "test reasoning" in seen.text and '"options"' in seen.text:
            return Reply("I would rather not write JSON.")
        if seen.step == "write" and '"options"' in seen.text:
            entry = {
                "question": "What does the caption say about the cup?",
                "options": ["a", "b"],
                "answer": "a",
            }
            return Reply(
                json.dumps({"questions": [entry, "no question", {"question": "What falls over at last?"}]})
            )
        if seen.step == "blind" and "second cup" not in seen.text:
            return Reply(f"<answer>{right_answer(seen.text)}</answer>")
        if seen.step == "trace":
            return Reply("<think>It goes on.</think><answer>the table is round</answer>")
        return good(seen)

    with serving(mixed) as server:
        assert curate(config(tmp_path, server.url, videos)) == DONE
    stages = report(tmp_path)["stages"]
    assert stages["write"]["rejected"] == {"not_json": 3}
    assert stages["check"]["rejected"] == {"malformed": 6, "mentions_caption": 3}
    assert stages["blind"]["rejected"] == {"answered_blind": 3}
    assert stages["trace"]["rejected"] == {"disagrees": 3}
    assert samples(tmp_path) == []
    assert len(rejected(tmp_path)) == 3 + 9 + 3 + 3
    assert {loss["video"] for loss in rejected(tmp_path)} == set(map(str, videos.glob("*.mp4")))
    assert server.steps()["write"] == 12 + 3, "a list that is none is asked for once more"


def test_a_guess_at_one_order_of_options_is_no_knowledge(tmp_path, videos):
    def always_a(seen):
        return Reply("<think></think><answer>A</answer>") if seen.step == "blind" else good(seen)

    with serving(always_a) as server:
        assert curate(config(tmp_path, server.url, videos)) == DONE
    assert report(tmp_path)["stages"]["blind"]["rejected"] == {}


def test_free_answers_with_other_words_go_to_the_judge(tmp_path, videos):
    def wordy(seen):
        if seen.step == "judge":
            return Reply("Yes." if "grip" in seen.text else "No.")
        if seen.step == "blind" and "reach for first" in seen.text:
            return Reply("<think></think><answer>its grip</answer>")
        return good(seen)

    with serving(wordy) as server:
        judge = {"endpoint": "local", "max_tokens": 5}
        assert curate(config(tmp_path, server.url, videos, judge=judge)) == DONE
    assert report(tmp_path)["stages"]["blind"]["rejected"] == {"answered_blind": 3}
    assert server.steps()["judge"] == 2  # its grip, and "no idea" about the second cup; equal words need none


def test_frames_are_sent_as_pictures(tmp_path, videos):
    with serving(good) as server:
        caption = {"call": {"endpoint": "local", "max_tokens": 300}, "min_words": 5}
        frames = {"fps": 2.0, "most": 4, "max_side": 80}
        assert curate(config(tmp_path, server.url, videos, caption=caption, frames=frames)) == DONE
        count = len(server.arrived)
        assert curate(config(tmp_path, server.url, videos, caption=caption, frames=frames)) == DONE
        assert len(server.arrived) == count
    asked = [seen for seen in server.arrived if seen.step == "caption"]
    assert len(asked) == VIDEOS
    for seen in asked:
        parts = seen.body["messages"][1]["content"]
        assert [part["text"] for part in parts if part["type"] == "text"][:4] == [
            "0.0 s",
            "0.8 s",
            "1.5 s",
            "2.3 s",
        ]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        assert len(urls) == 4
        for url in urls:
            head, _, data = url.partition(",")
            assert head == "data:image/jpeg;base64"
            image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            assert image.shape == (60, 80, 3)


def test_nothing_is_asked_twice_after_a_kill(tmp_path, videos, needed):
    """Killed while two requests are under way: these two are in doubt and sent again, all others are not."""
    free, gate, held = 9, threading.Event(), []

    def stalls(seen):
        if seen.before >= free and not gate.is_set():
            held.append(seen.key)
            gate.wait(60)
        return good(seen)

    with serving(stalls) as server:
        path = config(tmp_path, server.url, videos)
        with started(path) as process:
            wait_for(server, free + 2, process)
            process.send_signal(signal.SIGKILL)
        before = {seen.key for seen in server.arrived} - set(held)
        assert len(before) == free
        gate.set()
        assert curate(path) == DONE
    again = [seen.key for seen in server.arrived[free + 2 :]]
    assert before.isdisjoint(again)
    assert len(set(again)) == len(again)
    assert len(server.arrived) == needed + 2
    found = report(tmp_path)
    assert found["in_doubt"] == 2
    assert found["all_runs"]["requests"] == needed + 2
    assert len(samples(tmp_path)) == VIDEOS * SETS


def test_a_full_disk_ends_the_run_and_another_goes_on(tmp_path, videos, needed):
    with serving(good) as server:
        path = config(tmp_path, server.url, videos)

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))

        done = subprocess.run(
            [sys.executable, "-m", "training.data.curation", "--config", str(path)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, preexec_fn=small_files,
        )  # fmt: skip
        assert done.returncode == FAILED, done.stdout
        assert "is the disk full? Make room and run this again" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out" / "samples.jsonl").exists()
        assert curate(path) == DONE
    assert len(server.arrived) <= needed + 2, "at most what was under way is asked again"
    assert len(samples(tmp_path)) == VIDEOS * SETS


def test_a_disk_that_is_full_at_the_end_is_named(tmp_path, videos, capsys):
    with serving(good) as server:
        path = config(tmp_path, server.url, videos)
        (tmp_path / "out" / "samples.jsonl").mkdir(parents=True)  # cannot be written, whoever the user is
        assert curate(path) == FAILED
        said = capsys.readouterr().err
        assert f"{tmp_path / 'out'} cannot be written" in said
        assert "make room there and run it again; nothing is paid twice" in said
        count = len(server.arrived)
        (tmp_path / "out" / "samples.jsonl").rmdir()
        assert curate(path) == DONE
    assert len(server.arrived) == count


def test_a_budget_that_was_passed_all_the_same_is_reported(tmp_path, videos, capsys):
    with serving(good) as server:
        assert curate(config(tmp_path, server.url, videos)) == DONE
        spent = report(tmp_path)["all_runs"]["tokens"]
        assert report(tmp_path)["budget_exceeded_by"] == {}
        assert curate(config(tmp_path, server.url, videos, budget={"tokens": spent - 7})) == DONE
    assert report(tmp_path)["budget_exceeded_by"] == {"tokens": 7}
    assert "budget.tokens exceeded by 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("budget", "spent_of"),
    [({"requests": 7}, "requests"), ({"tokens": 2000}, "tokens"), ({"cost": 0.002}, "cost")],
)
def test_a_budget_is_kept_and_a_larger_one_goes_on(tmp_path, videos, needed, budget, spent_of):
    with serving(good) as server:
        assert curate(config(tmp_path, server.url, videos, budget=budget)) == UNFINISHED
        found = report(tmp_path)
        assert 0 < found["all_runs"][spent_of] <= budget[spent_of]
        assert not found["complete"]
        assert found["all_runs"]["requests"] == len(server.arrived) > 0
        assert f"budget.{spent_of}" in found["unfinished_because"][0]
        assert curate(config(tmp_path, server.url, videos)) == DONE
        assert len(server.arrived) == needed


def test_the_key_is_sent_and_written_nowhere(tmp_path, videos, monkeypatch, capfd):
    def echoes(seen):
        if seen.step == "blind":
            return Reply(f"bad header {seen.headers['authorization']}", status=400)
        return good(seen)

    monkeypatch.setenv("CURATION_TEST_KEY", KEY)
    with serving(echoes) as server:
        assert (
            curate(config(tmp_path, server.url, videos, endpoints__local__api_key_env="CURATION_TEST_KEY"))
            == DONE
        )
    assert {seen.headers["authorization"] for seen in server.arrived} == {f"Bearer {KEY}"}
    assert report(tmp_path)["stages"]["blind"]["rejected"] == {"refused": 12}
    assert "bad header Bearer [key]" in (tmp_path / "out" / "rejected.jsonl").read_text()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


def test_a_refusal_is_not_asked_for_again(tmp_path, videos):
    def refuses(seen):
        return Reply("too long for the context", status=400) if seen.step == "trace" else good(seen)

    with serving(refuses) as server:
        path = config(tmp_path, server.url, videos)
        assert curate(path) == DONE
        count = len(server.arrived)
        assert curate(path) == DONE
        assert len(server.arrived) == count
    assert report(tmp_path)["stages"]["trace"]["rejected"] == {"refused": 6}


def test_a_run_whose_requests_are_all_refused_is_not_complete(tmp_path, videos, capsys):
    sets = [{"style": "understanding", "form": "free"}]
    with serving(lambda _: Reply("max_tokens is not supported", status=400)) as server:
        assert curate(config(tmp_path, server.url, videos, write__sets=sets)) == UNFINISHED
        assert len(server.arrived) == VIDEOS < 5, "fewer than would stop the endpoint"
        found = report(tmp_path)
        assert not found["complete"]
        assert found["stages"]["write"]["unfinished"] == {"endpoint": VIDEOS}
        assert "correct endpoints.local or the parameters of its calls" in capsys.readouterr().out
        server.reply = good
        assert curate(config(tmp_path, server.url, videos, write__sets=sets)) == DONE
    assert len(samples(tmp_path)) == VIDEOS


def test_what_models_think_is_no_part_of_what_they_write(tmp_path, videos):
    """Reasoning models without a parser in the server: their thought stands before each answer."""

    def thinks(seen):
        said = good(seen).text
        if seen.step in ("caption", "write"):
            draft = {"questions": [{"question": "Which colour has the caption?", "answer": "red"}]}
            return Reply(f"<think>I was asked for a caption? {json.dumps(draft)} No.</think>\n\n{said}")
        return Reply(said)

    with serving(thinks) as server:
        caption = {"call": {"endpoint": "local", "max_tokens": 300}, "min_words": 5}
        assert curate(config(tmp_path, server.url, videos, caption=caption)) == DONE
    assert len(samples(tmp_path)) == VIDEOS * SETS
    assert not [seen for seen in server.arrived if seen.step == "write" and "I was asked" in seen.text]


def test_a_video_whose_name_is_not_utf_8_costs_that_video_only(tmp_path, videos):
    own = tmp_path / "videos"
    own.mkdir()
    for path in (videos / "a.mp4", videos / "a.txt"):
        (own / path.name).write_bytes(path.read_bytes())
    name = b"caf\xe9.mp4"
    Path(os.fsdecode(os.fsencode(own) + b"/" + name)).write_bytes((videos / "b.mp4").read_bytes())
    # A process of its own: opened by OpenCV such a name ends it, without a message.
    with serving(good) as server, started(config(tmp_path, server.url, own)) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == DONE, said
    assert len(samples(tmp_path)) == SETS
    (loss,) = rejected(tmp_path)
    assert os.fsencode(loss["video"]) == os.fsencode(own) + b"/" + name, "it can be found by what was written"
    assert loss["reason"] == "unreadable"
    assert "rename it" in loss["detail"]


def test_without_the_key_nothing_starts(tmp_path, videos, monkeypatch, capsys):
    monkeypatch.delenv("CURATION_TEST_KEY", raising=False)
    path = config(
        tmp_path, "http://127.0.0.1:9/v1", videos, endpoints__local__api_key_env="CURATION_TEST_KEY"
    )
    assert curate(path) == FAILED
    assert "the environment variable CURATION_TEST_KEY is not set" in capsys.readouterr().err


def test_two_runs_do_not_share_an_output_directory(tmp_path, videos, capsys):
    gate = threading.Event()

    def stalls(seen):
        gate.wait(60)
        return good(seen)

    with serving(stalls) as server:
        path = config(tmp_path, server.url, videos)
        with started(path) as process:
            wait_for(server, 1, process)
            assert curate(path) == FAILED
            assert "another run works in" in capsys.readouterr().err
            gate.set()
            assert process.wait(60) == DONE


def test_a_damaged_store_is_an_error_and_kept(tmp_path, videos, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curation.sqlite").write_bytes(b"no data base " * 1000)
    assert curate(config(tmp_path, "http://127.0.0.1:9/v1", videos)) == FAILED
    assert "cannot be opened" in capsys.readouterr().err
    assert (tmp_path / "out" / "curation.sqlite").read_bytes().startswith(b"no data base")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path / "out" / "curation.sqlite").execute("SELECT 1 FROM facts")


def test_interrupting_leaves_what_was_paid_for(tmp_path, videos, needed):
    gate = threading.Event()

    def stalls(seen):
        if seen.before >= 5:
            gate.wait(60)
        return good(seen)

    with serving(stalls) as server:
        path = config(tmp_path, server.url, videos)
        with started(path) as process:
            wait_for(server, 7, process)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(30) == 130
            assert process.stderr.read().strip() == "interrupted; run it again to go on"
        gate.set()
        assert curate(path) == DONE
    assert len(server.arrived) == needed + 2
