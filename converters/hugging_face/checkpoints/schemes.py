"""How the quantized weights of one output differ, and which of them servers fuse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from halfbyte.converters.hugging_face.checkpoints.profile import is_linear
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor

WEIGHT = ".weight"
MLX = "hf:mlx"

# Weights that servers load as one matrix; experts of a layer are one weight here already.
_FUSED: dict[Role, str] = {
    Role.ATTENTION_QUERY: "query, key and value",
    Role.ATTENTION_KEY: "query, key and value",
    Role.ATTENTION_VALUE: "query, key and value",
    Role.FEED_FORWARD_GATE: "gate and up",
    Role.FEED_FORWARD_UP: "gate and up",
    Role.SHARED_GATE: "shared gate and up",
    Role.SHARED_UP: "shared gate and up",
    Role.EXPERTS_GATE: "the experts",
    Role.EXPERTS_UP: "the experts",
    Role.EXPERTS_DOWN: "the experts",
}


@dataclass(frozen=True)
class Scheme:
    """What a server must know of a quantized weight.

    name: that of the encoding, empty for affine codes. group_size 0: the whole row. symmetric: no
    weight of these bits and groups has stored zero points. act_order: one has a group index.
    """

    name: str = ""
    bits: int = 8
    group_size: int = 0
    symmetric: bool = True
    act_order: bool = False


@dataclass(frozen=True)
class Schemes:
    """The linear layers of an output, by module name (without `.weight`).

    base: the scheme of most quantized ones. quantized: all of these. floats: those that stay dense,
    embeddings and the output head not counted. head: the module name of the output head, if it is
    quantized.
    """

    base: Scheme
    quantized: dict[str, Scheme]
    floats: tuple[str, ...]
    head: str = ""

    @property
    def others(self) -> dict[str, Scheme]:
        """Return those of another scheme than most."""
        return {name: scheme for name, scheme in self.quantized.items() if scheme != self.base}


def module_of(tensor: Tensor) -> str:
    """Return the name of the module that a weight belongs to."""
    return tensor.name.removesuffix(WEIGHT)


def schemes_of(tensors: Sequence[Tensor], where: str) -> Schemes:
    """Return how the weights of an output are encoded; `where` is the flavour, for errors.

    Raises:
        UnsupportedError: none is quantized, or weights that servers fuse differ.
    """
    quantized = {module_of(t): t for t in tensors if t.encoding.is_quantized}
    if not quantized:
        raise UnsupportedError(
            "a model of which no weight is quantized", f"--to {where}", advice="give --type"
        )
    for tensor in quantized.values():
        if not tensor.name.endswith(WEIGHT):
            what = f"the name {tensor.name!r} of a quantized weight"
            raise UnsupportedError(what, f"--to {where}", ["names that end with .weight"])
    require_alike([(tensor, tensor.encoding) for tensor in tensors], where)
    encodings = [tensor.encoding for tensor in quantized.values()]
    found = {name: _scheme(t.encoding, encodings) for name, t in quantized.items()}
    return Schemes(
        Counter(found.values()).most_common(1)[0][0],
        found,
        tuple(module_of(t) for t in tensors if _is_float_layer(t)),
        next((name for name, t in quantized.items() if t.role is Role.OUTPUT_HEAD), ""),
    )


def _key(encoding: Encoding) -> tuple[str, int, int]:
    """Return what weights that servers fuse must share."""
    if isinstance(encoding, Affine):
        return "", encoding.bits, encoding.group_size
    return encoding.name, 0, 0


def _scheme(encoding: Encoding, encodings: Sequence[Encoding]) -> Scheme:
    """Return the scheme of a weight: zero points are said of all weights alike or of none."""
    if not isinstance(encoding, Affine):
        return Scheme(encoding.name)
    alike = [e for e in encodings if isinstance(e, Affine) and _key(e) == _key(encoding)]
    symmetric, ordered = all(e.symmetric for e in alike), any(e.act_order for e in alike)
    return Scheme("", encoding.bits, encoding.group_size, symmetric, ordered)


def _is_float_layer(tensor: Tensor) -> bool:
    if tensor.encoding.is_quantized or tensor.role is Role.OUTPUT_HEAD:
        return False
    router = tensor.role in (Role.ROUTER, Role.SHARED_ROUTER)
    return tensor.kind == "weight" and (router or is_linear(tensor))


def require_alike(weights: Iterable[tuple[Tensor, Encoding]], where: str) -> None:
    """Check that weights which servers fuse get encodings alike; MLX fuses none.

    Raises:
        UnsupportedError: they do not.
    """
    first: dict[tuple[str, int | None], tuple[Tensor, Encoding]] = {}
    for tensor, encoding in weights if where != MLX else ():
        fused = _FUSED.get(tensor.role) if tensor.role is not None else None
        if fused is None or tensor.kind != "weight":
            continue
        other, beside = first.setdefault((fused, tensor.layer), (tensor, encoding))
        either = encoding.is_quantized or beside.is_quantized
        if either and _key(encoding) != _key(beside):
            raise UnsupportedError(
                f"{other.name!r} as {beside} beside {tensor.name!r} as {encoding}",
                f"--to {where}",
                [f"one type for {fused} of a layer, which servers fuse"],
                "give both the same type with --tensor",
            )


def exactly(module: str) -> str:
    """Return a regular expression that only this module name matches."""
    return f"^{re.escape(module)}$"
