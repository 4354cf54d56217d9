""".npz files of a graph's inputs and outputs.

The container knows neither bfloat16 nor types below a byte, strings of any length nor lists: what
numpy cannot name is stored in the smallest of its types that holds all values, and an output that
is a sequence as NAME.0, NAME.1 and so on. Inputs come back the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError, HalfbyteError
from halfbyte.files import atomic_file
from halfbyte.ir.dtypes import FLOATING, dtype_of
from halfbyte.ir.graph import Graph
from halfbyte.ir.model import Model
from halfbyte.verification.outputs import flat

Arrays = Mapping[str, NDArray[Any]]


def read_arrays(path: str | Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file by name, never unpickling.

    Raises:
        FormatError: the file is no .npz or holds Python objects.
    """
    if not Path(path).is_file():
        raise HalfbyteError(f"{path}: no such file; check the path")
    with Path(path).open("rb") as stream:
        start = stream.read(6)
        if not start.startswith(b"PK"):
            what = "one array without a name" if start == b"\x93NUMPY" else "no archive"
            rule = f"is not an .npz of plain arrays ({what}); make one with numpy.savez"
            raise FormatError(path, rule)
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # numpy, zipfile, zlib and tokenize each raise their own
            rule = f"is not an .npz of plain arrays ({_reason(error)}); make one with numpy.savez"
            raise FormatError(path, rule) from None


def _reason(error: Exception) -> str:
    return "it holds Python objects" if "pickle" in str(error) else str(error)


def read_inputs(path: str | Path, graph: Graph) -> dict[str, Any]:
    """Return inputs of a graph from an .npz file, those that are sequences as lists.

    Raises:
        FormatError: as `read_arrays`.
    """
    arrays: dict[str, Any] = dict(read_arrays(path))
    for value in graph.inputs:
        if (value.dtype or "").removeprefix("optional.").startswith("sequence."):
            found: list[NDArray[Any]] = []
            while f"{value.name}.{len(found)}" in arrays:
                found.append(arrays.pop(f"{value.name}.{len(found)}"))
            if found:
                arrays[value.name] = found
    return arrays


def graph_owner(path: str | Path, model: Model) -> Model:
    """Return the model over the graph that the arrays of an .npz file are inputs of.

    That is the file's own graph where an array has a name which only that graph knows.
    """
    if model.stored_graph is None:
        return model
    known = {value.name for value in model.graph.inputs}
    return model if read_arrays(path).keys() <= known else model.over_stored_graph()


def write_arrays(path: str | Path, results: Mapping[str, Any]) -> None:
    """Write outputs by name as one .npz file; an empty optional is left out."""
    with atomic_file(path) as stream:
        np.savez(stream, allow_pickle=False, **{n: _plain(a) for n, a in flat(results).items()})


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in a type that numpy's files can name."""
    dtype = dtype_of(array)
    if dtype == "string":
        return array.astype(np.str_)
    if array.dtype.isbuiltin == 1:
        return array
    if dtype in FLOATING:
        return array.astype(np.float32)
    return array.astype(np.uint8 if dtype.startswith("u") else np.int8)
