"""The wire format of ONNX files, read in place.

An own reader rather than the protobuf package because the position of every payload in the file
must be known, so that weights stay mapped; because files over 2 GB, hub-cache links and hostile
files must be read or refused here; and because importing onnx costs a third of a second.

Source: protobuf's encoding guide, onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.onnx.messages import (
    FIELDS,
    Kind,
    Message,
    ModelMessage,
    Run,
    Span,
)
from halfbyte.errors import FormatError

MAX_DEPTH = 100
MAX_MESSAGES = 1 << 23
MAX_LIST = 1 << 22
VARINT_BYTES = 10
SHORT_BYTES = 64

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIRES: dict[Kind, tuple[int, ...]] = {
    Kind.INT: (VARINT,),
    Kind.FLOAT: (FIXED32,),
    Kind.INTS: (VARINT, BYTES),
    Kind.FLOATS: (FIXED32, BYTES),
}
_FIXED = {4: FIXED32, 8: FIXED64}

M = TypeVar("M", bound=Message)


class Buffer:
    """A mapped file and the rules of its wire format; every read is checked against its end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        """Take the file's bytes; nothing is read yet."""
        self.path = path
        self.data = data
        self.size = len(data)
        self.messages = 0

    def fail(self, rule: str, offset: int) -> NoReturn:
        """Raise the error for a broken rule at a byte."""
        raise FormatError(self.path, rule, offset)

    def take(self, span: Span) -> bytes:
        """Return the bytes of a span."""
        return self.data[span.offset : span.offset + span.length]

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return an unsigned varint of at most 64 bits, and the position after it."""
        value = shift = 0
        start = at
        while at < end:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    self.fail("a number has more than 64 bits; the file is damaged", start)
                return value, at
            shift += 7
            if at - start == VARINT_BYTES:
                self.fail("a number has more than 10 bytes; the file is damaged", start)
        self.fail("ends inside a number; the file is cut off", start)

    def length(self, at: int, end: int) -> tuple[int, int]:
        """Return (start, stop) of a length-delimited field."""
        start = at
        count, at = self.varint(at, end)
        if count > end - at:
            left = end - at
            self.fail(f"a field needs {count} bytes, {left} are left; the file is cut off", start)
        return at, at + count

    def skip(self, tag: int, at: int, end: int) -> int:
        """Return the position after a field that is not kept."""
        wire = tag & 7
        if wire == VARINT:
            return self.varint(at, end)[1]
        if wire == BYTES:
            return self.length(at, end)[1]
        if wire in (FIXED64, FIXED32):
            after = at + (8 if wire == FIXED64 else 4)
            if after > end:
                self.fail("ends inside a number; the file is cut off", at)
            return after
        self.fail(f"wire type {wire} is not part of ONNX files; the file is damaged", at)

    def message(self, kind: type[M], start: int, end: int, depth: int = 0) -> M:
        """Return the message in bytes [start, end).

        Raises:
            FormatError: a rule of the wire format is broken, or messages nest too deep.
        """
        if depth > MAX_DEPTH:
            self.fail(f"messages nest deeper than {MAX_DEPTH} levels", start)
        self.messages += 1
        if self.messages > MAX_MESSAGES:
            self.fail(f"holds more than {MAX_MESSAGES} messages", start)
        made = kind()
        made.offset = start
        actions, data, at = _ACTIONS[kind], self.data, start
        while at < end:
            field_at = at
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = self.varint(field_at, end)
            action = actions.get(tag)
            if action is not None:
                at = action(self, made, at, end, depth)
            else:
                self._refuse(kind, tag, field_at)
                at = self.skip(tag, at, end)
        return made

    def _refuse(self, kind: type[Message], tag: int, at: int) -> None:
        number = tag >> 3
        if number == 0:
            self.fail("field number 0 is not allowed; the file is damaged", at)
        if number in FIELDS[kind]:
            name = f"{kind.__name__}.{FIELDS[kind][number].name}"
            self.fail(f"{name} has wire type {tag & 7}; the file is damaged", at)


Action = Callable[[Buffer, Any, int, int, int], int]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _append(made: Any, name: str, value: Any) -> None:
    held = getattr(made, name)
    if held:
        held.append(value)
    else:
        setattr(made, name, [value])


def _reads_int(name: str) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        value, at = buffer.varint(at, end)
        setattr(made, name, _signed(value))
        return at

    return read


def _reads_float(name: str) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        after = buffer.skip(FIXED32, at, end)
        setattr(made, name, struct.unpack_from("<f", buffer.data, at)[0])
        return after

    return read


def _reads_text(name: str, *, repeated: bool) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        start, stop = at + 1, 0
        if at < end and buffer.data[at] < 0x80:
            stop = start + buffer.data[at]
        if not stop or stop > end:
            start, stop = buffer.length(at, end)
        text = buffer.data[start:stop].decode("utf-8", "surrogateescape")
        if repeated:
            _append(made, name, text)
        else:
            setattr(made, name, text)
        return stop

    return read


def _reads_bytes(name: str, *, repeated: bool) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        start, stop = buffer.length(at, end)
        span = Span(start, stop - start)
        if repeated:
            _append(made, name, span)
        else:
            setattr(made, name, span)
        return stop

    return read


def _reads_message(name: str, message: type[Message], *, repeated: bool) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        start, stop = buffer.length(at, end)
        inner = buffer.message(message, start, stop, depth + 1)
        if repeated:
            _append(made, name, inner)
        elif getattr(made, name) is not None:
            buffer.fail(f"{type(made).__name__}.{name} stands twice, once was required", at)
        else:
            setattr(made, name, inner)
        return stop

    return read


def _list(buffer: Buffer, made: Any, name: str, more: int, at: int) -> list[Any]:
    """Return the list of a repeated number that is to grow by `more`."""
    held = getattr(made, name)
    if len(held) + more > MAX_LIST:
        buffer.fail(f"{name} has more than {MAX_LIST} numbers", at)
    if not held:
        held = []
        setattr(made, name, held)
    found: list[Any] = held
    return found


def _reads_packed(name: str, width: int) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        start, stop = buffer.length(at, end)
        found = _list(buffer, made, name, stop - start, at)
        if not width and stop - start <= SHORT_BYTES:
            while start < stop:
                value, start = buffer.varint(start, stop)
                found.append(_signed(value))
        else:
            run = Run(0, width, [Span(start, stop - start)])
            found.extend(numbers(buffer, run).tolist())
        return stop

    return read


def _reads_single(name: str, width: int) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        found = _list(buffer, made, name, 1, at)
        if width:
            after = buffer.skip(FIXED32, at, end)
            found.append(struct.unpack_from("<f", buffer.data, at)[0])
            return after
        value, after = buffer.varint(at, end)
        found.append(_signed(value))
        return after

    return read


def _reads_run(name: str, width: int, *, packed: bool) -> Action:
    def read(buffer: Buffer, made: Any, at: int, end: int, depth: int) -> int:
        if made.runs is None:
            made.runs = {}
        run = made.runs.setdefault(name, Run(0, width))
        if packed:
            start, stop = buffer.length(at, end)
            run.spans.append(Span(start, stop - start))
            return stop
        _list(buffer, run, "singles", 1, at).append(at)
        return buffer.skip(_FIXED.get(width, VARINT), at, end)

    return read


def _actions(kind: type[Message]) -> dict[int, Action]:
    found: dict[int, Action] = {}
    for number, (name, form, message, width) in FIELDS[kind].items():
        delimited, single = number << 3 | BYTES, number << 3 | _FIXED.get(width, VARINT)
        repeated = form in (Kind.TEXTS, Kind.BYTES_LIST, Kind.MESSAGES)
        if form in (Kind.TEXT, Kind.TEXTS):
            found[delimited] = _reads_text(name, repeated=repeated)
        elif form in (Kind.BYTES, Kind.BYTES_LIST):
            found[delimited] = _reads_bytes(name, repeated=repeated)
        elif message is not None:
            found[delimited] = _reads_message(name, message, repeated=repeated)
        elif form is Kind.INT:
            found[single] = _reads_int(name)
        elif form is Kind.FLOAT:
            found[single] = _reads_float(name)
        elif form is Kind.RUNS:
            found[delimited] = _reads_run(name, width, packed=True)
            found[single] = _reads_run(name, width, packed=False)
        else:
            found[delimited] = _reads_packed(name, width)
            found[single] = _reads_single(name, width)
    return found


_ACTIONS = {kind: _actions(kind) for kind in FIELDS}


def run_length(buffer: Buffer, run: Run) -> int:
    """Return how many numbers a run holds.

    Raises:
        FormatError: a packed run does not hold whole numbers.
    """
    count = len(run.singles)
    for span in run.spans:
        if run.width:
            if span.length % run.width:
                buffer.fail(
                    f"a list of {span.length} bytes holds no whole {run.width}-byte numbers",
                    span.offset,
                )
            count += span.length // run.width
        elif span.length:
            ends = np.frombuffer(buffer.data, np.uint8, span.length, span.offset) < 0x80
            if not ends[-1]:
                buffer.fail("ends inside a number; the file is damaged", span.offset)
            count += int(np.count_nonzero(ends))
    return count


def numbers(buffer: Buffer, run: Run) -> NDArray[Any]:
    """Return the numbers of a run: int64 for varints, else float32 or float64.

    Raises:
        FormatError: a number has more than 64 bits.
    """
    dtype: np.dtype[Any] = np.dtype({0: "<i8", 4: "<f4", 8: "<f8"}[run.width])
    pieces = [np.empty(0, dtype)]
    if run.singles:
        pieces.append(_singles(buffer, run, dtype))
    for span in run.spans:
        if run.width:
            count = run_length(buffer, Run(0, run.width, [span]))
            pieces.append(np.frombuffer(buffer.data, dtype, count, span.offset))
        elif span.length:
            pieces.append(_varints(buffer, span))
    return np.concatenate(pieces)


def _singles(buffer: Buffer, run: Run, dtype: np.dtype[Any]) -> NDArray[Any]:
    if run.width:
        joined = b"".join(buffer.data[at : at + run.width] for at in run.singles)
        return np.frombuffer(joined, dtype)
    values = [_signed(buffer.varint(at, buffer.size)[0]) for at in run.singles]
    return np.array(values, dtype)


def _varints(buffer: Buffer, span: Span) -> NDArray[np.int64]:
    raw = np.frombuffer(buffer.data, np.uint8, span.length, span.offset)
    ends = np.flatnonzero(raw < 0x80)
    if not len(ends) or ends[-1] != len(raw) - 1:
        buffer.fail("ends inside a number; the file is damaged", span.offset)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    longest = int(lengths.max())
    tenth = lengths == VARINT_BYTES
    if longest > VARINT_BYTES or (raw[ends[tenth]] > 1).any():
        buffer.fail("a number has more than 64 bits; the file is damaged", span.offset)
    values = np.zeros(len(ends), np.uint64)
    for step in range(longest):
        has = lengths > step
        digit = (raw[starts[has] + step] & 0x7F).astype(np.uint64)
        values[has] |= digit << np.uint64(7 * step)
    return values.view(np.int64)


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Yield the bytes of a file.

    Raises:
        FormatError: it is no regular file, or empty.
    """
    if not path.is_file():
        raise FormatError(path, "is no regular file, one was required")
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise FormatError(path, "the file is empty; copy it again")
        # Not closed here: arrays over it may live on in the frames of an error being raised.
        yield mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def parse(path: Path, data: mmap.mmap | bytes) -> tuple[Buffer, ModelMessage]:
    """Return the buffer and the model message of a whole file.

    Raises:
        FormatError: the file breaks a rule of the wire format.
    """
    buffer = Buffer(path, data)
    return buffer, buffer.message(ModelMessage, 0, buffer.size)
