"""What a container can hold. Each format offers one; `quant/plan.py` alone chooses from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, runtime_checkable

from halfbyte.errors import QuantizationError
from halfbyte.ir.encodings import encoding_from_name, list_encodings
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import Verdict, judge
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor


class Profile(Protocol):
    """The encodings and shapes that a container holds."""

    @property
    def name(self) -> str:
        """Return the name that `--to` takes, for example `gguf` or `hf`."""

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the container can hold this weight in this encoding."""

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return the only encoding the container's readers take for this weight, if fixed."""

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return encodings the container can hold, nearest to the tensor's own first."""


@runtime_checkable
class HeadProfile(Protocol):
    """A container whose readers expect a float output head unless it is asked otherwise."""

    @property
    def leaves_head(self) -> bool:
        """Whether a type for all weights leaves the output head alone."""


@runtime_checkable
class AdvisingProfile(Protocol):
    """A container that knows where else to look for a type that it does not hold."""

    @property
    def advice(self) -> str:
        """Return what to do instead, for the end of an error."""


FLOAT_TABLES = frozenset(
    {
        Role.POSITION_EMBEDDING,
        Role.TOKEN_TYPE_EMBEDDING,
        Role.ROPE_DIVISORS,
        Role.ROPE_FACTORS_LONG,
        Role.ROPE_FACTORS_SHORT,
        Role.ROUTER,
        Role.SHARED_ROUTER,
    }
)

# Names that llama-quantize leaves alone, whole and in parts, for tensors whose role is not known.
_FLOAT_WHOLE_NAMES = ("position_embd.weight", "token_types.weight")
_FLOAT_NAMES = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight"),
    *(".position_embd", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("sam.pos_embd", "sam.neck.", "sam.net_", "a.rvq.codebook", "mm.a.code_embd"),
    *(f"time_mix_{part}.weight" for part in ("first", "lerp_fused", "decay_w1", "decay_w2")),
    *(f"time_mix_{part}.weight" for part in ("w0", "w1", "w2", "v0", "v1", "v2")),
    *(f"time_mix_{part}.weight" for part in ("a0", "a1", "a2", "g1", "g2")),
)


# Kinds of a tensor without a role whose use in a graph says what it is.
MATRIX = "matrix"
CONSTANT = "constant"


def stays_float(tensor: Tensor) -> str:
    """Return why a weight is never quantized (a norm, a bias, a vector ...), or an empty text."""
    dims = len(tensor.shape)
    while dims and tensor.shape[len(tensor.shape) - dims] == 1:
        dims -= 1
    if tensor.kind == "bias":
        return "biases stay float"
    if tensor.role is not None and tensor.role.is_norm:
        return "norms stay float"
    if dims < 2:
        return "vectors stay float"
    if tensor.role in FLOAT_TABLES:
        return f"{tensor.role} stays float"
    if tensor.role is None and tensor.kind in (MATRIX, CONSTANT):
        return "" if tensor.kind == MATRIX else "no linear layer or lookup reads it"
    if tensor.role is None and (dims > 3 or not tensor.name.endswith("weight")):
        return "not a matrix of weights"
    name = tensor.name if tensor.role is None else ""
    if name in _FLOAT_WHOLE_NAMES or any(part in name for part in _FLOAT_NAMES):
        return "its name is one that is never quantized"
    return ""


def nearest_first(own: Encoding, others: Iterable[Encoding]) -> list[Encoding]:
    """Return encodings that may replace `own`: lossless ones first, then by bits nearest to it.

    Of the lossless ones that keep codes, those that round nothing come first.
    """

    def distance(other: Encoding) -> tuple[int, float]:
        bits = abs(other.bits_per_weight - own.bits_per_weight)
        verdict = judge(own, other)
        if not verdict.is_lossless:
            return (2 if verdict.keeps_codes else 3), bits
        rounds = verdict is Verdict.EXACT_TO_ROUNDING and own.is_quantized
        return int(rounds or own.is_quantized > other.is_quantized), bits

    return sorted(others, key=distance)


@dataclass(frozen=True)
class TableProfile:
    """A profile written as a table.

    encodings: names or globs of names (`int4-*`), preferred first. float_type: the encoding that
    weights which stay float must have, or empty for any dense one.
    """

    name: str
    encodings: tuple[str, ...]
    float_type: str = ""

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the table lists the encoding, it fits the rows, and floats stay float."""
        required = self.required(tensor)
        if required is not None:
            return encoding == required
        if encoding.is_quantized and stays_float(tensor):
            return False
        try:
            encoding.part_specs(tensor.rows, tensor.columns)
        except QuantizationError:
            return False
        return any(fnmatchcase(encoding.name, pattern) for pattern in self.encodings)

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return the float type for floating weights that stay float, if one is fixed."""
        is_float = tensor.encoding.is_quantized or getattr(tensor.encoding, "is_float", False)
        if not self.float_type or not is_float or not stays_float(tensor):
            return None
        return encoding_from_name(self.float_type)

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return what the table allows: lossless first, then by bits nearest to the tensor's."""
        own = tensor.encoding
        fitting = [e for e in list_encodings() if e != own and self.accepts(tensor, e)]
        return nearest_first(own, fitting)
