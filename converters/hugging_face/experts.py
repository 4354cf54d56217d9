"""Experts of a mixture: one weight [experts, out, in] here, a matrix each in checkpoints.

transformers also knows gate and up of all experts in one tensor; that is read, not written.
Nothing is loaded: stacks and slices are views of the stored parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.architectures.architecture import Architecture, WeightSpec
from halfbyte.converters.architectures.config import WHERE
from halfbyte.errors import FormatError, UnsupportedError
from halfbyte.ir.part_views import StackedPart, matrix_of
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import Part, RowOrderPart, Tensor

_FUSED = re.compile(
    r"(?:model\.)?layers\.(\d{1,4})\.(?:mlp|block_sparse_moe)\.experts\."
    r"(gate_up_proj|down_proj)(?:\.weight)?",
    re.ASCII,
)
_MEMBER = re.compile(r"(.*\.experts\.)(0|[1-9]\d{0,3})\.(.*)", re.ASCII)
_ROUTER = re.compile(r"(.*layers\.\d{1,4}\.)(?:mlp|block_sparse_moe)(\.gate\.weight)", re.ASCII)


def stacks(architecture: Architecture, config: Mapping[str, Any]) -> dict[WeightKey, WeightSpec]:
    """Return the weights that checkpoints hold in pieces."""
    return {s.key: s for s in architecture.weight_specs(config) if s.expert_name}


def with_stacked_experts(
    weights: Mapping[str, Tensor], architecture: Architecture, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return a checkpoint's tensors with the experts of each layer as one, under our name.

    Raises:
        FormatError: an expert is missing, or experts of one layer differ in shape or type.
    """
    specs = stacks(architecture, config)
    if not specs:
        return dict(weights)
    by_name = {spec.name: spec for spec in specs.values()}
    found: dict[WeightKey, dict[int, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        place = _place(name, architecture, by_name)
        if place is not None:
            spec, number = place
            held = found.setdefault(spec.key, {})
            if number in held:
                spelled = spec.expert_name.format(number)
                rule = f"{held[number].name!r} and {name!r} both name {spelled}; keep one of them"
                raise FormatError(WHERE, rule)
            held[number] = tensor
            continue
        for part in _unfused(tensor, specs):
            kept[_router_name(part.name, specs)] = part
    kept = {name: tensor.renamed(name) for name, tensor in kept.items()}
    return kept | {specs[key].name: _stacked(specs[key], held) for key, held in found.items()}


def _place(
    name: str, architecture: Architecture, specs: Mapping[str, WeightSpec]
) -> tuple[WeightSpec, int] | None:
    """Return the stack that a matrix belongs to and its number there, None for other tensors."""
    for spelled in architecture.primary_names(name):
        match = _MEMBER.fullmatch(spelled)
        spec = None if match is None else specs.get(match[1] + match[3])
        if match is not None and spec is not None and int(match[2]) < spec.shape[0]:
            return spec, int(match[2])
    return None


def _router_name(name: str, specs: Mapping[WeightKey, WeightSpec]) -> str:
    """Return a router's name with the block's name of the checkpoints."""
    match = _ROUTER.fullmatch(name)
    block = next(iter(specs.values())).name.split(".")[3]
    return name if match is None else f"{match[1]}{block}{match[2]}"


def _stacked(spec: WeightSpec, held: Mapping[int, Tensor]) -> Tensor:
    missing = [number for number in range(spec.shape[0]) if number not in held]
    if missing:
        name = spec.expert_name.format(missing[0])
        rule = f"weight {name!r} is missing; the file is incomplete or its config another model's"
        raise FormatError(WHERE, rule)
    first = held[0]
    for number in range(spec.shape[0]):
        other = held[number]
        if (other.shape, other.encoding) != (first.shape, first.encoding) or len(other.shape) != 2:
            what = f"{other.encoding} {list(other.shape)}"
            rule = f"weight {other.name!r} is {what}, {first.encoding} {list(spec.shape[1:])}"
            raise FormatError(WHERE, f"{rule} was required as for the other experts")
    specs = first.encoding.part_specs(first.rows, first.columns)
    members = [held[number] for number in range(spec.shape[0])]
    parts: dict[str, Part] = {
        name: StackedPart(tuple(m.parts[name] for m in members))
        if specs[name].per_row
        else _same_part(members, name)
        for name in first.parts
    }
    return replace(first, name=spec.name, shape=(spec.shape[0], *first.shape), parts=parts)


def _same_part(members: Sequence[Tensor], name: str) -> Part:
    """Return a part that has no rows, as the order of the groups, of experts that all have it.

    Raises:
        UnsupportedError: they differ in it.
    """
    first = members[0].parts[name].read()
    for member in members:
        if not np.array_equal(member.parts[name].read(), first):
            raise UnsupportedError(
                f"{name} of {member.name!r} other than that of {members[0].name!r}",
                "experts of one layer", ["act-order in one order for all of them"],
                "take a checkpoint without act-order",
            )  # fmt: skip
    return members[0].parts[name]


def _unfused(tensor: Tensor, specs: Mapping[WeightKey, WeightSpec]) -> list[Tensor]:
    """Return gate and up of a tensor that holds both [experts, gate + up rows, in]."""
    match = _FUSED.fullmatch(tensor.name)
    if match is None or len(tensor.shape) != 3:
        return [tensor]
    layer, kind = int(match[1]), match[2]
    roles = [Role.EXPERTS_DOWN]
    if kind == "gate_up_proj":
        roles = [Role.EXPERTS_GATE, Role.EXPERTS_UP]
    keys = [WeightKey(role, layer) for role in roles]
    if any(key not in specs for key in keys) or tensor.shape[1] % len(keys):
        return [tensor]
    experts, rows, columns = tensor.shape
    size = rows // len(keys)
    orders = np.arange(experts * rows, dtype=np.int64).reshape(experts, len(keys), size)
    return [
        replace(
            _taken(tensor, orders[:, i].reshape(-1)),
            name=specs[key].name,
            shape=(experts, size, columns),
        )
        for i, key in enumerate(keys)
    ]


def _taken(tensor: Tensor, order: NDArray[np.int64]) -> Tensor:
    if len(order) == tensor.rows:
        return tensor
    specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
    parts: dict[str, Part] = {
        n: RowOrderPart(p, order) if specs[n].per_row else p for n, p in tensor.parts.items()
    }
    return replace(tensor, parts=parts)


def split_experts(tensor: Tensor, spec: WeightSpec) -> list[Tensor]:
    """Return the matrices of a stacked weight under their names in checkpoints."""
    return [
        matrix_of(tensor, number).renamed(spec.expert_name.format(number))
        for number in range(tensor.shape[0])
    ]
