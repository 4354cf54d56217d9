"""Nodes in the older form that an opset has: constant inputs become attributes again."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.opset_choice import form_at, obstacle
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops import op_key, op_specs, spec_of
from halfbyte.ir.ops.forms import Older
from halfbyte.ir.ops.spec import OpSpec


def make_older(graph: Graph, node: Node, opset: int) -> None:
    """Give a node, in place, the form that an opset has, where its inputs allow it."""
    if not obstacle(node, opset):
        return
    wanted = form_at(node, opset)
    if wanted is None:
        return
    for step in _steps(spec_of(node), wanted):
        if not _stepped(graph, node, step):
            return


def _steps(newest: OpSpec, oldest: OpSpec) -> list[OpSpec]:
    """Return the forms below `newest` down to `oldest`, if each is made from the one above."""
    specs = list(op_specs(op_key(newest.op, newest.domain)))
    chain = specs[specs.index(oldest) : specs.index(newest)][::-1]
    made = all(isinstance(getattr(s.evaluate, "__self__", None), Older) for s in chain)
    return chain if made else []


def _stepped(graph: Graph, node: Node, spec: OpSpec) -> bool:
    form = getattr(spec.evaluate, "__self__", None)
    if not isinstance(form, Older):
        return False
    moved: dict[str, object] = {}
    for name, lift in form.lifts.items():
        value = node.inputs[lift.index] if lift.index < len(node.inputs) else None
        if value is None:
            continue
        if value.constant is None:
            return False
        flat = np.asarray(value.constant.numpy()).reshape(-1).tolist()
        moved[name] = flat[0] if lift.scalar and flat else flat
    node.attributes.update(moved)
    for lift in form.lifts.values():
        if lift.index < len(node.inputs):
            graph.set_input(node, lift.index, None)
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()
    node.since_version = max(spec.versions)
    return True
