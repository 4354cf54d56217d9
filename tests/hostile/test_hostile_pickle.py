"""Numbered hostile pickled checkpoints: refused with one clear error, nothing run or allocated."""

from __future__ import annotations

import contextlib
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters.hugging_face.pickle_checkpoint import read_pickle_checkpoint
from halfbyte.errors import FormatError, HalfbyteError, UnsupportedError
from support.pickle_files import (
    named,
    number,
    protocol_two,
    state_dict,
    storage,
    tensor,
    text,
    tuple_of,
    write_checkpoint,
    write_zip,
)

STORED = storage("FloatStorage", "0", 4)
SIXTEEN = {"0": bytes(16)}


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + pickle.STOP


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return pickled(named(module, name) + tuple_of(*arguments) + pickle.REDUCE)


def doubling_tuple(depth: int) -> bytes:
    body = pickle.EMPTY_TUPLE
    for index in range(depth):
        body += pickle.BINPUT + bytes([index % 256]) + pickle.BINGET + bytes([index % 256])
        body += pickle.TUPLE2
    return body


PICKLES: dict[str, tuple[bytes, str]] = {
    "01 os.system": (call("os", "system", text("true")), "names 'os.system'"),
    "02 builtins.eval": (call("builtins", "eval", text("1")), "names 'builtins.eval'"),
    "03 getattr": (call("builtins", "getattr", text("a"), text("b")), "names 'builtins.getattr'"),
    "04 torch.load": (call("torch", "load", text("x")), "names 'torch.load'"),
    "05 load from bytes": (
        call("torch.storage", "_load_from_bytes", text("x")),
        "names 'torch.storage._load_from_bytes'",
    ),
    "06 numpy reconstruct": (
        protocol_two(np.ones(2)),
        "'numpy._core.multiarray._reconstruct'",
    ),
    "07 dotted name": (
        pickled(text("torch") + text("FloatStorage.__class__") + pickle.STACK_GLOBAL),
        "names 'torch.FloatStorage.__class__'",
    ),
    "08 name that is no text": (pickled(number(1) + number(2) + pickle.STACK_GLOBAL), "damaged"),
    "09 extension registry": (pickled(pickle.EXT1 + b"\x01"), "opcode b'\\x82'"),
    "10 instance": (pickled(pickle.MARK + pickle.INST + b"os\nsystem\n"), "opcode b'i'"),
    "11 object": (
        pickled(pickle.MARK + named("collections", "OrderedDict") + pickle.OBJ),
        "opcode b'o'",
    ),
    "12 new object": (
        pickled(named("torch", "FloatStorage") + pickle.EMPTY_TUPLE + pickle.NEWOBJ),
        "opcode b'\\x81'",
    ),
    "13 text persistent id": (pickled(pickle.PERSID + b"x\n"), "opcode b'P'"),
    "14 set": (pickled(pickle.EMPTY_SET), "opcode b'\\x8f'"),
    "15 byte array of 2**60": (
        pickled(b"\x96" + struct.pack("<Q", 1 << 60)),
        "opcode b'\\x96'",
    ),
    "16 text of 2**60": (pickled(pickle.BINUNICODE8 + struct.pack("<Q", 1 << 60)), "damaged"),
    "17 memo index of 2**31": (
        pickled(pickle.EMPTY_DICT + pickle.LONG_BINPUT + struct.pack("<I", (1 << 31) - 1)),
        "",
    ),
    "18 frame beyond the end": (
        b"\x80\x04" + pickle.FRAME + struct.pack("<Q", 1 << 40) + b"}.",
        "",
    ),
    "19 no stop": (b"\x80\x02" + pickle.EMPTY_DICT, "damaged"),
    "20 empty": (b"", "damaged"),
    "21 stack underflow": (pickled(pickle.POP), "damaged"),
    "22 exponential key": (
        pickled(pickle.EMPTY_DICT + doubling_tuple(60) + pickle.NONE + pickle.SETITEM),
        "neither a name nor a number",
    ),
    "23 items of a list": (
        pickled(pickle.EMPTY_LIST + text("a") + pickle.NONE + pickle.SETITEM),
        "items are set on something that is no dict",
    ),
    "24 odd items": (
        pickled(pickle.EMPTY_DICT + pickle.MARK + text("a") + pickle.SETITEMS),
        "damaged",
    ),
    "25 state of a plain dict": (
        pickled(pickle.EMPTY_DICT + pickle.EMPTY_DICT + pickle.BUILD),
        "no state dict",
    ),
    "26 ordered dict from pairs": (
        call("collections", "OrderedDict", pickle.EMPTY_LIST),
        "damaged",
    ),
    "27 calling a number": (
        pickled(number(1) + pickle.EMPTY_TUPLE + pickle.REDUCE),
        "damaged",
    ),
    "28 a list of weights": (pickled(pickle.EMPTY_LIST), "a dict of tensors was required"),
    "29 a number as weight": (
        pickled(pickle.EMPTY_DICT + text("a") + number(1) + pickle.SETITEM),
        "entry 'a' is a int, not a tensor",
    ),
    "30 a number as name": (
        pickled(pickle.EMPTY_DICT + number(1) + number(1) + pickle.SETITEM),
        "entry '1' is a int",
    ),
    "31 storage that is missing": (
        state_dict({"a": tensor(storage("FloatStorage", "9", 4), 0, [4], [1])}),
        "storage '9' is missing",
    ),
    "32 storage of another size": (
        state_dict({"a": tensor(storage("FloatStorage", "0", 5), 0, [4], [1])}),
        "claims 5 values, its entry has 16 bytes",
    ),
    "33 negative count": (
        state_dict({"a": tensor(storage("FloatStorage", "0", -1), 0, [4], [1])}),
        "claims -1 values",
    ),
    "34 storage out of the archive": (
        state_dict({"a": tensor(storage("FloatStorage", "../data.pkl", 1), 0, [1], [1])}),
        "is missing from the archive",
    ),
    "35 persistent id of text": (
        pickled(text("x") + pickle.BINPERSID),
        "persistent id str is not a storage",
    ),
    "36 storage of a wrong type": (
        pickled(tuple_of(text("storage"), *[number(1)] * 4) + pickle.BINPERSID),
        "wrong type, key or count",
    ),
    "37 tensor beyond its storage": (
        state_dict({"a": tensor(STORED, 1, [4], [1])}),
        "ends at byte 20 of a storage of 16",
    ),
    "38 negative offset": (state_dict({"a": tensor(STORED, -1, [1], [1])}), "wrong storage or"),
    "39 offset of 1000 bits": (
        state_dict({"a": tensor(STORED, 1 << 1000, [1], [1])}),
        "of a storage of 16",
    ),
    "40 negative dimension": (state_dict({"a": tensor(STORED, 0, [-1], [1])}), "tuples of counts"),
    "41 huge dimension": (state_dict({"a": tensor(STORED, 0, [1 << 60], [1])}), "tuples of counts"),
    "42 forty dimensions": (
        state_dict({"a": tensor(STORED, 0, [1] * 40, [1] * 40)}),
        "tuples of counts",
    ),
    "43 shape without strides": (
        state_dict({"a": tensor(STORED, 0, [2, 2], [1])}),
        "not as many strides",
    ),
    "44 tensor without storage": (
        state_dict({"a": tensor(number(1), 0, [1], [1])}),
        "wrong storage or offset",
    ),
    "45 scattered strides": (state_dict({"a": tensor(STORED, 0, [2], [2])}), "with strides (2,)"),
    "46 expanded tensor": (state_dict({"a": tensor(STORED, 0, [4], [0])}), "with strides (0,)"),
    "47 rebuild with one argument": (
        call("torch._utils", "_rebuild_tensor_v2", STORED),
        "damaged",
    ),
    "48 untyped rebuild without dtype": (
        call("torch._utils", "_rebuild_tensor_v3", STORED, *[number(0)] * 6),
        "wrong storage or dtype",
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickle(name: str, tmp_path: Path) -> None:
    content, message = PICKLES[name]
    path = write_zip(tmp_path / "pytorch_model.bin", content, SIXTEEN)
    if not message:  # harmless, and newer Pythons refuse it
        with contextlib.suppress(FormatError):
            assert read_pickle_checkpoint(path) == {}
        return
    with pytest.raises((FormatError, UnsupportedError)) as caught:
        read_pickle_checkpoint(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


GOOD = state_dict({"a": tensor(STORED, 0, [4], [1])})


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(b"nothing like it")
    with pytest.raises(FormatError, match="neither a zip archive nor a torch checkpoint"):
        read_pickle_checkpoint(path)


def test_layout_from_before_1_6(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    path.write_bytes(magic + pickle.dumps(1001, protocol=2))
    with pytest.raises(UnsupportedError, match=r"layout from before version 1\.6 is not supported"):
        read_pickle_checkpoint(path)


def test_compressed_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.bin", GOOD, SIXTEEN, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="is compressed; torch stores it plainly"):
        read_pickle_checkpoint(path)


def test_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", GOOD)
        archive.writestr("archive/byteorder", b"big")
    with pytest.raises(UnsupportedError, match="a byte order other than little"):
        read_pickle_checkpoint(path)


@pytest.mark.parametrize("roots", [[], ["one", "two"]])
def test_wrong_number_of_pickles(roots: list[str], tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", b"")
        for root in roots:
            archive.writestr(f"{root}/data.pkl", GOOD)
    with pytest.raises(FormatError, match=f"{len(roots)} entries NAME/data.pkl, one was required"):
        read_pickle_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_entry_twice(tmp_path: Path) -> None:
    extra = {"archive/data/0": bytes(16)}
    path = write_zip(tmp_path / "m.bin", GOOD, SIXTEEN, extra=extra)
    with pytest.raises(FormatError, match="stands twice"):
        read_pickle_checkpoint(path)


def test_too_large_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "halfbyte.converters.hugging_face.pickle_checkpoint"
    path = write_zip(tmp_path / "m.bin", GOOD, SIXTEEN)
    monkeypatch.setattr(f"{module}.MAX_PICKLE_BYTES", 10)
    with pytest.raises(FormatError, match="at most 10"):
        read_pickle_checkpoint(path)
    monkeypatch.setattr(f"{module}.MAX_ENTRIES", 2)
    with pytest.raises(FormatError, match="4 entries, at most 2"):
        read_pickle_checkpoint(path)


def test_truncated_everywhere(tmp_path: Path) -> None:
    sound = write_checkpoint(tmp_path / "sound.bin", {"a": np.ones(4, np.float32)}).read_bytes()
    path = tmp_path / "m.bin"
    for length in range(0, len(sound), 3):
        path.write_bytes(sound[:length])
        with pytest.raises(HalfbyteError):
            read_pickle_checkpoint(path)


def test_every_byte_flipped(tmp_path: Path) -> None:
    sound = write_checkpoint(tmp_path / "sound.bin", {"a": np.ones(4, np.float32)}).read_bytes()
    path = tmp_path / "m.bin"
    for position in range(len(sound)):
        broken = bytearray(sound)
        broken[position] ^= 0x15
        path.write_bytes(bytes(broken))
        try:
            found = read_pickle_checkpoint(path)
        except HalfbyteError:
            continue
        for array in found.values():
            array.part.read()


def test_entry_names_that_are_no_text(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.bin", GOOD, SIXTEEN)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    utf8_name = (1 << 11).to_bytes(2, "little")
    broken = bytearray(content)
    broken[start + 8 : start + 10] = utf8_name
    broken[start + 46] = 0xFF
    path.write_bytes(bytes(broken))
    with pytest.raises(FormatError, match="the zip archive cannot be read"):
        read_pickle_checkpoint(path)
