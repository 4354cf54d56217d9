"""Nodes in the older form that an opset has: constant inputs become attributes again."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.opset_choice import form_at, obstacle
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops import op_specs, spec_of
from halfbyte.ir.ops.forms import Older
from halfbyte.ir.ops.spec import OpSpec


def make_older(graph: Graph, node: Node, opset: int) -> None:
    """Give a node, in place, the form that an opset has, where its inputs allow it."""
    if not obstacle(node, opset):
        return
    for spec, form in _steps(node, opset):
        _step(graph, node, spec, form)


def can_be_older(node: Node, opset: int) -> bool:
    """Whether `make_older` has a form for a node at an opset; types are not looked at."""
    return bool(_steps(node, opset))


def _steps(node: Node, opset: int) -> list[tuple[OpSpec, Older]]:
    """Return the forms below a node's own down to that of an opset, if it can have each of them."""
    wanted, own = form_at(node, opset), spec_of(node)
    specs = list(op_specs(own.key))
    if wanted is None or specs.index(wanted) >= specs.index(own):
        return []
    found = []
    for spec in specs[specs.index(wanted) : specs.index(own)][::-1]:
        form = getattr(spec.evaluate, "__self__", None)
        if not isinstance(form, Older) or not _is_movable(node, form):
            return []
        found.append((spec, form))
    return found


def _is_movable(node: Node, form: Older) -> bool:
    lifted = {lift.index for lift in form.lifts.values()}
    values = [value for index, value in enumerate(node.inputs) if index in lifted]
    return all(value is None or value.constant is not None for value in values)


def _step(graph: Graph, node: Node, spec: OpSpec, form: Older) -> None:
    """Turn the constant inputs that were attributes in a form back into them."""
    for name, lift in form.lifts.items():
        value = node.inputs[lift.index] if lift.index < len(node.inputs) else None
        if value is None or value.constant is None:
            continue
        flat = np.asarray(value.constant.numpy()).reshape(-1).tolist()
        node.attributes[name] = flat[0] if lift.scalar and flat else flat
        graph.set_input(node, lift.index, None)
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()
    node.since_version = max(spec.versions)
