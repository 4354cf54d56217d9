"""Nodes in the older form that an opset has: constant inputs become attributes again."""

from __future__ import annotations

import numpy as np

from halfbyte.converters.onnx.opset_choice import form_at, obstacle
from halfbyte.ir.graph import Graph, Node
from halfbyte.ir.ops import op_specs, spec_of
from halfbyte.ir.ops.older_forms import Lift, Older
from halfbyte.ir.ops.spec import OpSpec


def make_older(graph: Graph, node: Node, opset: int) -> None:
    """Give a node, in place, the form that an opset has, where its inputs allow it."""
    if not obstacle(node, opset, own_form=True):
        return
    wanted = form_at(node, opset)
    if wanted is not None and not obstacle(node, opset):
        node.attributes = {n: v for n, v in node.attributes.items() if n in wanted.attributes}
        node.since_version = max(wanted.versions)
        return
    for spec, moved in _steps(node, opset):
        _step(graph, node, spec, moved)


def can_be_older(node: Node, opset: int) -> bool:
    """Whether `make_older` has a form for a node at an opset; types are not looked at."""
    return bool(_steps(node, opset))


def _steps(node: Node, opset: int) -> list[tuple[OpSpec, dict[str, Lift]]]:
    """Return the forms below a node's own down to that of an opset, if it can have each of them.

    With each come the inputs that are attributes there.
    """
    wanted, own = form_at(node, opset), spec_of(node)
    specs = list(op_specs(own.key))
    if wanted is None or specs.index(wanted) >= specs.index(own):
        return []
    found = []
    for index in range(specs.index(own) - 1, specs.index(wanted) - 1, -1):
        moved = _moved(specs[index], specs[index + 1])
        if moved is None or not _is_movable(node, moved) or _loses(node, specs[index], own):
            return []
        found.append((specs[index], moved))
    return found


def _moved(older: OpSpec, newer: OpSpec) -> dict[str, Lift] | None:
    """Return the inputs of the newer form that are attributes in the older one, by their names."""
    form = getattr(older.evaluate, "__self__", None)
    if isinstance(form, Older):
        return dict(form.lifts)
    names = [name.rstrip("?*") for name in newer.inputs]
    extra = [name for name in older.attributes if name not in newer.attributes]
    if not extra or any(name not in names for name in extra):
        return None
    return {name: Lift(names.index(name)) for name in extra}


def _is_movable(node: Node, moved: dict[str, Lift]) -> bool:
    lifted = {lift.index for lift in moved.values()}
    values = [value for index, value in enumerate(node.inputs) if index in lifted]
    return all(value is None or value.constant is not None for value in values)


def _loses(node: Node, older: OpSpec, own: OpSpec) -> bool:
    """Whether the node has an attribute that says something and that the older form lacks."""
    return any(
        name not in older.attributes and value is not None and value != own.attributes[name].default
        for name, value in node.attributes.items()
    )


def _step(graph: Graph, node: Node, spec: OpSpec, moved: dict[str, Lift]) -> None:
    """Turn the constant inputs that were attributes in a form back into them."""
    for name, lift in moved.items():
        value = node.inputs[lift.index] if lift.index < len(node.inputs) else None
        if value is None or value.constant is None:
            continue
        flat = np.asarray(value.constant.numpy()).reshape(-1).tolist()
        if flat:
            node.attributes[name] = flat[0] if lift.scalar else flat
        graph.set_input(node, lift.index, None)
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()
    node.attributes = {n: v for n, v in node.attributes.items() if n in spec.attributes}
    node.since_version = max(spec.versions)
