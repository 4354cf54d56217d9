"""MatMulNBits: a product with a weight of 2, 4 or 8 bit codes becomes halfbyte.Linear."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.contrib.lowering import Lowering
from halfbyte.converters.onnx.contrib.stored_blocks import affine_from_blocks, same_source
from halfbyte.ir.graph import HALFBYTE_DOMAIN, Graph, Node, Value
from halfbyte.ir.tensor import Tensor

BITS = (2, 4, 8)


def lower(graph: Graph, node: Node) -> None:
    """Replace the node.

    Raises:
        UnsupportedError: the weight is computed, prepacked for a device, or not of 2, 4, 8 bits.
        GraphError: sizes disagree with K, N and the block size.
    """
    at = Lowering(graph, node)
    tensor = weight_of(at)
    value = shared(at, tensor)
    bias = at.given(5)
    at.finish(at.add("Linear", at.need(0), value, bias, domain=HALFBYTE_DOMAIN))


def shared(at: Lowering, tensor: Tensor) -> Value:
    """Return the constant of a weight; one that reads the same codes is used again."""
    for name, other in at.graph.constants.items():
        if same_source(tensor, other):
            return at.graph.constant_value(name)
    return at.weight(tensor)


def weight_of(at: Lowering) -> Tensor:
    """Return the weight [N, K] as Affine rows over what the file holds.

    Raises:
        UnsupportedError: as `lower`.
        GraphError: as `lower`.
    """
    rows, columns = int(at.required("N")), int(at.required("K"))
    bits, block = int(at.option("bits", 4)), int(at.required("block_size"))
    if at.option("weight_prepacked", 0):
        layout = at.option("weight_prepacked")
        raise at.refuse(f"weight_prepacked {layout} (a device's own layout)", ["0"])
    if bits not in BITS:
        raise at.refuse(f"bits {bits}", [str(b) for b in BITS])
    if block < 1 or block * bits % 8:
        raise at.refuse(f"block_size {block}", ["a power of two from 16"])
    codes, scales = at.stored(1), at.stored(2)
    zeros = None if at.given(3) is None else at.stored(3)
    blocks = -(-columns // block)
    expect(at, "B", codes, rows * blocks * (block * bits // 8))
    expect(at, "scales", scales, rows * blocks)
    if zeros is not None:
        packed = getattr(zeros.encoding, "dtype_name", "") == "uint8"
        expect(at, "zero_points", zeros, rows * (-(-blocks * bits // 8) if packed else blocks))
    groups = None
    if at.given(4) is not None:
        groups = np.asarray(at.stored(4).numpy()).reshape(-1)[:columns]
        if len(groups) < columns or groups.min() < 0 or groups.max() >= blocks:
            raise at.refuse(f"g_idx that does not give each of {columns} columns a group")
        if np.array_equal(groups, np.arange(columns) // block):
            groups = None
    name = codes.name.removesuffix(".codes")  # as our own writer calls them
    return affine_from_blocks(name, (rows, columns), bits, block, codes, scales, zeros, groups)


def expect(at: Lowering, what: str, tensor: Tensor, size: int) -> None:
    """Check how many elements an input has.

    Raises:
        UnsupportedError: another number.
    """
    if tensor.size != size:
        raise at.refuse(f"{what} of {tensor.size} elements where the sizes give {size}")
