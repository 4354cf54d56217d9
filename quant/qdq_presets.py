"""What kinds of integers a target multiplies fast, as table."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.errors import UnsupportedError


@dataclass(frozen=True)
class Preset:
    """Integers of activations and weights.

    activations: dtype. symmetric: zero is code 0. weight_limit: codes of weights lie in
    [-weight_limit, weight_limit].
    """

    activations: str
    symmetric: bool
    weight_limit: int = 127

    @property
    def lowest(self) -> int:
        """Return the smallest code of activations."""
        return 0 if self.activations == "uint8" else -127 if self.symmetric else -128

    @property
    def highest(self) -> int:
        """Return the largest code of activations."""
        return 255 if self.activations == "uint8" else 127


# Without VNNI, x86 adds two products of u8 and s8 in 16 bits, which saturate: 7 bits of weights do
# not (255 * 63 * 2 < 2**15). TensorRT takes symmetric activations only.
PRESETS: dict[str, Preset] = {
    "x86": Preset("uint8", symmetric=False),
    "x86-avx2": Preset("uint8", symmetric=False, weight_limit=63),
    "arm": Preset("int8", symmetric=False),
    "gpu": Preset("int8", symmetric=True),
}


def get_preset(name: str) -> Preset:
    """Return the preset of a target.

    Raises:
        UnsupportedError: there is none.
    """
    if name not in PRESETS:
        raise UnsupportedError(f"target {name!r}", "quantize", list(PRESETS))
    return PRESETS[name]
