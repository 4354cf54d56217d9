"""Images and sounds to calibrate on, brought into the form of a graph's input."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.calibration_arrays import required_input
from halfbyte.errors import BackendError, FormatError, HalfbyteError
from halfbyte.ir.dtypes import FLOATING
from halfbyte.ir.graph import Graph, Value

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
SOUNDS = (".wav",)
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
MOST_PIXELS = 1 << 26
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MediaOptions:
    """How images and sounds become inputs.

    image_size: (height, width) where the graph leaves it open. image_mean, image_std: by channel,
    of values from 0 to 1; the defaults are those of ImageNet. sample_rate: of sounds, 0 takes
    theirs.
    """

    image_size: tuple[int, int] | None = None
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    sample_rate: int = 0


@dataclass(frozen=True)
class _Frame:
    """The form of an image input."""

    name: str
    height: int
    width: int
    channels: int
    last: bool
    dtype: str


def image_inputs(
    paths: list[Path], graph: Graph, options: MediaOptions
) -> Iterator[dict[str, Any]]:
    """Yield one image after the other as [1, channels, height, width], or with channels last.

    An image is scaled until it covers the input, and its middle taken; values become (v / 255 -
    mean) / std, integers stay as they are.

    Raises:
        HalfbyteError: the input's size is not known, or a file is no image.
    """
    frame = _frame(required_input(graph, (4,), "images"), options)
    for path in paths:
        pixels = _pixels(path, frame)
        floating = frame.dtype in FLOATING
        made: NDArray[Any] = _normalized(pixels, frame, options) if floating else pixels
        array = made if frame.last else made.transpose(2, 0, 1)
        yield {frame.name: np.ascontiguousarray(array)[None]}


def _frame(value: Value, options: MediaOptions) -> _Frame:
    shape = [n if isinstance(n, int) and n > 0 else 0 for n in value.shape or ()]
    last = shape[1] not in CHANNELS and shape[3] in CHANNELS
    channels = shape[3] if last else shape[1]
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    where = f"calibration: input {value.name!r}"
    if channels not in CHANNELS:
        rule = f"{where}: takes {channels or 'an unknown number of'} channels, 1, 3 or 4 were "
        raise HalfbyteError(f"{rule}required; give .npz files of inputs")
    asked = options.image_size or (height, width)
    if not all(asked):
        raise HalfbyteError(f"{where}: its height and width are open; give --image-size HxW")
    if any(known and known != want for known, want in zip((height, width), asked, strict=True)):
        found = f"takes {height or '?'}x{width or '?'}, not {asked[0]}x{asked[1]}"
        raise HalfbyteError(f"{where}: {found}; leave out --image-size")
    return _Frame(value.name, *asked, channels, last, value.dtype or "float32")


def _pixels(path: Path, frame: _Frame) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        what = "reading images needs Pillow"
        raise BackendError(what, "pip install 'halfbyte[images]'") from None
    size = (frame.width, frame.height)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                found = f"has {image.width}x{image.height} pixels"
                raise FormatError(path, f"{found}, at most {MOST_PIXELS} are read; shrink it")
            plain = image.convert(CHANNELS[frame.channels])
            made = ImageOps.fit(plain, size, Image.Resampling.BILINEAR)
    except HalfbyteError:
        raise
    except Exception as error:  # Pillow's readers each raise their own
        raise FormatError(path, f"is no image that can be read ({error})") from None
    return np.asarray(made, np.uint8).reshape(frame.height, frame.width, frame.channels)


def _normalized(pixels: NDArray[np.uint8], frame: _Frame, options: MediaOptions) -> Floats:
    scaled = pixels.astype(np.float32) / np.float32(255)
    mean, std = (_by_channel(v, frame) for v in (options.image_mean, options.image_std))
    return np.asarray((scaled - mean) / std, np.float32)


def _by_channel(given: tuple[float, ...], frame: _Frame) -> Floats:
    values = np.array(given, np.float32)
    if len(values) == 3 and frame.channels == 1:
        return np.asarray(values.mean(keepdims=True), np.float32)
    if len(values) not in (1, frame.channels):
        raise HalfbyteError(
            f"calibration: {len(values)} values of --image-mean or --image-std were given, input "
            f"{frame.name!r} has {frame.channels} channels; give one for each"
        )
    return values


def sound_inputs(
    paths: list[Path], graph: Graph, options: MediaOptions
) -> Iterator[dict[str, Any]]:
    """Yield sounds as mono float32 in [-1, 1], with leading axes of 1 as the input has them.

    Where the input has a fixed length, sounds are cut into pieces of it, the last filled up with
    silence.

    Raises:
        FormatError: a file is no plain .wav file, or has another rate than asked for or the first.
    """
    value = required_input(graph, (1, 2, 3), "sounds")
    shape = value.shape or ()
    length = shape[-1] if isinstance(shape[-1], int) and shape[-1] > 0 else 0
    lead = (1,) * (len(shape) - 1)
    rate = options.sample_rate
    for path in paths:
        samples, found = read_sound(path)
        rate = rate or found
        if found != rate:
            rule = f"has {found} samples per second, {rate} were required; convert it first"
            raise FormatError(path, rule)
        step = length or len(samples)
        for start in range(0, len(samples), step):
            piece = samples[start : start + step]
            piece = np.pad(piece, (0, step - len(piece)))
            yield {value.name: piece.reshape(*lead, step)}


def read_sound(path: Path) -> tuple[Floats, int]:
    """Return the samples of a .wav file, channels averaged, and how many there are per second.

    Raises:
        FormatError: it is none, is empty, or holds other than whole numbers of 8 to 32 bits.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError, ValueError) as error:
        rule = f"is no .wav file of whole numbers ({error}); convert it first"
        raise FormatError(path, rule) from None
    count = len(raw) // (width * channels)
    if not count or not 1 <= width <= 4 or rate <= 0:
        raise FormatError(path, "holds no samples of 8 to 32 bits; leave it out")
    planes = np.frombuffer(raw, np.uint8, count * channels * width).reshape(-1, width)
    wide = np.zeros((len(planes), 4), np.uint8)
    wide[:, 4 - width :] = planes ^ np.uint8(128) if width == 1 else planes
    values = wide.view("<i4")[:, 0] / np.float64(2**31)
    return values.reshape(count, channels).mean(axis=1).astype(np.float32), rate
