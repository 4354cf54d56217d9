"""What an ONNX file can hold, and which constants of a graph are matrices of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from halfbyte.converters.onnx.language.weight_form import form_of
from halfbyte.converters.onnx.lowering.dequantized import can_dequantize
from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.dtypes import DTYPES, FLOATING
from halfbyte.ir.encodings import list_encodings
from halfbyte.ir.encodings.dense import FLOATS, Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.ops.spec import attribute
from halfbyte.ir.profile import CONSTANT, MATRIX, nearest_first, stays_float
from halfbyte.ir.tensor import Tensor

STANDARD, STATIC, ORT = FLAVOURS = ("", "static", "ort")


@dataclass(frozen=True)
class OnnxProfile:
    """Dense numbers of every type, and codes on a grid with scales."""

    flavour: str = ""

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            known = [f"onnx:{name}".rstrip(":") for name in FLAVOURS]
            raise UnsupportedError(f"flavour {self.flavour!r}", "onnx", known)

    @property
    def name(self) -> str:
        """Return what `--to` takes."""
        return f"onnx:{self.flavour}" if self.flavour else "onnx"

    def accepts(self, tensor: Tensor, encoding: Encoding) -> bool:
        """Whether the weight can stand in the file in this encoding."""
        if isinstance(encoding, Dense):
            return encoding.dtype_name in DTYPES
        if stays_float(tensor):
            return False
        try:
            encoding.part_specs(tensor.rows, tensor.columns)
        except QuantizationError:
            return False
        if tensor.role is not None:
            return form_of(encoding, tensor.columns) is not None
        return can_dequantize(encoding, tensor.columns)

    def required(self, tensor: Tensor) -> Encoding | None:
        """Return None: a Cast stands between any type and its reader."""
        return None

    def alternatives(self, tensor: Tensor) -> list[Encoding]:
        """Return what fits the weight: lossless encodings first, then the nearest in bits."""
        own = tensor.encoding
        fitting = [e for e in list_encodings() if e != own and self.accepts(tensor, e)]
        plain = [e for e in fitting if not isinstance(e, Dense) or e.dtype_name in FLOATS]
        return nearest_first(own, plain)


def profile(flavour: str = "") -> OnnxProfile:
    """Return what the format can hold in a flavour.

    Raises:
        UnsupportedError: there is no such flavour.
    """
    return OnnxProfile(flavour)


def with_kinds(weights: Mapping[str, Tensor], graphs: Iterable[Graph]) -> dict[str, Tensor]:
    """Return weights marked by their use in all graphs: matrices, or constants that take no codes.

    A matrix is what only linear layers and lookups of rows read.
    """
    matrices: dict[str, bool] = {}
    for graph in graphs:
        for name, tensor in graph.constants.items():
            fits = _is_matrix(graph.constant_value(name))
            matrices[tensor.name] = matrices.get(tensor.name, True) and fits
    return {
        name: replace(tensor, kind=MATRIX if matrices.get(tensor.name) else CONSTANT)
        for name, tensor in weights.items()
    }


def _is_matrix(value: Value) -> bool:
    return (
        value.dtype in FLOATING
        and value.shape is not None
        and len(value.shape) == 2
        and bool(value.uses)
        and all(_takes_codes(node, index) for node, index in value.uses)
    )


def _takes_codes(node: Node, index: int) -> bool:
    if node.domain == HALFBYTE_DOMAIN and node.op == "Linear":
        return index == 1
    return node.op == "Gather" and index == 0 and attribute(node, "axis", 0) == 0
