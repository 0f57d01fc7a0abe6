# SPDX-License-Identifier: Apache-2.0
"""Every encoding, with padded rows and in both byte orders, against values worked out by hand."""

import dataclasses
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.ros.cdr import CompressedImage, RawImage
from cosmos_reason_node.ros.convert import ENCODINGS, convert_compressed, convert_image
from cosmos_reason_node.vision.resize import resize

HEIGHT, WIDTH = 6, 8
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
GRAY = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)


def as_is(height: int, width: int) -> tuple[int, int]:
    return height, width


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=2)


def message(encoding: str, pixels: np.ndarray, *, padding: int = 0, big_endian: bool = False) -> RawImage:
    """An Image with ``padding`` bytes of rubbish after each row."""
    height, width = pixels.shape[:2]
    ordered = pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
    rows = np.ascontiguousarray(ordered).view(np.uint8).reshape(height, -1)
    rows = np.hstack([rows, np.full((height, padding), 0xA5, np.uint8)])
    return RawImage(
        frame_id="camera",
        height=height,
        width=width,
        encoding=encoding,
        big_endian=big_endian,
        step=rows.shape[1],
        data=memoryview(rows.tobytes()),
    )


def wide(values: np.ndarray) -> np.ndarray:
    """16-bit values whose scaled 8-bit values are known: x * 257 -> x."""
    return values.astype(np.uint16) * 257


DEPTH_MM = np.linspace(0, 12000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
DEPTH_RGB = three(np.minimum(np.rint(DEPTH_MM.astype(float) * 255 / 10000), 255).astype(np.uint8))

CASES = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "rgba8": (np.concatenate([RGB, ALPHA], 2), RGB),
    "bgra8": (np.concatenate([RGB[..., ::-1], ALPHA], 2), RGB),
    "mono8": (GRAY, three(GRAY)),
    "8UC1": (GRAY, three(GRAY)),
    "rgb16": (wide(RGB), RGB),
    "bgr16": (wide(RGB[..., ::-1]), RGB),
    "rgba16": (wide(np.concatenate([RGB, ALPHA], 2)), RGB),
    "bgra16": (wide(np.concatenate([RGB[..., ::-1], ALPHA], 2)), RGB),
    "mono16": (wide(GRAY), three(GRAY)),
    "16UC1": (DEPTH_MM, DEPTH_RGB),
}


@pytest.mark.parametrize("padding", [0, 1, 13])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("encoding", CASES)
def test_values(encoding: str, big_endian: bool, padding: int):
    pixels, expected = CASES[encoding]
    converted = convert_image(message(encoding, pixels, padding=padding, big_endian=big_endian), as_is)
    np.testing.assert_array_equal(converted.rgb, expected)
    assert (converted.encoding, converted.height, converted.width) == (encoding, HEIGHT, WIDTH)


@pytest.mark.parametrize("big_endian", [False, True])
def test_depth_in_metres_agrees_with_depth_in_millimetres_and_no_reading_is_black(big_endian: bool):
    metres = DEPTH_MM.astype(np.float32) / 1000
    metres[0, :3] = np.nan, np.inf, -1.0
    rgb = convert_image(message("32FC1", metres, padding=3, big_endian=big_endian), as_is).rgb
    assert not rgb[0, :3].any()
    np.testing.assert_allclose(rgb[1:].astype(int), DEPTH_RGB[1:].astype(int), atol=1)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv_of_a_flat_colour(encoding: str, padding: int):
    # BT.601, limited range: (Y, U, V) of pure red is (81, 90, 240).
    y, u, v = 81, 90, 240
    pair = [u, y, v, y] if encoding in ("yuv422", "uyvy") else [y, u, y, v]
    pixels = np.tile(np.array(pair, np.uint8), (HEIGHT, WIDTH // 2)).reshape(HEIGHT, WIDTH, 2)
    rgb = convert_image(message(encoding, pixels, padding=padding), as_is).rgb
    np.testing.assert_allclose(rgb.reshape(-1, 3), [[254, 0, 0]] * (HEIGHT * WIDTH), atol=2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("padding", [0, 3])
def test_bayer_of_a_flat_colour(pattern: str, bits: int, padding: int):
    color = {"r": 200, "g": 120, "b": 40}
    cell = np.array([color[c] for c in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(cell, (HEIGHT // 2, WIDTH // 2))
    pixels = mosaic if bits == 8 else wide(mosaic)
    rgb = convert_image(
        message(f"bayer_{pattern}{bits}", pixels, padding=padding, big_endian=True), as_is
    ).rgb
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.uint8([200, 120, 40]), rgb.shape))


def test_every_encoding_is_tested_here():
    tested = {*CASES, "32FC1", "yuv422", "uyvy", "yuv422_yuy2", "yuyv"}
    tested |= {f"bayer_{p}{b}" for p in ("rggb", "bggr", "gbrg", "grbg") for b in (8, 16)}
    assert tested == set(ENCODINGS)


def test_frames_are_resized_and_do_not_share_the_messages_memory():
    image = message("rgb8", RGB)
    same = convert_image(image, as_is).rgb
    assert not np.shares_memory(same, np.frombuffer(image.data, np.uint8))
    assert same.flags.writeable
    half = convert_image(image, lambda h, w: (h // 2, w // 2)).rgb
    mean = RGB.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(half, mean, atol=0.51)


def test_bgr_is_resized_like_rgb():
    rgb = RNG.integers(0, 256, (120, 160, 3), np.uint8)
    small = [
        convert_image(message(encoding, pixels), lambda h, w: (56, 84)).rgb
        for encoding, pixels in (("rgb8", rgb), ("bgr8", rgb[..., ::-1]))
    ]
    np.testing.assert_array_equal(*small)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "nv21"}, "nv21"),
        ({"encoding": ""}, "encoding ''"),
        ({"step": WIDTH * 3 - 1}, "step"),
        ({"step": 0}, "step"),
        ({"step": 2**32 - 1}, "step"),
        ({"data": memoryview(b"")}, "0 bytes of data"),
        ({"data": memoryview(RGB.tobytes()[:-1])}, "bytes of data"),
        ({"data": memoryview(RGB.tobytes() + b"x")}, "bytes of data"),
        ({"height": 0}, "empty or absurd"),
        ({"width": 0}, "empty or absurd"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, "absurd"),
        ({"height": 16384, "width": 16384}, "absurd"),
        ({"encoding": "yuv422", "width": 7}, "even width"),
    ],
)
def test_bad_images_say_what_is_wrong(changes: dict, said: str):
    with pytest.raises(CosmosReasonError, match=said) as raised:
        convert_image(dataclasses.replace(message("rgb8", RGB), **changes), as_is)
    assert raised.value.code is ErrorCode.BAD_IMAGE


def test_a_size_that_the_rule_refuses_is_a_bad_image():
    def refuse(height: int, width: int) -> tuple[int, int]:
        raise ValueError("aspect ratio")

    with pytest.raises(CosmosReasonError, match="aspect ratio"):
        convert_image(message("rgb8", RGB), refuse)


# --- compressed ---


def scene(height: int, width: int) -> np.ndarray:
    """Smooth colours with edges, the kind of content JPEG is for."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) % 255], -1).astype(np.uint8)
    cv2.circle(image, (width // 2, height // 2), height // 4, (250, 30, 60), -1)
    return image


def compressed(data: bytes, format: str = "jpeg") -> CompressedImage:
    return CompressedImage("camera", format, memoryview(data))


def test_jpeg_is_decoded_to_rgb():
    image = scene(96, 128)
    converted = convert_compressed(compressed(simplejpeg.encode_jpeg(image, 95)), as_is)
    assert (converted.height, converted.width, converted.encoding) == (96, 128, "jpeg")
    assert np.abs(converted.rgb.astype(int) - image).mean() < 4


def test_gray_jpeg_becomes_rgb():
    gray = scene(96, 128)[..., :1].copy()
    rgb = convert_compressed(compressed(simplejpeg.encode_jpeg(gray, 95, "GRAY")), as_is).rgb
    assert rgb.shape == (96, 128, 3)
    assert (rgb[..., 0] == rgb[..., 2]).all()


@pytest.mark.parametrize("size", [(84, 112), (252, 336)])
def test_shrinking_while_decoding_hardly_moves_the_numbers(size: tuple[int, int]):
    data = simplejpeg.encode_jpeg(scene(1080, 1440), 90)
    exact = resize(simplejpeg.decode_jpeg(data), size)
    shrunk = convert_compressed(compressed(data), lambda h, w: size).rgb
    assert np.abs(shrunk.astype(int) - exact).mean() < 0.6


@pytest.mark.parametrize(
    "pixels", [RGB[..., ::-1], np.concatenate([RGB[..., ::-1], ALPHA], 2), wide(RGB[..., ::-1])]
)
def test_png_in_colour(pixels: np.ndarray):
    data = cv2.imencode(".png", pixels)[1].tobytes()
    np.testing.assert_array_equal(convert_compressed(compressed(data, "png"), as_is).rgb, RGB)


def test_png_in_gray_and_depth():
    gray = cv2.imencode(".png", wide(GRAY))[1].tobytes()
    np.testing.assert_array_equal(
        convert_compressed(compressed(gray, "mono16; png compressed"), as_is).rgb, three(GRAY)
    )
    depth = cv2.imencode(".png", DEPTH_MM)[1].tobytes()
    np.testing.assert_array_equal(
        convert_compressed(compressed(depth, "16UC1; png compressed"), as_is).rgb, DEPTH_RGB
    )


@pytest.mark.parametrize(
    ("suffix", "declared"),
    [
        (".jpg", "bayer_rggb8; jpeg compressed bayer_rggb8"),
        (".jpg", "bayer_rggb8; jpeg compressed "),
        (".png", "bayer_rggb8; png compressed "),
    ],
)
def test_a_compressed_mosaic_has_colours(suffix: str, declared: str):
    """A red and a blue half, as image_transport sends them for a Bayer camera: one channel."""
    mosaic = np.full((96, 128), 20, np.uint8)
    mosaic[0::2, 0:64:2], mosaic[1::2, 65::2] = 230, 230
    data = cv2.imencode(suffix, mosaic, [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else [])[1]
    rgb = convert_compressed(compressed(data.tobytes(), declared), lambda h, w: (24, 32)).rgb
    np.testing.assert_allclose(rgb[4:20, 2:13].mean((0, 1)), (230, 20, 20), atol=12)
    np.testing.assert_allclose(rgb[4:20, 19:30].mean((0, 1)), (20, 20, 230), atol=12)
    grey = convert_compressed(
        compressed(data.tobytes(), declared.split(";")[0] + "; jpeg compressed mono8"), as_is
    )
    assert (grey.rgb[..., 0] == grey.rgb[..., 2]).all(), "the publisher says that it has converted it"


def test_a_16_bit_mosaic_as_png():
    mosaic = np.full((96, 128), 20, np.uint16)
    mosaic[0::2, 0::2] = 230
    data = cv2.imencode(".png", mosaic * 257)[1].tobytes()
    rgb = convert_compressed(compressed(data, "bayer_rggb16; png compressed "), as_is).rgb
    np.testing.assert_allclose(rgb[10:80, 10:100].mean((0, 1)), (230, 20, 20), atol=2)


JPEG = simplejpeg.encode_jpeg(scene(96, 128))
PNG = cv2.imencode(".png", scene(96, 128))[1].tobytes()


def png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]


@pytest.mark.parametrize(
    ("data", "format", "said"),
    [
        (b"", "jpeg", "no data"),
        (JPEG[: len(JPEG) // 2], "jpeg", "damaged or cut off"),
        (JPEG[:100], "jpeg", "header"),
        (JPEG[:1], "jpeg", "not JPEG or PNG"),
        (PNG[: len(PNG) // 2], "png", "damaged or cut off"),
        (PNG[:12], "png", "cut off"),
        (png_claiming(60000, 60000), "png", "absurd"),
        (b"RIFF....WEBP", "webp", "webp"),
        (bytes(12) + PNG, "16UC1; compressedDepth png", "compressedDepth"),
    ],
)
def test_bad_compressed_images_say_what_is_wrong(data: bytes, format: str, said: str):
    with pytest.raises(CosmosReasonError, match=said) as raised:
        convert_compressed(compressed(data, format), as_is)
    assert raised.value.code is ErrorCode.BAD_IMAGE
