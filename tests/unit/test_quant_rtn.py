"""Round to nearest: lazy, streaming, no work done twice."""

from __future__ import annotations

import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.tensor import ComputedPart, Tensor, tensor_from_array
from halfbyte.quant.algorithms import ALGORITHMS, get_algorithm
from halfbyte.quant.algorithms.rtn import requantize
from support.encoded import bits, dense_tensor, encoded, held, normal_rows


class Counter:
    """Counts the rows that Affine.fit and Affine.assign work on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fitted = self.assigned = 0
        fit, assign = Affine.fit, Affine.assign

        def counted_fit(encoding, rows, importance=None):
            self.fitted += len(rows)
            return fit(encoding, rows, importance)

        def counted_assign(encoding, rows, scales):
            self.assigned += len(rows)
            return assign(encoding, rows, scales)

        monkeypatch.setattr(Affine, "fit", counted_fit)
        monkeypatch.setattr(Affine, "assign", counted_assign)


@pytest.mark.parametrize(
    "order", [("codes", "scales", "zero_points"), ("scales", "zero_points", "codes")]
)
def test_no_row_is_encoded_twice(order: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = dense_tensor(40, 64)
    encoding = Affine(4, 32, "uint8")
    expected = bits(encoding.encode(tensor.decode()))
    counter = Counter(monkeypatch)
    quantized = requantize(tensor, encoding)
    assert (counter.fitted, counter.assigned) == (0, 0)
    parts = {}
    for name in order:
        part = quantized.parts[name]
        parts[name] = np.concatenate([part.read(0, 10), part.read(10, 40)])
    assert (counter.fitted, counter.assigned) == (40, 40)
    assert bits(parts) == expected


def test_small_parts_are_dropped_once_all_parts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    quantized = requantize(dense_tensor(10, 64), Affine(4, 32))
    for _ in range(2):
        quantized.parts["codes"].read()
        quantized.parts["scales"].read()
    assert counter.fitted == 20


def test_rows_may_be_read_in_any_order_by_many_threads() -> None:
    encoding = Affine(3, 16, "float", "float32")
    tensor = dense_tensor(64, 96)
    expected = encoding.encode(tensor.decode())
    quantized = requantize(tensor, encoding)
    wrong: list[str] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            start, stop = sorted(rng.integers(0, 65, 2))
            for name in rng.permutation(list(expected)):
                got = quantized.parts[name].read(int(start), int(stop))
                if got.tobytes() != expected[name][start:stop].tobytes():
                    wrong.append(name)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", ["Q4_0", "int4-g128", "float16"])
def test_memory_stays_bounded_while_a_large_tensor_streams(name: str) -> None:
    rows, columns = 40_000, 1024  # 160 MB of float32, made on request
    part = ComputedPart(
        np.dtype(np.float32),
        (rows, columns),
        lambda start, stop: np.full((stop - start, columns), 0.5, np.float32),
    )
    tensor = Tensor("big", (rows, columns), encoding_from_name("float32"), {"data": part})
    quantized = requantize(tensor, encoding_from_name(name))
    step = 4000
    tracemalloc.start()
    try:
        for stored in quantized.parts.values():
            for start in range(0, rows // 4, step):
                stored.read(start, start + step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 << 20


def test_importance_goes_to_the_encoder() -> None:
    importance = np.linspace(0, 4, 64, dtype=np.float32)
    tensor = dense_tensor(6, 64)
    for name in ("Q4_0", "int3-g32"):
        encoding = encoding_from_name(name)
        quantized = requantize(tensor, encoding, importance)
        assert bits(quantized.read()) == bits(encoding.encode(tensor.decode(), importance))
        assert bits(quantized.read()) != bits(encoding.encode(tensor.decode()))


def test_compat_goes_to_encoders_that_know_it() -> None:
    rows = normal_rows(2, 256)
    rows[:, 32:64] = 0
    tensor = tensor_from_array("w", rows)
    for name in ("IQ3_S", "Q4_0"):
        encoding = encoding_from_name(name)
        plain = requantize(tensor, encoding).parts["data"].read()
        faulty = requantize(tensor, encoding, compat=True).parts["data"].read()
        assert (plain == faulty).all() == (name == "Q4_0")


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "int3-g32", "int4-g32-asym"])
def test_each_matrix_of_a_stack_has_its_own_importance(name: str) -> None:
    encoding = encoding_from_name(name)
    rows = normal_rows(15, 256)
    importance = np.random.default_rng(0).random((3, 256), np.float32) ** 4
    stack = tensor_from_array("blk.0.ffn_up_exps.weight", rows.reshape(3, 5, 256))
    quantized = requantize(stack, encoding, importance)
    expected: dict[str, list[np.ndarray]] = {}
    for matrix in range(3):
        part = encoding.encode(rows[5 * matrix : 5 * matrix + 5], importance[matrix])
        for key, values in part.items():
            expected.setdefault(key, []).append(values)
    for key, stored in quantized.parts.items():
        whole = np.concatenate(expected[key])
        np.testing.assert_array_equal(stored.read(), whole)
        np.testing.assert_array_equal(stored.read(3, 12), whole[3:12])
        np.testing.assert_array_equal(stored.read(6, 7), whole[6:7])


@pytest.mark.parametrize(
    ("importance", "rule"),
    [
        (np.ones(63, np.float32), "importance of 63 values was given, 64 are required"),
        (np.ones((3, 64), np.float32), "importance of 3x64 values was given, 64 are required"),
        (np.ones((1, 1, 64), np.float32), "importance of 1x1x64 values was given, 64 are required"),
        (np.full(64, -1, np.float32), "importance must be finite and not negative"),
        (np.full(64, np.nan, np.float32), "importance must be finite and not negative"),
    ],
)
def test_importance_is_checked(importance: np.ndarray, rule: str) -> None:
    with pytest.raises(QuantizationError) as error:
        requantize(dense_tensor(2, 64), encoding_from_name("Q4_0"), importance)
    assert str(error.value) == f"tensor 'w': {rule}"


def test_errors_carry_the_name_of_the_tensor() -> None:
    tensor = tensor_from_array("blk.0.big", np.full((2, 64), 1e30, np.float32))
    for name in ("Q4_0", "int4-g32", "float16"):
        quantized = requantize(tensor, encoding_from_name(name))
        for part in quantized.parts.values():
            with pytest.raises(QuantizationError, match=r"tensor 'blk\.0\.big': .*float16"):
                part.read()
    with pytest.raises(QuantizationError, match="tensor 'w': rows of 40 values"):
        requantize(dense_tensor(2, 40), encoding_from_name("Q4_0"))


HALF_SCALES = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS "
    "IQ3_S IQ4_NL IQ4_XS TQ1_0 TQ2_0 Q1_0 Q2_0"
)


@pytest.mark.parametrize("name", HALF_SCALES.split())
@pytest.mark.parametrize("largest", [3e12, 1e20, 3e38])
@pytest.mark.parametrize("single", [True, False])
def test_weights_whose_squares_overflow_never_become_zeros(
    name: str, largest: float, single: bool
) -> None:
    rows = normal_rows(2, 256).clip(-1, 1)
    rows[1] *= 1 if single else np.float32(largest)
    rows[1, 7] = -largest
    encoding = encoding_from_name(name)
    importance = np.linspace(1, 2, 256, dtype=np.float32)
    with pytest.raises(QuantizationError, match="'w': a scale leaves float16's range"):
        requantize(tensor_from_array("w", rows), encoding, importance).numpy()
    for method in (encoding.encode, encoding.encode_reference):  # type: ignore[attr-defined]
        with pytest.raises(QuantizationError, match="a scale leaves float16's range"):
            method(rows, importance)


def test_any_source_is_quantized_through_its_float32_values() -> None:
    for source in ("float16", "bfloat16", "float64", "Q8_0", "int8-g32"):
        tensor = encoded(source, 4, 64)
        for target in ("Q4_0", "int4-g32"):
            encoding = encoding_from_name(target)
            expected = encoding.encode(tensor.float32())
            assert bits(requantize(tensor, encoding).read()) == bits(expected)


def test_dense_targets_round_the_decoded_values() -> None:
    tensor = encoded("Q8_0", 4, 64)
    quantized = requantize(tensor, encoding_from_name("bfloat16"))
    expected = tensor.decode().astype(ml_dtypes.bfloat16)
    assert quantized.decode().tobytes() == expected.tobytes()


def test_shape_role_and_layer_stay() -> None:
    tensor = tensor_from_array("w", normal_rows(12, 64).reshape(3, 4, 64))
    quantized = held(requantize(tensor, encoding_from_name("int4-g32-actorder")))
    assert quantized.shape == (3, 4, 64) and quantized.numpy().shape == (3, 4, 64)
    assert quantized.parts["g_idx"].read().tolist() == [0] * 32 + [1] * 32
    vector = requantize(tensor_from_array("v", np.ones(64, np.float32)), encoding_from_name("F16"))
    assert vector.numpy().dtype == np.float16 and vector.numpy().shape == (64,)


def test_algorithms_are_found_by_name() -> None:
    assert get_algorithm("rtn") is requantize
    assert all(callable(get_algorithm(name)) for name in ALGORITHMS)
    with pytest.raises(UnsupportedError) as error:
        get_algorithm("rtm")
    assert str(error.value) == "quantize: method 'rtm' is not supported; supported: rtn"
