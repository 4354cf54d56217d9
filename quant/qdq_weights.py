"""Weights of integer operators: codes per output channel, symmetric, and int32 biases."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError

Floats = NDArray[np.float32]
LARGEST_BIAS = 2.0**30


class Codes(NamedTuple):
    """int8 codes in the weight's shape and a float32 scale for each index of the first axis."""

    codes: NDArray[np.int8]
    scale: Floats

    def values(self) -> Floats:
        """Return what the codes stand for."""
        scale = self.scale.reshape(-1, *(1,) * (self.codes.ndim - 1))
        return np.asarray(self.codes * scale, np.float32)


def weight_codes(name: str, weight: Floats, limit: int, least: Floats | None = None) -> Codes:
    """Return codes in [-limit, limit]; the largest magnitude of each channel is kept.

    least: scales below which none may fall, so that biases fit.

    Raises:
        QuantizationError: a weight is NaN or infinite.
    """
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(1)
    if not np.isfinite(largest).all():
        raise QuantizationError(name, "holds NaN or infinite weights; mend or keep it float")
    scale = (largest / np.float32(limit)).astype(np.float32)
    scale = np.maximum(scale, np.float32(np.finfo(np.float32).tiny))
    if least is not None:
        scale = np.maximum(scale, least)
    codes = np.clip(np.rint(rows / scale[:, None]), -limit, limit).astype(np.int8)
    return Codes(codes.reshape(weight.shape), scale)


def least_scale(bias: NDArray[np.float64], data_scale: float) -> Floats:
    """Return the smallest scale of weights with which each bias fits 32 bits."""
    return np.asarray(np.abs(bias) / (LARGEST_BIAS * data_scale), np.float32)


def bias_codes(bias: NDArray[np.float64], scale: Floats) -> NDArray[np.int32]:
    """Return biases as whole multiples of scale (data's times weight's)."""
    limit = 2**31 - 1
    steps = np.rint(bias / scale.astype(np.float64))
    return np.clip(steps, -limit, limit).astype(np.int32)
