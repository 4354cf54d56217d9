"""Depth and space, and images decoded with and without Pillow."""

from __future__ import annotations

import struct
import sys

import numpy as np
import pytest

from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.graph import Value
from halfbyte.ir.ops.spec import UNKNOWN, normal
from support.op_evaluation import evaluated_one, inferred


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_and_depth_undo_each_other(mode: str) -> None:
    data = normal(1, 2, 12, 3, 4)
    spread = evaluated_one("DepthToSpace", data, blocksize=2, mode=mode)
    assert spread.shape == (2, 3, 6, 8)
    channel = {"DCR": lambda c, r, s: (r * 2 + s) * 3 + c, "CRD": lambda c, r, s: c * 4 + r * 2 + s}
    for c, r, s in np.ndindex(3, 2, 2):
        np.testing.assert_array_equal(spread[:, c, r::2, s::2], data[:, channel[mode](c, r, s)])
    back = evaluated_one("SpaceToDepth", spread, blocksize=2, mode=mode)
    np.testing.assert_array_equal(back, data)


def test_shapes_of_blocks() -> None:
    x = Value("x", "int8", ("n", 8, "h", 4))
    assert inferred("DepthToSpace", x, blocksize=2)[0] == ("int8", ("n", 2, UNKNOWN, 8))
    assert inferred("SpaceToDepth", x, blocksize=2)[0] == ("int8", ("n", 32, UNKNOWN, 2))
    unknown = Value("x", "float32")
    for key in ("DepthToSpace", "SpaceToDepth"):
        assert inferred(key, unknown, blocksize=2)[0] == ("float32", None)


@pytest.mark.parametrize(
    ("shape", "attributes", "rule"),
    [
        ((1, 6, 2, 2), {"blocksize": 2}, "length 6 is no multiple of 4"),
        ((1, 4, 2, 2), {"blocksize": 0}, "blocksize is 0; give at least 1"),
        ((1, 4, 2), {"blocksize": 2}, "rank 3, 4 was required"),
        ((1, 4, 2, 2), {"blocksize": 2, "mode": "RCD"}, "mode is 'RCD'"),
    ],
)
def test_broken_rules(shape: tuple, attributes: dict, rule: str) -> None:
    with pytest.raises(GraphError, match=rule):
        inferred("DepthToSpace", Value("x", "float32", shape), **attributes)


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)


def bitmap(pixels: np.ndarray, bits: int, upwards: bool) -> bytes:
    """Return an uncompressed bitmap."""
    height, width, _ = pixels.shape
    rows = pixels[::-1] if upwards else pixels
    lines = []
    for row in rows[..., ::-1]:
        fourth = np.full((width, bits // 8 - 3), 255, np.uint8)
        line = np.concatenate([row, fourth], axis=1).tobytes()
        lines.append(line + bytes(-len(line) % 4))
    body = b"".join(lines)
    sides = (width, height if upwards else -height)
    info = struct.pack("<IiiHHIIiiII", 40, *sides, 1, bits, 0, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def decoded(stream: bytes, pixel_format: str = "RGB") -> np.ndarray:
    encoded = np.frombuffer(stream, np.uint8)
    return evaluated_one("ImageDecoder", encoded, pixel_format=pixel_format)


@pytest.mark.parametrize(
    "stream",
    [
        b"P6\n# a comment\n5 3 # another\n255\n" + PIXELS.tobytes(),
        bitmap(PIXELS, 24, True),
        bitmap(PIXELS, 24, False),
        bitmap(PIXELS, 32, True),
    ],
)
def test_images_without_compression(stream: bytes) -> None:
    np.testing.assert_array_equal(decoded(stream), PIXELS)
    np.testing.assert_array_equal(decoded(stream, "BGR"), PIXELS[..., ::-1])
    grey = decoded(stream, "Grayscale")
    wanted = PIXELS @ np.asarray([0.299, 0.587, 0.114])
    assert grey.shape == (3, 5, 1)
    assert np.abs(grey[..., 0] - wanted).max() <= 0.51


def test_grey_map() -> None:
    stream = b"P5 2 1 255\n\x07\xff"
    assert decoded(stream).tolist() == [[[7] * 3, [255] * 3]]
    assert decoded(stream, "Grayscale").tolist() == [[[7], [255]]]


def test_other_formats_need_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsupportedError, match=r"install halfbyte\[images\]"):
        decoded(b"\x89PNG\r\n\x1a\n")
    for cut in (b"P6 2 2 255\nxx", b"P6 2", b"P6 2 2 65535\nxx", bitmap(PIXELS, 24, True)[:60]):
        with pytest.raises(UnsupportedError, match="ImageDecoder"):
            decoded(cut)


class FakeImage:
    """What Pillow's Image module offers here."""

    @staticmethod
    def open(stream):
        raise ValueError("damaged")


def test_a_damaged_image_is_an_empty_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    package = type(sys)("PIL")
    package.Image = FakeImage
    package.UnidentifiedImageError = OSError
    monkeypatch.setitem(sys.modules, "PIL", package)
    assert decoded(b"nothing").shape == (0, 0, 3)
    assert decoded(b"nothing", "Grayscale").shape == (0, 0, 1)


def test_pixel_format_is_checked() -> None:
    with pytest.raises(GraphError, match="pixel_format is 'CMYK'"):
        decoded(b"P6", "CMYK")
