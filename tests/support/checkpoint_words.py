"""Quantized checkpoints' words, packed and unpacked one value at a time: the oracle of tests."""

from __future__ import annotations

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(codes: list[int], bits: int) -> list[int]:
    """Return unsigned 32-bit words that hold codes as one stream, lowest bits first."""
    whole = 0
    for index, code in enumerate(codes):
        whole |= int(code) << (index * bits)
    count = -(-len(codes) * bits // 32)
    return [(whole >> (32 * word)) & 0xFFFFFFFF for word in range(count)]


def codes_of(words: np.ndarray, bits: int, count: int) -> list[int]:
    """Return `count` codes of a stream of words."""
    whole = 0
    for index, word in enumerate(words.tolist()):
        whole |= (int(word) & 0xFFFFFFFF) << (32 * index)
    return [(whole >> (index * bits)) & ((1 << bits) - 1) for index in range(count)]


def as_int32(rows: list[list[int]]) -> np.ndarray:
    """Return rows of words as safetensors holds them."""
    return np.array(rows, np.uint32).view(np.int32)


def gptq_arrays(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, less: int
) -> dict[str, np.ndarray]:
    """Return GPTQ's arrays: codes [out, in], zeros and scales [out, groups]; v1: less 1."""
    mask = (1 << bits) - 1
    return {
        "qweight": as_int32([stream(row.tolist(), bits) for row in codes]).T.copy(),
        "qzeros": as_int32(
            [stream([(int(z) - less) & mask for z in row], bits) for row in zeros.T]
        ),
        "scales": scales.T.copy(),
    }


def awq_word(codes: list[int]) -> int:
    """Return the word of eight neighbouring outputs."""
    return sum(int(codes[output]) << (4 * i) for i, output in enumerate(AWQ_ORDER))


def awq_arrays(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """Return AWQ's arrays: codes [out, in], zeros and scales [out, groups]."""

    def words(values: np.ndarray) -> np.ndarray:
        columns = [
            [awq_word(column[at : at + 8].tolist()) for at in range(0, len(column), 8)]
            for column in values.T
        ]
        return as_int32(columns)

    return {"qweight": words(codes), "qzeros": words(zeros), "scales": scales.T.copy()}


def packed_arrays(
    codes: np.ndarray, zeros: np.ndarray | None, scales: np.ndarray, bits: int, dense: bool = True
) -> dict[str, np.ndarray]:
    """Return the arrays of pack-quantized weights; not dense: whole codes in each word."""

    def words(row: list[int]) -> list[int]:
        if dense:
            return stream(row, bits)
        step = 32 // bits
        return [stream(row[at : at + step], bits)[0] for at in range(0, len(row), step)]

    found = {
        "weight_packed": as_int32([words(row.tolist()) for row in codes]),
        "weight_scale": scales,
        "weight_shape": np.array(codes.shape, np.int64),
    }
    if zeros is not None:
        packed = as_int32([words(column.tolist()) for column in zeros.T])
        found["weight_zero_point"] = packed.T.copy()
    return found


def values_of(
    codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Return (code - zero) * scale, one value at a time: [out, in] float32."""
    found = np.empty(codes.shape, np.float32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            at = row, group[column]
            steps = int(codes[row, column]) - int(zeros[at])
            found[row, column] = np.float32(steps) * np.float32(scales[at])
    return found
