"""Opening a large ONNX model: time and peak anonymous memory against onnx and onnxruntime.

Makes two chains of float32 matrices, one with its data inside the file (just below protobuf's
2 GB) and one with its data beside it, and opens each in a child process per tool. Imports are
done before the clock starts. Mapped file pages do not count as memory.

    python bench/bench_onnx_import.py
    python bench/bench_onnx_import.py --gigabytes 0.2
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 4096
MATRIX_BYTES = 4 * WIDTH * WIDTH
INLINE_LIMIT = 2**31 - 2**20
TOOLS = ("halfbyte", "onnx", "onnxruntime")
RAW_DATA = 9


def chain(count: int, stem: str) -> Any:
    """Return the proto of a chain of `count` products whose tensors have no data yet."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MatMul", [f"x{i}", f"{stem}{i}"], [f"x{i + 1}"]) for i in range(count)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])
        for name in ("x0", f"x{count}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def matrix(index: int) -> bytes:
    """Return the bytes of one matrix, orthogonal enough for a chain not to overflow."""
    values = np.zeros((WIDTH, WIDTH), np.float32)
    values[np.arange(WIDTH), (np.arange(WIDTH) + index) % WIDTH] = 1
    return values.tobytes()


def write_external(folder: Path, count: int) -> Path:
    """Write a model whose data lies beside it."""
    proto = chain(count, "w")
    for index in range(count):
        tensor = proto.graph.initializer.add(name=f"w{index}", data_type=1, data_location=1)
        tensor.dims.extend([WIDTH, WIDTH])
        places = {"location": "model.data", "offset": index * MATRIX_BYTES, "length": MATRIX_BYTES}
        for key, value in places.items():
            tensor.external_data.add(key=key, value=str(value))
    path = folder / "external.onnx"
    path.write_bytes(proto.SerializeToString())
    with (folder / "model.data").open("wb") as stream:
        for index in range(count):
            stream.write(matrix(index))
    return path


def field(number: int, length: int) -> bytes:
    """Return the head of a delimited field."""
    out, rest = bytearray([number << 3 | 2]), length
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def write_inline(folder: Path, count: int) -> Path:
    """Write a model with its data inside, tensor by tensor: messages of one field are merged."""
    from onnx import TensorProto

    path = folder / "inline.onnx"
    proto = chain(count, "w")
    graph = proto.graph.SerializeToString()
    heads = []
    for index in range(count):
        head = TensorProto(name=f"w{index}", data_type=1, dims=[WIDTH, WIDTH]).SerializeToString()
        head += field(RAW_DATA, MATRIX_BYTES)
        heads.append(field(5, len(head) + MATRIX_BYTES) + head)
    proto.ClearField("graph")
    with path.open("wb") as stream:
        stream.write(proto.SerializeToString())
        length = len(graph) + sum(len(head) + MATRIX_BYTES for head in heads)
        stream.write(field(7, length) + graph)
        for index, head in enumerate(heads):
            stream.write(head)
            stream.write(matrix(index))
    return path


def opener(tool: str) -> Callable[[str], Any]:
    """Return the function that opens a model with a tool, imports done."""
    if tool == "onnx":
        import onnx

        return onnx.load
    if tool == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return lambda path: onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    import halfbyte

    import_module("halfbyte.converters.onnx.reader")

    def opened(path: str) -> Any:
        model = halfbyte.open(path)
        assert model.graph.nodes
        return model

    return opened


def measure(tool: str, path: str) -> dict[str, Any]:
    """Return seconds and peak anonymous bytes of opening a model, in this process."""
    from halfbyte.memory import PeakMemory, anonymous_bytes

    open_model = opener(tool)
    before = anonymous_bytes()
    with PeakMemory() as peak:
        start = time.perf_counter()
        held = open_model(path)
        seconds = time.perf_counter() - start
    assert held is not None
    return {"seconds": seconds, "bytes": peak.peak_bytes - before, "process": peak.peak_bytes}


def child(tool: str, path: Path) -> dict[str, Any]:
    """Return the measurement of another process; the file is in the page cache."""
    command = [sys.executable, __file__, "--child", tool, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return {"error": found.stderr.strip().splitlines()[-1][:90]}
    measured: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return measured


def report(name: str, path: Path, size: int) -> None:
    """Print one line per tool, with the ratio to ours."""
    print(f"{name}: {size / 1e9:.2f} GB")
    ours = child("halfbyte", path)
    assert "error" not in ours, ours
    assert ours["bytes"] < 100e6, ours
    for tool in TOOLS:
        found = ours if tool == "halfbyte" else child(tool, path)
        if "error" in found:
            print(f"  {tool:12} {found['error']}")
            continue
        slower = found["seconds"] / ours["seconds"]
        print(
            f"  {tool:12} {found['seconds'] * 1e3:9.1f} ms ({slower:7.1f} x ours)  "
            f"{found['bytes'] / 1e6:8.1f} MB peak, {found['process'] / 1e6:8.1f} MB in all"
        )


def main() -> None:
    """Make the models and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--child", nargs=2, metavar=("TOOL", "PATH"))
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(*arguments.child)))
        return
    count = max(1, round(arguments.gigabytes * 1e9 / MATRIX_BYTES))
    for name, write in (("inline data", write_inline), ("external data", write_external)):
        with tempfile.TemporaryDirectory() as folder:
            inside = min(count, INLINE_LIMIT // MATRIX_BYTES)
            used = inside if write is write_inline else count
            path = write(Path(folder), used)
            report(name, path, used * MATRIX_BYTES)


if __name__ == "__main__":
    main()
