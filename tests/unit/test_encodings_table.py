"""The table of encodings and its names."""

from __future__ import annotations

import itertools
import sys
import types
from dataclasses import dataclass

import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import ENCODINGS, encoding_from_name, list_encodings
from halfbyte.ir.encodings.affine import SCALE_SUFFIX, ZERO_SUFFIX, Affine
from halfbyte.ir.encodings.dense import DTYPES, Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.ggml_legacy import Q4_0


@pytest.mark.parametrize(
    ("name", "dtype_name"),
    [
        ("float32", "float32"),
        ("F32", "float32"),
        ("F16", "float16"),
        ("BF16", "bfloat16"),
        ("F64", "float64"),
        ("I8", "int8"),
        ("i8", "int8"),
        ("u64", "uint64"),
        ("bool", "bool"),
        ("float8_e4m3fn", "float8_e4m3fn"),
    ],
)
def test_dense_names_and_their_gguf_aliases(name: str, dtype_name: str) -> None:
    assert encoding_from_name(name) == Dense(dtype_name)


def test_every_dtype_has_a_name_that_is_no_affine_type() -> None:
    for dtype_name in DTYPES:
        encoding = Dense(dtype_name)
        assert encoding_from_name(encoding.name) == encoding
    assert isinstance(encoding_from_name("int8"), Affine)


def test_all_affine_combinations_have_their_own_name() -> None:
    fields = itertools.product(
        range(2, 9), (0, 1, 32, 100), ZERO_SUFFIX, SCALE_SUFFIX, (False, True)
    )
    encodings = [Affine(*combination) for combination in fields]
    names = {encoding.name for encoding in encodings}
    assert len(names) == len(encodings)
    assert all(encoding_from_name(encoding.name) == encoding for encoding in encodings)


def test_names_spell_the_fields() -> None:
    assert encoding_from_name("int4-g128") == Affine(4, 128)
    assert encoding_from_name("int8") == Affine(8)
    assert encoding_from_name("int4-g32-act-order").name == "int4-g32-actorder"
    assert encoding_from_name("int4-g32-asym-f32-actorder") == Affine(
        4, 32, "uint8", "float32", True
    )
    assert encoding_from_name("int3-fzp-bf16") == Affine(3, 0, "float", "bfloat16")


@pytest.mark.parametrize(
    "name",
    ["q4_0", "int4-g0", "int4-g032", "int9", "int1", "int16", "int4-f32-asym", "float31", ""],
)
def test_other_spellings_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedError):
        encoding_from_name(name)


def test_the_error_names_the_nearest_encodings() -> None:
    with pytest.raises(UnsupportedError) as error:
        encoding_from_name("q4_0")
    message = "encodings: encoding 'q4_0' is not supported; supported: Q4_0, Q8_0, Q5_0, Q4_K, Q4_1"
    assert str(error.value) == message
    with pytest.raises(UnsupportedError, match=r"supported: float64, float32, .* more"):
        encoding_from_name("zzzzzz")


def test_constructors_refuse_what_has_no_name() -> None:
    with pytest.raises(UnsupportedError, match="dtype 'complex32' is not supported"):
        Dense("complex32")
    with pytest.raises(UnsupportedError, match="affine encoding of 9 bits"):
        Affine(9)
    with pytest.raises(UnsupportedError, match="group size -1"):
        Affine(4, -1)


def test_an_encoding_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Toy(Q4_0):
        @property
        def name(self) -> str:
            return "TOY"

    module = types.ModuleType("toy_encoding")
    module.Toy = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_encoding", module)
    monkeypatch.setitem(ENCODINGS, "TOY", "toy_encoding:Toy")
    assert encoding_from_name("TOY") == Toy()
    assert Toy() in list_encodings()
    with pytest.raises(UnsupportedError, match="supported: TOY"):
        encoding_from_name("tOY")


def test_defaults_of_the_interface() -> None:
    encoding = Q4_0()
    assert Encoding.grid.fget(encoding) is None  # type: ignore[attr-defined]
    assert Encoding.error_bound.fget(encoding) == float("inf")  # type: ignore[attr-defined]
    assert Encoding.can_decode.fget(encoding) is True  # type: ignore[attr-defined]
    assert Q4_0.from_name("Q4_1") is None
