"""What quantized checkpoints can hold, as the plan asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings.affine import Affine, ZeroPoint
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import Verdict, judge
from halfbyte.ir.profile import nearest_first, stays_float
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor

FLOATS = ("float16", "bfloat16", "float32")
GROUP_SIZES = (0, 16, 32, 64, 128, 256)
LOOKUPS = frozenset({Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.TOKEN_TYPE_EMBEDDING})
_LOOKUP_NAMES = ("embed", "wte.", "wpe.")

Holds = Callable[[Encoding, Tensor], bool]


def is_lookup(tensor: Tensor) -> bool:
    """Whether rows of a weight are looked up by ids: an embedding."""
    if tensor.role is not None:
        return tensor.role in LOOKUPS
    return any(part in tensor.name for part in _LOOKUP_NAMES)


def is_linear(tensor: Tensor) -> bool:
    """Whether a weight is the matrix of a linear layer that quantizers take."""
    named = tensor.role is not None or tensor.name.endswith(".weight")
    return named and not stays_float(tensor) and not is_lookup(tensor)


@dataclass(frozen=True)
class CheckpointProfile:
    """A container of dense tensors and of quantized weights of linear layers.

    holds: whether a linear layer's weight may have an encoding that is not dense. embeddings:
    whether rows that are looked up may, too. leaves_head: see HeadProfile. others: encodings to
    propose that are not affine.
    """

    name: str
    holds: Holds
    embeddings: bool = False
    leaves_head: bool = True
    others: tuple[Encoding, ...] = ()

    def _takes(self, tensor: Tensor) -> bool:
        return is_linear(tensor) or (self.embeddings and is_lookup(tensor))

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the encoding is dense, or one that holds this weight."""
        if isinstance(encoding, Dense):
            return True
        if not self._takes(tensor):
            return False
        try:
            encoding.part_specs(tensor.rows, tensor.columns)
        except QuantizationError:
            return False
        return self.holds(encoding, tensor)

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return None: readers take any dense type for what is not quantized."""
        return None

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return what may replace the tensor's encoding: lossless first, then nearest in bits.

        A quantized linear layer's weight is not offered dense types, other weights are.
        """
        own = tensor.encoding
        found: list[Encoding] = []
        if not own.is_quantized or not is_linear(tensor) or self._is_head(tensor):
            found += [Dense(name) for name in FLOATS]
        found += [e for e in (*_neighbours(own), *self.others) if self.accepts(tensor, e)]
        held = nearest_first(own, [e for e in dict.fromkeys(found) if e != own])
        return sorted(held, key=lambda other: _price(own, other))

    def _is_head(self, tensor: Tensor) -> bool:
        return self.leaves_head and tensor.role is Role.OUTPUT_HEAD


def _price(own: Encoding, other: Encoding) -> tuple[int, int, float]:
    """Return what orders encodings: the groups of `own` before others, then the fewest bits."""
    verdict = judge(own, other)
    if not verdict.is_lossless or not other.is_quantized:
        return 1, 0, 0.0
    return 0, int(verdict is Verdict.REGROUPED), other.bits_per_weight


def _neighbours(own: Encoding) -> list[Encoding]:
    """Return affine encodings, those with the groups and the scale type of `own` first."""
    grid = own.span
    group, dtype = (128, "float16") if grid is None else (grid.group_size, grid.scale_dtype)
    zeros: tuple[ZeroPoint, ...] = ("none", "uint8")
    return [
        Affine(bits, size, zero, scale)
        for bits in range(2, 9)
        for size in dict.fromkeys((group, *GROUP_SIZES))
        for zero in zeros
        for scale in dict.fromkeys((dtype, *FLOATS))
    ]
