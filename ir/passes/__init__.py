"""Graph passes, by name. Each changes the graph in place and returns whether it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from halfbyte.ir.graph import Graph

# In the order of a session. Bytes are moved and looked up first, so that integer operators find
# quantized values beside them. Stored codes are absorbed before constants are folded, which would
# turn them into floats. Pads and norms go into a convolution's weights before anything is fused
# onto it. Longer patterns come before shorter ones that would take their nodes: gates before
# groups of Linear, sums with a norm before sums into a convolution.
PASSES: dict[str, str] = {
    "move_bytes": "halfbyte.ir.passes.move_bytes",
    "look_up_bytes": "halfbyte.ir.passes.look_up_bytes",
    "fuse_integer": "halfbyte.ir.passes.fuse_integer",
    "fuse_integer_lstm": "halfbyte.ir.passes.fuse_integer_lstm",
    "absorb_dequantize": "halfbyte.ir.passes.absorb_dequantize",
    "constant_folding": "halfbyte.ir.passes.constant_folding",
    "simplify": "halfbyte.ir.passes.simplify",
    "common_subexpressions": "halfbyte.ir.passes.common_subexpressions",
    "fold_pad": "halfbyte.ir.passes.fold_pad",
    "fold_batch_norm": "halfbyte.ir.passes.fold_batch_norm",
    "fuse_layer_norm": "halfbyte.ir.passes.fuse_layer_norm",
    "fuse_gelu": "halfbyte.ir.passes.fuse_gelu",
    "fuse_swiglu": "halfbyte.ir.passes.fuse_swiglu",
    "fuse_linear_swiglu": "halfbyte.ir.passes.fuse_linear_swiglu",
    "fuse_add_norm": "halfbyte.ir.passes.fuse_add_norm",
    "fuse_activation": "halfbyte.ir.passes.fuse_activation",
    "fuse_linears": "halfbyte.ir.passes.fuse_linears",
    "dead_code": "halfbyte.ir.passes.dead_code",
}
RUNTIME: tuple[str, ...] = tuple(PASSES)


def get_pass(name: str) -> Callable[[Graph], bool]:
    """Return the pass called `name`."""
    found: Callable[[Graph], bool] = import_module(PASSES[name]).apply
    return found


def run_passes(graph: Graph, names: Sequence[str] = RUNTIME) -> list[str]:
    """Infer types, apply passes in order, to subgraphs first.

    Returns the names of those that changed the graph itself.
    """
    from halfbyte.errors import GraphError
    from halfbyte.ir.ops.inference import infer_types

    for inner in graph.subgraphs():
        # A branch that breaks a rule may be one that is never taken.
        with suppress(GraphError):
            run_passes(inner, names)
    infer_types(graph)
    return [name for name in names if get_pass(name)(graph)]
