"""Taking the arrays of quantized weights out of a checkpoint, and checking that they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Quantization
from halfbyte.ir.tensor import Part, Tensor

AGAIN = "download it again, or take the model it was made from"


class StoredWeight:
    """The arrays of one quantized module, by their ending."""

    def __init__(self, module: str, held: Mapping[str, Tensor], found: Quantization) -> None:
        """Take the module's name, its arrays by ending, and what the folder says."""
        self.module, self.held, self.found = module, held, found

    def __contains__(self, ending: str) -> bool:
        """Whether there is an array of this ending."""
        return ending in self.held

    def array(self, ending: str, dtypes: tuple[str, ...], dims: int = 2) -> Tensor:
        """Return an array.

        Raises:
            FormatError: it is missing, or has another type or number of dimensions.
        """
        tensor = self.held.get(ending)
        name = f"{self.module}.{ending}"
        if tensor is None:
            there = sorted(self.held)
            raise self.found.error(name, f"is missing, beside {there} it was required; {AGAIN}")
        dtype = tensor.parts["data"].dtype.name
        if dtype not in dtypes or len(tensor.shape) != dims:
            wanted = " or ".join(dtypes)
            rule = f"is {dtype} {list(tensor.shape)}, {dims} dimensions of {wanted} were required"
            raise self.found.error(name, f"{rule}; {AGAIN}")
        return tensor

    def require_shape(self, ending: str, shape: tuple[int, ...], why: str) -> None:
        """Check the shape of an array.

        Raises:
            FormatError: it is another.
        """
        found = tuple(self.held[ending].shape)
        if found != shape:
            rule = f"has shape {list(found)}, {list(shape)} was required by {why}; {AGAIN}"
            raise self.found.error(f"{self.module}.{ending}", rule)

    def group_size(self, said: Any, columns: int, groups: int, ending: str) -> int:
        """Return the columns of a group, 0 for the whole row, where the scales agree.

        said: what the config says, None where it says nothing, -1 for whole rows.

        Raises:
            FormatError: the scales, whose array ends with `ending`, have another number of groups.
        """
        size = said if isinstance(said, int) and not isinstance(said, bool) else 0
        if groups == 1 and (said is None or size == -1 or size > columns):
            return 0
        if said is None:
            size = columns // max(groups, 1)
        if size < 1 or -(-columns // size) != groups:
            rule = f"has {groups} groups, group_size {said!r} of {columns} inputs makes others"
            raise self.found.error(f"{self.module}.{ending}", f"{rule}; correct the config")
        return size

    def order(self, ending: str, columns: int, groups: int, size: int) -> NDArray[np.int32] | None:
        """Return the group of each input where they are not in order, else None.

        Raises:
            FormatError: there is no such group, or not one for each input.
        """
        if ending not in self or groups == 1:
            return None
        order = self.vector(ending)
        self.require_shape(ending, (columns,), "the inputs")
        if (order == -1).all():  # how some writers say that there is none
            return None
        if order.size and (order.min() < 0 or order.max() >= groups):
            rule = f"holds groups {order.min()}..{order.max()}, 0..{groups - 1} were required"
            raise self.found.error(f"{self.module}.{ending}", f"{rule}; {AGAIN}")
        return None if np.array_equal(order, np.arange(columns) // size) else order

    def vector(self, ending: str) -> NDArray[np.int32]:
        """Return a vector of int32, read."""
        tensor = self.array(ending, ("int32",), 1)
        return np.asarray(tensor.parts["data"].read()).reshape(-1)


def part_of(tensor: Tensor) -> Part:
    """Return the data of a dense tensor."""
    return tensor.parts["data"]


def scale_dtype(tensor: Tensor) -> str:
    """Return the name of the dtype of stored scales."""
    return str(part_of(tensor).dtype.name)


def by_module(
    tensors: Mapping[str, Tensor], marker: str, endings: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield modules that have an array `module.marker`, with their arrays of these endings."""
    for name in tensors:
        module, _, ending = name.rpartition(".")
        if ending == marker:
            held = {e: tensors[f"{module}.{e}"] for e in endings if f"{module}.{e}" in tensors}
            yield module, held


def require_scales(
    tensors: Mapping[str, Tensor], made: Mapping[str, Tensor], ending: str, found: Quantization
) -> None:
    """Check that no weight is left whose one-byte codes have no scales beside them.

    Raises:
        FormatError: one is.
    """
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        dtype = tensor.parts["data"].dtype.name if "data" in tensor.parts else ""
        if last == "weight" and name not in made and dtype in ("int8", "float8_e4m3fn"):
            rule = f"is missing, beside codes of {dtype} it was required; {AGAIN}"
            raise found.error(f"{module}.{ending}", rule)


def replaced(
    tensors: Mapping[str, Tensor], made: Mapping[str, Tensor], gone: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return tensors in their order, `made` weights in the places of the arrays they came from.

    gone: the name of each array that became part of a weight -> that weight's name.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        weight = gone.get(name)
        if weight is None:
            found[name] = tensor
        else:
            found[weight] = made[weight]
    return found
