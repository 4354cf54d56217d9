"""ImageDecoder: pixels of a picture in a file's bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.graph import Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
)

PIXEL_FORMATS = {"RGB": 3, "BGR": 3, "Grayscale": 1}


def infer_image(node: Node) -> list[ValueType]:
    """Infer: bytes of [height, width, channels].

    Raises:
        GraphError: the pixel format is unknown.
    """
    name = node.attributes.get("pixel_format") or "RGB"
    if name not in PIXEL_FORMATS:
        known = ", ".join(PIXEL_FORMATS)
        raise GraphError(node.label, f"pixel_format is {name!r}; give one of {known}")
    return [ValueType("uint8", (UNKNOWN, UNKNOWN, PIXEL_FORMATS[name]))]


def portable_pixels(stream: bytes) -> NDArray[np.uint8] | None:
    """Return [h, w, 3] of a binary portable grey or pixel map with bytes, None for another."""
    if stream[:2] not in (b"P5", b"P6"):
        return None
    fields: list[bytes] = []
    place = 2
    while len(fields) < 3 and place < len(stream):
        if stream[place : place + 1] == b"#":
            end = stream.find(b"\n", place)
            place = len(stream) if end < 0 else end
        elif stream[place : place + 1].isspace():
            place += 1
        else:
            token = stream[place : place + 20].split(maxsplit=1)[0]
            fields.append(token)
            place += len(token)
    if len(fields) < 3 or not all(f.isdigit() for f in fields) or int(fields[2]) != 255:
        return None
    width, height = int(fields[0]), int(fields[1])
    channels = 3 if stream[:2] == b"P6" else 1
    # One space ends the header.
    pixels = stream[place + 1 : place + 1 + width * height * channels]
    if len(pixels) < width * height * channels:
        return None
    array = np.frombuffer(pixels, np.uint8).reshape(height, width, channels)
    return np.repeat(array, 3, axis=2) if channels == 1 else array


def bitmap_pixels(stream: bytes) -> NDArray[np.uint8] | None:
    """Return [h, w, 3] of an uncompressed bitmap of 24 or 32 bits per pixel, None for another."""
    if stream[:2] != b"BM" or len(stream) < 54:
        return None
    start = int.from_bytes(stream[10:14], "little")
    width = int.from_bytes(stream[18:22], "little", signed=True)
    height = int.from_bytes(stream[22:26], "little", signed=True)
    bits, packing = (int.from_bytes(stream[a:b], "little") for a, b in ((28, 30), (30, 34)))
    if packing or bits not in (24, 32) or width <= 0 or not height:
        return None
    row = (width * bits // 8 + 3) // 4 * 4
    body = stream[start : start + row * abs(height)]
    if len(body) < row * abs(height):
        return None
    rows = np.frombuffer(body, np.uint8).reshape(abs(height), row)[:, : width * bits // 8]
    pixels = rows.reshape(abs(height), width, bits // 8)[..., 2::-1]
    return pixels[::-1] if height > 0 else pixels


def pillow_pixels(stream: bytes) -> NDArray[np.uint8] | None:
    """Return [h, w, 3] of any image that Pillow reads, None for a damaged or unknown one.

    Raises:
        UnsupportedError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UnsupportedError(
            "this image format",
            "ImageDecoder",
            ["BMP", "PPM"],
            "install halfbyte[images] for the others",
        ) from error
    import io

    try:
        with Image.open(io.BytesIO(stream)) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None


def evaluate_image(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Decode an image; one that cannot be decoded gives an empty matrix."""
    stream, name = np.asarray(inputs[0], np.uint8).tobytes(), attributes["pixel_format"]
    pixels = portable_pixels(stream)
    if pixels is None:
        pixels = bitmap_pixels(stream)
    if pixels is None:
        pixels = pillow_pixels(stream)
    if pixels is None:
        return [np.zeros((0, 0, PIXEL_FORMATS[name]), np.uint8)]
    if name == "Grayscale":
        # luma of ITU-R 601 in 16-bit fixed point, rounded
        luma = pixels.astype(np.uint32) @ np.asarray([19595, 38470, 7471], np.uint32) + 0x8000
        return [(luma >> 16).astype(np.uint8)[..., None]]
    return [np.ascontiguousarray(pixels[..., ::-1] if name == "BGR" else pixels)]


def image_cases() -> list[Case]:
    """Return a portable pixel map of two pixels, as colour and as grey."""
    stream = b"P6\n2 1\n255\n" + bytes([255, 0, 0, 10, 20, 30])
    encoded = np.frombuffer(stream, np.uint8)
    return [
        Case("colour", [encoded], {"pixel_format": "BGR"}),
        Case("grey", [encoded], {"pixel_format": "Grayscale"}),
    ]


SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "ImageDecoder",
        (20,),
        ("encoded_stream",),
        ("image",),
        infer=infer_image,
        evaluate=evaluate_image,
        attributes={"pixel_format": Attribute("string", "RGB")},
        cases=image_cases,
    ),
)
