# SPDX-License-Identifier: Apache-2.0
import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.ros import cdr

SECOND = 1_000_000_000


def image_cdr(
    frame_id: str = "cam",
    encoding: str = "rgb8",
    data: bytes = b"\1\2\3\4\5\6",
    order: str = "<",
    sec: int = 7,
    nanosec: int = 9,
) -> bytes:
    """An Image serialized by hand: CDR aligns each number to its size."""
    out = bytearray()

    def number(code: str, value: int) -> None:
        size = struct.calcsize(code)
        out.extend(b"\0" * (-len(out) % size) + struct.pack(order + code, value))

    def text(value: str) -> None:
        number("I", len(value.encode()) + 1)
        out.extend(value.encode() + b"\0")

    number("i", sec)
    number("I", nanosec)
    text(frame_id)
    number("I", 1)  # height
    number("I", 2)  # width
    text(encoding)
    number("B", order == ">")
    number("I", 6)  # step
    number("I", len(data))
    return (b"\0\0\0\0" if order == ">" else b"\0\1\0\0") + bytes(out + data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("frame_id", ["", "c", "cam", "camera_optical_frame", "kamera_ä"])
@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "bayer_rggb16"])
def test_image_fields_in_both_byte_orders_at_every_alignment(order: str, frame_id: str, encoding: str):
    serialized = image_cdr(frame_id, encoding, order=order)
    image = cdr.read_image(serialized)
    assert cdr.read_stamp(serialized) == 7 * SECOND + 9
    assert (image.frame_id, image.encoding, image.height, image.width) == (frame_id, encoding, 1, 2)
    assert (image.step, image.big_endian) == (6, order == ">")
    assert bytes(image.data) == b"\1\2\3\4\5\6"
    assert image.data.obj is serialized  # a view, not a copy


@pytest.mark.parametrize(
    ("sec", "nanosec", "stamp"), [(-1, 0, -SECOND), (0, 0, 0), (1, SECOND, -1), (1, 2**32 - 1, -1)]
)
def test_odd_stamps(sec: int, nanosec: int, stamp: int):
    assert cdr.read_stamp(image_cdr(sec=sec, nanosec=nanosec)) == stamp


def test_every_cut_is_an_error():
    serialized = image_cdr()
    for size in range(len(serialized)):
        with pytest.raises(CosmosReasonError) as raised:
            cdr.read_image(serialized[:size])
        assert raised.value.code is ErrorCode.BAD_IMAGE


def test_parameter_list_encoding_is_refused():
    with pytest.raises(CosmosReasonError, match="not plain CDR"):
        cdr.read_stamp(b"\0\3\0\0" + image_cdr()[4:])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_an_error_or_a_message_but_never_anything_else(rubbish: bytes):
    for start in (b"", b"\0\1\0\0", b"\0\0\0\0"):
        for read in (cdr.read_stamp, cdr.read_image, cdr.read_compressed_image):
            with contextlib.suppress(CosmosReasonError):
                read(start + rubbish)
