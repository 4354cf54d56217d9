"""Orthogonal matrices of entries +-1/sqrt(n): Hadamard's, with random signs.

Sizes m 2^k: Sylvester's doubling over a core of order m from Paley's constructions, which exist for
m = q + 1 (q a prime, 3 more than a multiple of 4) and m = 2 (q + 1) (q a prime, 1 more). Of other
sizes n, blocks of the largest such size that divides n turn one beside the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_CORE = 256


def _is_prime(q: int) -> bool:
    return q > 1 and all(q % divisor for divisor in range(2, int(q**0.5) + 1))


@lru_cache(maxsize=16)
def core(order: int) -> NDArray[np.float64] | None:
    """Return a Hadamard matrix [order, order] of +-1, or None where neither construction has one.

    Orders: 1, and multiples of 4 up to LARGEST_CORE.
    """
    if order == 1:
        return np.ones((1, 1))
    if order % 4 or order > LARGEST_CORE:
        return None
    if _is_prime(order - 1):
        return np.eye(order) + _bordered(order - 1, -1.0)
    q = order // 2 - 1
    if q % 4 != 1 or not _is_prime(q):
        return None
    symmetric = _bordered(q, 1.0)
    plus, minus = np.asarray([[1.0, 1], [1, -1]]), np.asarray([[1.0, -1], [-1, -1]])
    return np.asarray(np.kron(symmetric, plus) + np.kron(np.eye(q + 1), minus))


def _bordered(q: int, sign: float) -> NDArray[np.float64]:
    """Return the Jacobsthal matrix of the field of q elements with a border of ones."""
    squares = {value * value % q for value in range(1, q)}
    character = np.asarray([0.0] + [1.0 if value in squares else -1.0 for value in range(1, q)])
    places = np.arange(q)
    whole = np.zeros((q + 1, q + 1))
    whole[1:, 1:] = character[(places[:, None] - places[None, :]) % q]
    whole[0, 1:], whole[1:, 0] = 1.0, sign
    return whole


def block_order(size: int) -> tuple[int, int]:
    """Return (m, 2^k) of the largest Hadamard size m 2^k that divides `size`."""
    for block in sorted((d for d in range(1, size + 1) if size % d == 0), reverse=True):
        power = block & -block
        while power:
            if core(block // power) is not None:
                return block // power, power
            power //= 2
    return 1, 1


@dataclass(frozen=True)
class Turn:
    """An orthogonal matrix R [size, size] of blocks; signs [size] are applied first."""

    signs: NDArray[np.float64]
    order: int
    power: int

    @classmethod
    def random(cls, size: int, generator: np.random.Generator) -> Turn:
        """Return the matrix of a size with signs from a generator."""
        signs = np.where(generator.integers(0, 2, size) == 1, -1.0, 1.0)
        return cls(signs, *block_order(size))

    @property
    def block(self) -> int:
        """Return the size of a block."""
        return self.order * self.power

    def rows(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return R v for each row v of `values` [n, size], the same bits on any machine."""
        count, size = values.shape
        turned = values.astype(np.float64) * self.signs
        turned = turned.reshape(count * (size // self.block), self.order, self.power)
        turned = _doubled(turned)
        if self.order > 1:
            matrix = core(self.order)
            assert matrix is not None
            turned = _mixed(matrix, turned)
        scaled: NDArray[np.float64] = turned.reshape(count, size) / np.sqrt(self.block)
        return scaled

    def columns(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return R V of `values` V [size, n]."""
        return np.ascontiguousarray(self.rows(np.ascontiguousarray(values.T)).T)


def _doubled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply Sylvester's matrix to the last axis, a power of two long."""
    length = values.shape[-1]
    half = 1
    while half < length:
        pairs = values.reshape(*values.shape[:-1], length // (2 * half), 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([first + second, first - second], axis=-2).reshape(values.shape)
        half *= 2
    return values


def _mixed(matrix: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply `matrix` to the middle axis of [n, order, power], adding in order."""
    result = np.zeros_like(values)
    for place, column in enumerate(matrix.T):
        result += column[:, None] * values[:, place : place + 1]
    return result
