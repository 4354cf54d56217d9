"""Sliding windows over spatial axes: sizes, padding, views; shared by convolutions and pools.

Spatial axes are those after batch and channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from halfbyte.errors import GraphError
from halfbyte.ir.graph import Dim, Node
from halfbyte.ir.ops.spec import UNKNOWN, Array, Attribute

WINDOW_ATTRIBUTES: dict[str, Attribute] = {
    "auto_pad": Attribute("string", "NOTSET"),
    "dilations": Attribute("ints"),
    "kernel_shape": Attribute("ints"),
    "pads": Attribute("ints"),
    "strides": Attribute("ints"),
}
PADDINGS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


class Windows(NamedTuple):
    """Per spatial axis: what one output element reads, and how many there are.

    begin, end: positions added before and after; `end` may be short of what the last window of a
    ceiling-mode pool reaches.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Return the positions from the first to the last that a window reads."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def per_axis(attributes: Mapping[str, Any], name: str, rank: int) -> list[int]:
    """Return one factor per axis, 1 where the attribute is not given."""
    given = attributes.get(name)
    return [int(v) for v in given] if given else [1] * rank


def padding(attributes: Mapping[str, Any], rank: int) -> tuple[list[int], list[int]]:
    """Return the explicit padding before and after each axis."""
    given = attributes.get("pads")
    pads = [int(v) for v in given] if given else [0] * (2 * rank)
    return pads[:rank], pads[rank:]


def same_padding(total: int, mode: str) -> tuple[int, int]:
    """Return `total` halved; the odd one goes to the end for SAME_UPPER, else to the start."""
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def window_sizes(
    attributes: Mapping[str, Any], spatial: Sequence[int], kernel: Sequence[int]
) -> Windows:
    """Return the windows of a convolution or pool; `ceil_mode` counts the partial last window."""
    rank, mode = len(spatial), attributes.get("auto_pad") or "NOTSET"
    strides, dilations = (per_axis(attributes, n, rank) for n in ("strides", "dilations"))
    before, after = padding(attributes, rank)
    begins, ends, output = [], [], []
    for axis, length in enumerate(spatial):
        stride, extent = strides[axis], (kernel[axis] - 1) * dilations[axis] + 1
        begin, end = (before[axis], after[axis]) if mode == "NOTSET" else (0, 0)
        if mode.startswith("SAME"):
            count = -(-length // stride)
            begin, end = same_padding(max(0, (count - 1) * stride + extent - length), mode)
        span = length + begin + end - extent
        count = span // stride + 1
        # A partial window counts, one that starts in the padding at the end does not.
        if attributes.get("ceil_mode") and mode == "NOTSET":
            count = -(-span // stride) + 1
            count -= (count - 1) * stride >= length + begin
        begins.append(begin)
        ends.append(end)
        output.append(max(0, count))
    tuples = (kernel, strides, dilations, begins, ends, output)
    return Windows(*(tuple(int(v) for v in values) for values in tuples))


def check_windows(node: Node, rank: int, kernel: Sequence[Dim] | None) -> None:
    """Check the lengths and values of the window attributes of a node.

    Raises:
        GraphError: names the attribute.
    """
    lengths = {"kernel_shape": rank, "strides": rank, "dilations": rank, "pads": 2 * rank}
    for name, length in lengths.items():
        values = node.attributes.get(name)
        if values and len(values) != length:
            raise GraphError(
                node.label, f"{name} has {len(values)} values, {length} required; give {length}"
            )
        least = 0 if name == "pads" else 1
        if values and min(values) < least:
            raise GraphError(
                node.label, f"{name} is {list(values)}; give values of at least {least}"
            )
    group = node.attributes.get("group")
    if group is not None and group < 1:
        raise GraphError(node.label, f"group is {group}; give at least 1")
    mode = node.attributes.get("auto_pad")
    if mode and mode not in PADDINGS:
        raise GraphError(node.label, f"auto_pad is {mode!r}; give one of {', '.join(PADDINGS)}")
    given = node.attributes.get("kernel_shape")
    if given and kernel is not None:
        for wanted, dim in zip(given, kernel, strict=False):
            if isinstance(dim, int) and dim != wanted:
                raise GraphError(
                    node.label, f"kernel_shape is {list(given)}, the weight has {list(kernel)}"
                )


def window_dims(node: Node, spatial: Sequence[Dim], kernel: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return the output dimensions; a symbol passes where every length is kept.

    Raises:
        GraphError: a window attribute does not fit.
    """
    rank = len(spatial)
    check_windows(node, rank, kernel)
    result: list[Dim] = []
    for axis, (length, size) in enumerate(zip(spatial, kernel, strict=True)):
        if not isinstance(size, int):
            result.append(UNKNOWN)
            continue
        before, after = padding(node.attributes, rank)
        single = {
            "auto_pad": node.attributes.get("auto_pad"),
            "ceil_mode": node.attributes.get("ceil_mode"),
            "strides": [per_axis(node.attributes, "strides", rank)[axis]],
            "dilations": [per_axis(node.attributes, "dilations", rank)[axis]],
            "pads": [before[axis], after[axis]],
        }
        if isinstance(length, int):
            result.append(window_sizes(single, [length], [size]).output[0])
        else:
            # With stride 1 the output is longer or shorter by the same for every length.
            probe = 1 << 20
            kept = window_sizes(single, [probe], [size]).output[0] == probe
            result.append(length if kept and single["strides"] == [1] else UNKNOWN)
    return tuple(result)


def padded(data: Array, windows: Windows, fill: Any) -> Array:
    """Return data with its spatial axes padded to what the windows reach."""
    widths = [(0, 0)] * (data.ndim - len(windows.kernel))
    for axis, length in enumerate(data.shape[len(widths) :]):
        reach = (windows.output[axis] - 1) * windows.strides[axis] + windows.extent[axis]
        begin = windows.begin[axis]
        widths.append((begin, max(0, reach - begin - length)))
    if not any(map(any, widths)):
        return data
    shape = [n + a + b for n, (a, b) in zip(data.shape, widths, strict=True)]
    result = np.full(shape, fill, data.dtype)
    inner = tuple(slice(a, a + n) for n, (a, _) in zip(data.shape, widths, strict=True))
    result[inner] = data
    return result


def window_view(data: Array, windows: Windows) -> Array:
    """Return a read-only view [..., *output, *kernel] of padded data [..., *spatial]."""
    rank = len(windows.kernel)
    outer, inner = data.strides[:-rank], data.strides[-rank:]
    return as_strided(
        data,
        (*data.shape[:-rank], *windows.output, *windows.kernel),
        (
            *outer,
            *(s * n for s, n in zip(inner, windows.strides, strict=True)),
            *(s * n for s, n in zip(inner, windows.dilations, strict=True)),
        ),
        writeable=False,
    )


def fold(columns: Array, windows: Windows, spatial: Sequence[int]) -> Array:
    """Return [..., *spatial]: columns [..., *kernel, *blocks] added up where windows put them.

    The blocks are the windows' outputs; `begin` positions before the result are dropped.
    """
    rank = len(windows.kernel)
    outer = columns.shape[: -2 * rank]
    blocks = columns.shape[-rank:]
    lengths = [
        max((blocks[i] - 1) * windows.strides[i] + windows.extent[i], windows.begin[i] + spatial[i])
        for i in range(rank)
    ]
    full = np.zeros((*outer, *lengths), columns.dtype)
    outside: tuple[Any, ...] = (slice(None),) * len(outer)
    for offset in product(*map(range, windows.kernel)):
        place = tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s) if n else slice(0, 0)
            for o, d, n, s in zip(offset, windows.dilations, blocks, windows.strides, strict=True)
        )
        source: tuple[Any, ...] = (*outside, *offset)
        full[outside + place] += columns[source]
    kept = tuple(slice(b, b + length) for b, length in zip(windows.begin, spatial, strict=True))
    return np.ascontiguousarray(full[outside + kept])


def window_steps(data: Array, windows: Windows) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield for each kernel place its offset and a view [..., *output] of padded data."""
    view = window_view(data, windows)
    for offset in product(*map(range, windows.kernel)):
        index: tuple[Any, ...] = (..., *offset)
        yield offset, view[index]
