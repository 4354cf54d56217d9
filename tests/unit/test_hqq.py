"""HQQ beside plain code written from its description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.tensor import Tensor, tensor_from_array
from halfbyte.quant.algorithms import get_algorithm, hqq, rtn

TYPES = [
    "int4-g64-fzp", "int3-g128-fzp", "int2-g64-fzp-f32", "int8-g64-fzp", "int4-fzp-bf16",
    "int4-g64-asym", "int3-g128-asym", "int4-asym", "int4-g48-fzp",
]  # fmt: skip


def weights(rows: int = 40, columns: int = 256) -> Tensor:
    """Return small weights of which a few are large."""
    generator = np.random.default_rng(0)
    values = 0.02 * generator.standard_normal((rows, columns))
    values[generator.random(values.shape) < 0.01] *= 6
    return tensor_from_array("w", values.astype(np.float32))


def group_errors(tensor: Tensor, made: Tensor, size: int) -> NDArray[np.float64]:
    """Return the sum of |error|^0.7 of each group."""
    wrong = np.abs(made.float32() - tensor.float32()).astype(np.float64) ** 0.7
    starts = np.arange(0, tensor.columns, size or tensor.columns)
    return np.add.reduceat(wrong, starts, axis=1)


@pytest.mark.parametrize("name", TYPES)
def test_no_group_is_worse_and_most_are_better(name: str) -> None:
    tensor, encoding = weights(), encoding_from_name(name)
    assert isinstance(encoding, Affine)
    made = get_algorithm("hqq")(tensor, encoding)
    assert made.encoding == encoding
    before = group_errors(tensor, rtn.requantize(tensor, encoding), encoding.group_size)
    after = group_errors(tensor, made, encoding.group_size)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum() * (
        0.999 if encoding.bits == 8 or not encoding.group_size else 0.98
    )


def paper_zero(values: NDArray[np.float64], scale: float, zero: float, levels: int) -> float:
    """Return the best of the zero points of the half-quadratic splitting of one group."""
    beta, best, least = 10.0, zero, np.inf
    for _ in range(21):
        code = np.clip(np.rint(values / scale + zero), 0, levels)
        error = values / scale - (code - zero)
        total = float((np.abs(error) ** 0.7).sum())
        if total < least:
            least, best = total, zero
        size = np.maximum(np.abs(error), 1e-30)
        large = np.sign(error) * np.maximum(size - size ** (0.7 - 1) / beta, 0)
        zero = float(np.mean(code - (values / scale - large)))
        beta *= 1.01
    return best


def test_float_zero_points_are_those_of_the_splitting() -> None:
    tensor, encoding = weights(8), encoding_from_name("int3-g64-fzp-f32")
    assert isinstance(encoding, Affine)
    plain = encoding.fit(tensor.float32())
    made = encoding.unpack_scales(hqq.requantize(tensor, encoding).read(), tensor.columns)
    assert np.array_equal(made.scale, plain.scale)
    assert plain.zero_point is not None and made.zero_point is not None
    blocks = tensor.float32().astype(np.float64).reshape(8, 4, 64)
    for row in range(8):
        for group in range(4):
            scale, zero = float(plain.scale[row, group]), float(plain.zero_point[row, group])
            expected = paper_zero(blocks[row, group], scale, zero, 7)
            assert made.zero_point[row, group] == pytest.approx(expected, abs=1e-4)


def test_rows_stream_in_any_ranges() -> None:
    tensor, encoding = weights(), encoding_from_name("int4-g64-asym")
    whole = hqq.requantize(tensor, encoding).read()
    made = hqq.requantize(tensor, encoding)
    for name, part in made.parts.items():
        pieces = [part.read(start, start + 7) for start in range(0, 40, 7)]
        assert np.array_equal(np.concatenate(pieces), whole[name])


def test_flat_and_zero_groups_are_safe() -> None:
    values = weights(4).float32().copy()
    values[0], values[1], values[2, :64] = 0, 3.5, -2.0
    tensor = tensor_from_array("w", values)
    for name in TYPES:
        with np.errstate(all="raise", under="ignore"):
            made = hqq.requantize(tensor, encoding_from_name(name)).float32()
        assert np.isfinite(made).all() and (made[0] == 0).all()
        assert np.abs(made[1] - 3.5).max() < 0.02


def test_a_type_without_zero_points_is_refused() -> None:
    for name in ("int4-g64", "Q4_0"):
        with pytest.raises(UnsupportedError, match="no zero points.*int4-g64-fzp"):
            hqq.requantize(weights(), encoding_from_name(name))


def test_memory_is_bounded_by_pieces_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, encoding = weights(), encoding_from_name("int4-g64-fzp")
    whole = hqq.requantize(tensor, encoding).float32()
    monkeypatch.setattr(hqq, "CHUNK_VALUES", 3 * tensor.columns)
    assert np.array_equal(hqq.requantize(tensor, encoding).float32(), whole)
    renamed = replace(tensor, name="other")
    assert hqq.requantize(renamed, encoding).name == "other"
