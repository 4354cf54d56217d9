"""The one table of tolerances, with reasons. A figure not here is exact: compare bits.

`relative` is in units of the largest magnitude in the block or group that the value stands in,
`absolute` is added to it.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    relative: float
    absolute: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "exact to rounding": Tolerance(
        2.0**-22, 0.0, "code - zero point and its product with the scale round once each in float32"
    ),
    "encode with float16 scales": Tolerance(
        0.0, 128 * 2.0**-25, "a scale below 2^-14 keeps an absolute error of 2^-25, times the code"
    ),
    "encode dense": Tolerance(
        0.0, 2.0**-10, "float8_e4m3fn: below 2^-6 values are 2^-9 apart, half of that is the error"
    ),
}
