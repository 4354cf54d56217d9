"""`halfbyte.Linear`: MatMul with the transposed weight, or Gemm, which takes it as it lies.

For onnxruntime, codes of up to 4 bits go to its MatMulNBits.

A weight that only such nodes read is stored transposed, under its own name; one that others read
too (a tied embedding) is stored once and turned by a Transpose, which runtimes fold.
"""

from __future__ import annotations

from functools import partial

from halfbyte.converters.onnx.lowering.dequantized import dequantized
from halfbyte.converters.onnx.lowering.matmul_nbits import matmul_nbits
from halfbyte.converters.onnx.lowering.rewriter import Rewriter
from halfbyte.converters.onnx.lowering.stored_constants import plain_value
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.graph import Node, Value
from halfbyte.ir.ops.spec import input_at, required_input
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.transposed import TransposedPart, transposed

OPTIONAL_BIAS_OPSET = 11  # Gemm needs its third input before
PACKED_ROWS = 4  # codes of 2 bits share bytes with three neighbours


def lower(rewriter: Rewriter, node: Node) -> None:
    """Replace the node by Gemm where the data is a matrix, else by MatMul and Add."""
    data, weight, bias = required_input(node, 0), required_input(node, 1), input_at(node, 2)
    dtype = data.dtype or "float32"
    if bias is not None:
        bias = plain_value(rewriter, bias, dtype)
    if _fits_gemm(rewriter, data, weight, bias):
        inputs = [data, plain_value(rewriter, weight, dtype)]
        inputs += [] if bias is None else [bias]
        rewriter.replace(node, rewriter.add("Gemm", *inputs, transB=1))
        return
    product = matmul_nbits(rewriter, data, weight, dtype)
    if product is None:
        product = rewriter.add("MatMul", data, _transposed(rewriter, weight, dtype))
    if bias is not None:
        product = rewriter.add("Add", product, bias)
    rewriter.replace(node, product)


def _fits_gemm(rewriter: Rewriter, data: Value, weight: Value, bias: Value | None) -> bool:
    tensor = weight.constant
    if data.shape is None or len(data.shape) != 2 or tensor is None:
        return False
    if not isinstance(tensor.encoding, Dense) or _stored_transposed(tensor):
        return False
    return bias is not None or rewriter.opset >= OPTIONAL_BIAS_OPSET


def _stored_transposed(tensor: Tensor) -> bool:
    """Whether the weight lies in its file as MatMul wants it."""
    return isinstance(tensor.parts.get("data"), TransposedPart)


def _transposed(rewriter: Rewriter, weight: Value, dtype: str) -> Value:
    """Return the weight as [in, out] in `dtype`."""
    tensor = weight.constant
    if tensor is None:
        return rewriter.add("Transpose", weight, perm=[1, 0])
    shared = weight in rewriter.shared
    identity = rewriter.hold(tensor)
    if isinstance(tensor.encoding, Dense):
        if not shared or _stored_transposed(tensor):
            make = partial(_turned_constant, rewriter, weight, tensor)
            return rewriter.cast(rewriter.once(("stored transposed", identity), make), dtype)
    elif not shared and tensor.rows % PACKED_ROWS == 0:
        turn = partial(dequantized, rewriter, tensor, weight.name, dtype, transposed=True)
        return rewriter.once(("dequantized", identity, dtype), turn)
    plain = plain_value(rewriter, weight, dtype)
    turn = partial(rewriter.add, "Transpose", plain, name=weight.name, perm=[1, 0])
    return rewriter.once(("turned", identity, dtype), turn)


def _turned_constant(rewriter: Rewriter, weight: Value, tensor: Tensor) -> Value:
    return rewriter.weight(transposed(tensor), weight.name, tensor.name)
