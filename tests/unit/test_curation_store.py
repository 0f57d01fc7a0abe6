# SPDX-License-Identifier: Apache-2.0
import json
import os
import sqlite3

import pytest

from training.data.curation.store import SENT, Spent, Store, StoreError, write_json

MOST = Spent(1, 500, 0.25)


def damage(path, table):
    """Overwrite the first page of a table; the header, and so opening, stay as they were."""
    base = sqlite3.connect(path)
    (page,) = base.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    (size,) = base.execute("PRAGMA page_size").fetchone()
    base.close()
    with open(path, "r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"\xff" * size)


@pytest.fixture
def path(tmp_path):
    """A store with a record and a request."""
    path = tmp_path / "curation.sqlite"
    with Store(path) as store:
        store.settle(store.send("key", "write", MOST), "answered", MOST, Spent(1, 120, 0.1), {"text": "컵"})
        assert store.get("key") == {"text": "컵"}
    return path


def test_a_store_that_is_damaged_where_answers_are_says_what_to_do(path):
    damage(path, "facts")
    with Store(path) as store, pytest.raises(StoreError) as caught:
        store.get("key")
    said = str(caught.value)
    assert "curation.sqlite is damaged or cannot be read (database disk image is malformed)" in said
    assert "put a backup in its place, or move it" in said


def test_writing_to_a_damaged_store_does_not_ask_for_room(path):
    damage(path, "facts")
    with Store(path) as store:
        for _ in range(2):  # nor is anything sent after it
            with pytest.raises(StoreError, match="put a backup in its place"):
                store.put("other", {})


def test_a_record_that_is_damaged_is_named(path):
    base = sqlite3.connect(path)
    base.execute("UPDATE facts SET record = substr(record, 2)")
    base.commit()
    base.close()
    with Store(path) as store, pytest.raises(StoreError, match="is damaged or cannot be read"):
        store.get("key")


def test_a_request_list_that_is_damaged_is_named(path):
    with Store(path) as store:
        store._base.execute("DROP TABLE attempts")
        with pytest.raises(StoreError, match="is damaged or cannot be read"):
            store.attempts_by_state()


def test_what_the_data_base_cannot_hold_leaves_no_transaction_open(path):
    """A fault of the program; all that is paid for besides is kept all the same."""
    with Store(path) as store:
        attempt = store.send("half", "write", MOST)
        with pytest.raises(UnicodeEncodeError):
            store.settle(attempt, "answered", MOST, MOST, {"text": "\ud83d"})
        store.put("later", {"text": "kept"})
    with Store(path) as store:
        assert store.get("later") == {"text": "kept"}
        assert store.get("half") is None
        assert store.attempts_by_state() == {"answered": 1, SENT: 1}


def test_any_file_name_is_written_to_json_and_read_back(tmp_path):
    name = b"caf\xe9 \xed\x95\x9c\\.mp4"
    write_json(tmp_path / "a.json", json.dumps({"video": os.fsdecode(name)}, ensure_ascii=False))
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "한" in text, "what is text stays as it is"
    assert os.fsencode(json.loads(text)["video"]) == name
