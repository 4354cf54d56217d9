"""Every grid encoding as ONNX constants and back, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.onnx.language.weight_form import (
    NIBBLES,
    SIGNED,
    column_order,
    form_of,
    restored,
    stored_parts,
    verdict_of,
)
from halfbyte.ir.encodings import encoding_from_name, list_encodings
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import Verdict
from halfbyte.ir.tensor import ArrayPart, Tensor

ROWS, COLUMNS = 5, 512
GRIDS = [e for e in list_encodings() if form_of(e, COLUMNS) is not None]
STYLES = (NIBBLES, SIGNED)


def encoded(encoding: Encoding, columns: int = COLUMNS, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal((ROWS, columns)).astype(np.float32)
    parts = {name: ArrayPart(array) for name, array in encoding.encode(values).items()}
    return Tensor("weight", (ROWS, columns), encoding, parts)


def round_trip(tensor: Tensor, style: str) -> Tensor:
    form = form_of(tensor.encoding, tensor.columns)
    stored = dict(stored_parts(tensor, form, style))
    specs = form.specs(tensor.rows, style)
    assert {n: (p.dtype, p.shape) for n, p in stored.items()} == {
        n: (s.dtype, s.shape) for n, s in specs.items()
    }
    if form.act_order:
        stored["order"] = ArrayPart(column_order(tensor).reshape(1, -1))
    return restored(tensor, form, style, stored)


def assert_same_parts(found: Tensor, expected: Tensor) -> None:
    assert set(found.parts) == set(expected.parts)
    for name, part in expected.parts.items():
        np.testing.assert_array_equal(found.parts[name].read(), part.read(), err_msg=name)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("encoding", GRIDS, ids=str)
def test_every_grid_encoding_comes_back_byte_for_byte(encoding, style):
    tensor = encoded(encoding)
    found = round_trip(tensor, style)
    assert_same_parts(found, tensor)
    np.testing.assert_array_equal(found.read(2, 4)[next(iter(found.parts))],
                                  tensor.read(2, 4)[next(iter(found.parts))])  # fmt: skip


def test_the_grid_encodings_are_all_but_the_dense():
    assert {e.name for e in GRIDS} >= {
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("int2", "int4-g32-asym", "int4-g128-actorder", "int4-g32-fzp-f32"),
    }


@pytest.mark.parametrize("encoding", GRIDS, ids=str)
def test_files_stay_small(encoding):
    form, tensor = form_of(encoding, COLUMNS), encoded(encoding)
    held = sum(spec.nbytes for spec in form.specs(ROWS, NIBBLES).values())
    own = sum(p.read().nbytes for name, p in tensor.parts.items() if name != "g_idx")
    # codes of 7 bits take 8, five of base 3 take 10 instead of 8
    wider = 8 / 7 if form.bits == 7 else 10 / 8 if encoding.name == "TQ1_0" else 1.04
    assert held <= own * wider + 1


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["int4-g128", "int4-g128-asym", "int8-g128", "int3-g128-asym"])
def test_a_short_last_group_comes_back(name, style):
    tensor = encoded(encoding_from_name(name), 576)
    form = form_of(tensor.encoding, 576)
    assert (form.unit, form.groups) == (64, 9)
    assert form.group_of_piece.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert_same_parts(round_trip(tensor, style), tensor)


@pytest.mark.parametrize("style", STYLES)
def test_columns_sorted_by_group_come_back(style):
    encoding = encoding_from_name("int4-g32-asym-actorder")
    tensor = encoded(encoding)
    shuffled = np.random.default_rng(3).permutation(np.arange(COLUMNS, dtype=np.int32) // 32)
    parts = {**tensor.parts, "g_idx": ArrayPart(shuffled.astype(np.int32))}
    tensor = Tensor("weight", tensor.shape, encoding, parts)
    order = column_order(tensor)
    np.testing.assert_array_equal(shuffled[order], np.arange(COLUMNS) // 32)
    assert_same_parts(round_trip(tensor, style), tensor)


def test_groups_that_are_not_full_have_no_order():
    encoding = encoding_from_name("int4-g32-actorder")
    tensor = encoded(encoding)
    uneven = np.arange(COLUMNS, dtype=np.int32) // 32
    uneven[0] = 1
    tensor = Tensor("w", tensor.shape, encoding, {**tensor.parts, "g_idx": ArrayPart(uneven)})
    assert column_order(tensor) is None


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"])
def test_scales_of_zero_with_a_minimum_keep_codes_and_bytes(name, style):
    encoding = encoding_from_name(name)
    tensor = encoded(encoding)
    data = np.array(tensor.parts["data"].read())
    blocks = data.reshape(-1, encoding.block_bytes)
    from halfbyte.kernels.layouts import LAYOUTS

    at = LAYOUTS[name].offsets["d"]
    blocks[::2, at : at + 2] = 0
    tensor = Tensor("w", tensor.shape, encoding, {"data": ArrayPart(data)})
    assert_same_parts(round_trip(tensor, style), tensor)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        *((n, Verdict.EXACT) for n in ("float16", "Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K")),
        *((n, Verdict.EXACT) for n in ("int4-g32", "int4-g128-asym", "int8-g64")),
        *((n, Verdict.EXACT_TO_ROUNDING) for n in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")),
        ("int4-g32-fzp-f32", Verdict.EXACT_TO_ROUNDING),
        ("int8", Verdict.REGROUPED),
        ("int4-g48", Verdict.REGROUPED),
    ],
)
def test_verdicts(name, verdict):
    assert verdict_of(encoding_from_name(name), 768) is verdict


def test_rows_that_are_no_whole_bytes_have_no_form():
    assert form_of(encoding_from_name("int4"), 12) is None
    assert form_of(encoding_from_name("float32"), 64) is None
