"""Pixels: blocks moved between depth and space, and ImageDecoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import GraphError, UnsupportedError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    common_dtype,
    normal,
    required_input,
)

BLOCK_MODES = ("DCR", "CRD")
PIXEL_FORMATS = {"RGB": 3, "BGR": 3, "Grayscale": 1}


def block_shape(node: Node) -> tuple[int, tuple[Dim, ...] | None]:
    """Return the block size and the shape of the data.

    Raises:
        GraphError: the mode is unknown, the size is none, or the data has no four axes.
    """
    mode, shape = node.attributes.get("mode") or "DCR", required_input(node, 0).shape
    if mode not in BLOCK_MODES:
        raise GraphError(node.label, f"mode is {mode!r}; give one of {', '.join(BLOCK_MODES)}")
    if shape is not None and len(shape) != 4:
        raise GraphError(node.label, f"rank {len(shape)}, 4 was required; give [n, c, h, w]")
    size = int(node.attributes["blocksize"])
    if size < 1:
        raise GraphError(node.label, f"blocksize is {size}; give at least 1")
    return size, shape


def divided(node: Node, dim: Dim, by: int) -> Dim:
    """Return a dimension divided, `?` for a symbol.

    Raises:
        GraphError: it leaves a rest.
    """
    if not isinstance(dim, int):
        return UNKNOWN
    if dim % by:
        raise GraphError(node.label, f"length {dim} is no multiple of {by}; pad or crop it")
    return dim // by


def times(dim: Dim, factor: int) -> Dim:
    """Return a dimension multiplied, `?` for a symbol."""
    return dim * factor if isinstance(dim, int) else UNKNOWN


def infer_depth_to_space(node: Node) -> list[ValueType]:
    """Infer: channels divided by the block, height and width multiplied."""
    size, shape = block_shape(node)
    dtype = common_dtype(node, [0])
    if shape is None:
        return [ValueType(dtype, None)]
    channels = divided(node, shape[1], size * size)
    return [ValueType(dtype, (shape[0], channels, *(times(d, size) for d in shape[2:])))]


def infer_space_to_depth(node: Node) -> list[ValueType]:
    """Infer: channels multiplied by the block, height and width divided."""
    size, shape = block_shape(node)
    dtype = common_dtype(node, [0])
    if shape is None:
        return [ValueType(dtype, None)]
    sides = (divided(node, d, size) for d in shape[2:])
    return [ValueType(dtype, (shape[0], times(shape[1], size * size), *sides))]


def evaluate_depth_to_space(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Move blocks of channels into space; the mode says whether the block comes first."""
    data, size = np.asarray(inputs[0]), attributes["blocksize"]
    n, c, h, w = data.shape
    depth = c // (size * size)
    if attributes["mode"] == "CRD":
        moved = data.reshape(n, depth, size, size, h, w).transpose(0, 1, 4, 2, 5, 3)
    else:
        moved = data.reshape(n, size, size, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    return [moved.reshape(n, depth, h * size, w * size)]


def evaluate_space_to_depth(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Move blocks of space into channels; the mode says whether the block comes first."""
    data, size = np.asarray(inputs[0]), attributes["blocksize"]
    n, c, h, w = data.shape
    blocks = data.reshape(n, c, h // size, size, w // size, size)
    order = (0, 1, 3, 5, 2, 4) if attributes["mode"] == "CRD" else (0, 3, 5, 1, 2, 4)
    return [blocks.transpose(order).reshape(n, c * size * size, h // size, w // size)]


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


def depth_cases() -> list[Case]:
    """Return both orders of blocks."""
    x = normal(350, 2, 8, 2, 3)
    return [
        Case("depth_first", [x], {"blocksize": 2}),
        Case("columns_first", [x], {"blocksize": 2, "mode": "CRD"}),
    ]


def space_cases() -> list[Case]:
    """Return both orders of blocks."""
    x = normal(351, 1, 2, 4, 6)
    return [
        Case("depth_first", [x], {"blocksize": 2}),
        Case("columns_first", [x], {"blocksize": 2, "mode": "CRD"}),
    ]


def image_cases() -> list[Case]:
    """Return a portable pixel map of two pixels, as colour and as grey."""
    stream = b"P6\n2 1\n255\n" + bytes([255, 0, 0, 10, 20, 30])
    encoded = np.frombuffer(stream, np.uint8)
    return [
        Case("colour", [encoded], {"pixel_format": "BGR"}),
        Case("grey", [encoded], {"pixel_format": "Grayscale"}),
    ]


BLOCK_ATTRIBUTES = {
    "blocksize": Attribute("int", required=True),
    "mode": Attribute("string", "DCR"),
}
SPECS: tuple[OpSpec, ...] = (
    OpSpec(
        "DepthToSpace",
        (1, 11, 13, 28),
        ("input",),
        ("output",),
        infer=infer_depth_to_space,
        evaluate=evaluate_depth_to_space,
        attributes=BLOCK_ATTRIBUTES,
        cases=depth_cases,
    ),
    OpSpec(
        "SpaceToDepth",
        (1, 13, 28),
        ("input",),
        ("output",),
        infer=infer_space_to_depth,
        evaluate=evaluate_space_to_depth,
        attributes=BLOCK_ATTRIBUTES,
        cases=space_cases,
    ),
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
