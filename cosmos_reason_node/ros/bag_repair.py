# SPDX-License-Identifier: Apache-2.0
"""Complete bags whose writer was killed: ``python -m cosmos_reason_node.ros.bag_repair BAG_DIRECTORY ...``.

Such a bag has messages, but no index at the end of its MCAP file and no metadata.yaml. Everything readable is
copied to a new file beside it, which then takes its place; a bag that is whole only gets its metadata.yaml.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap.records import Channel, McapRecord, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader

from .bag_metadata import TopicCount, write_metadata
from .bag_writer import HASH_KEY, QOS_KEY, BagTopic, BagWriter
from .definitions import Definition

_MAGIC = b"\x89MCAP0\r\n"
# What a reader raises at the torn end: too few bytes for a record, or bytes that are none.
_TORN = (McapError, CRCValidationError, EOFError, struct.error, ValueError, IndexError, UnicodeDecodeError)


def repair(directory: Path) -> int:
    """Make a bag complete.

    Args:
        directory: of a bag written by BagWriter (one MCAP file).

    Returns:
        The number of messages in it.

    Raises:
        ValueError: this is no such bag, or it is still being written.
        OSError: it cannot be read or written.
    """
    files = sorted(directory.glob("*.mcap"))
    if len(files) != 1:
        raise ValueError(f"{directory} holds {len(files)} MCAP files; expected one")
    (file,) = files
    with open(file, "rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{file} is no MCAP file")
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(stream, directory)
        if not _is_whole(file):
            _copy_readable(file, directory)
    return _write_metadata(file, directory)


def _lock(stream: IO[bytes], directory: Path) -> None:
    """Keep others from repairing it too; a bag that is being written looks torn, and is locked."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"{directory} is still being written; it will be complete when its recording ends"
        ) from None


def _is_whole(file: Path) -> bool:
    with open(file, "rb") as stream:
        try:
            return make_reader(stream).get_summary() is not None
        except _TORN:
            return False


def _copy_readable(file: Path, directory: Path) -> None:
    scratch = directory / ".repair"
    shutil.rmtree(scratch, ignore_errors=True)  # of a repair that was itself interrupted
    writer = BagWriter(scratch)
    schemas: dict[int, Schema] = {}
    topics: dict[int, BagTopic] = {}
    with open(file, "rb") as stream:
        for record in _readable(stream):
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel) and record.id not in topics:
                schema = schemas[record.schema_id]
                definition = Definition(schema.name, schema.data.decode(), record.metadata.get(HASH_KEY, ""))
                topic = BagTopic(record.topic, definition, record.metadata.get(QOS_KEY, "[]"))
                writer.add_topic(topic)
                topics[record.id] = topic
            elif isinstance(record, Message):
                writer.write(topics[record.channel_id], record.data, record.log_time, record.publish_time)
    writer.close()
    os.replace(next(scratch.glob("*.mcap")), file)
    shutil.rmtree(scratch)


def _readable(stream: IO[bytes]) -> Iterator[McapRecord]:
    try:
        yield from StreamReader(stream, validate_crcs=True).records
    except _TORN:
        return


def _write_metadata(file: Path, directory: Path) -> int:
    with open(file, "rb") as stream:
        summary = make_reader(stream).get_summary()
    if summary is None or summary.statistics is None:
        raise ValueError(f"{file} has no statistics; it was not written by cosmos_reason")
    counts = summary.statistics.channel_message_counts
    topics = [
        TopicCount(
            channel.topic,
            summary.schemas[channel.schema_id].name,
            channel.metadata.get(HASH_KEY, ""),
            channel.metadata.get(QOS_KEY, "[]"),
            counts.get(channel.id, 0),
        )
        for channel in summary.channels.values()
    ]
    statistics = summary.statistics
    write_metadata(directory, file.name, statistics.message_start_time, statistics.message_end_time, topics)
    return statistics.message_count


def main(arguments: list[str] | None = None) -> int:
    """Repair each bag named on the command line; 1 when one of them could not be."""
    parser = argparse.ArgumentParser(description="Complete bags whose writer was killed.")
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG_DIRECTORY")
    failed = False
    for bag in parser.parse_args(arguments).bags:
        try:
            print(f"{bag}: {repair(bag)} messages")
        except (OSError, ValueError) as error:
            print(f"{bag}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
