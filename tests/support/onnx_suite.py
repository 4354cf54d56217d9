"""ONNX's backend test suite: its cases by kind, one case against a backend, what must not load."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx.backend.test import loader
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.runner import Runner, _normalize_tensor

BLOCKED = ("onnx.reference", "onnxruntime", "torch")
DATA = Path(loader.__file__).parents[1] / "data"


class Blocker:
    """Refuses to import other runtimes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if any(name == blocked or name.startswith(f"{blocked}.") for blocked in BLOCKED):
            raise ImportError(f"{name} is blocked while the suite runs")


@contextmanager
def other_runtimes_blocked() -> Iterator[None]:
    """Hide other runtimes that are imported, and refuse to import them."""
    blocker, hidden = Blocker(), {}
    for name in list(sys.modules):
        if any(name == blocked or name.startswith(f"{blocked}.") for blocked in BLOCKED):
            hidden[name] = sys.modules.pop(name)
    sys.meta_path.insert(0, blocker)
    try:
        yield
        loaded = [name for name in sys.modules if name.split(".")[0] in ("onnxruntime", "torch")]
        assert not loaded
    finally:
        sys.meta_path.remove(blocker)
        sys.modules.update(hidden)


@cache
def cases(kind: str) -> dict[str, TestCase]:
    """Return the cases of a kind by name; those of kind `node` take seconds to make."""
    with warnings.catch_warnings():
        # The suite computes what it expects on the edge of float ranges, too.
        warnings.simplefilter("ignore")
        found = loader.load_model_tests(kind=kind)
    return {case.name: case for case in sorted(found, key=by_name)}


def by_name(case: TestCase) -> str:
    return case.name


def run_case(case: TestCase, backend: ModuleType) -> None:
    """Run a case; raises what the backend raises, or AssertionError where results differ."""
    if case.model is not None:
        prepared = backend.prepare(case.model, "CPU", threads=1)
        for inputs, outputs in case.data_sets:
            found = prepared.run([_normalize_tensor(v) for v in inputs])
            compare(case, [_normalize_tensor(v) for v in outputs], found)
    elif case.model_dir is None:
        run_light(case, backend)
    else:
        run_folder(case, backend, Path(case.model_dir))


def compare(case: TestCase, wanted: list[Any], found: Any) -> None:
    """Compare as the suite's own runner does, sequences and empty optionals included."""
    kept = [(w, f) for w, f in zip(wanted, found, strict=True) if w is not None or f is not None]
    assert all(w is not None and f is not None for w, f in kept)
    for expected, result in kept:
        if isinstance(expected, (list, tuple)):
            assert isinstance(result, (list, tuple))
            Runner.assert_similar_outputs(expected, result, case.rtol, case.atol)
        else:
            Runner.assert_similar_outputs([expected], [result], case.rtol, case.atol)


def run_folder(case: TestCase, backend: ModuleType, folder: Path) -> None:
    """Run a case that lies in files."""
    model = onnx.load(folder / "model.onnx")
    prepared = backend.prepare(model, "CPU", threads=1)
    stored = {tensor.name for tensor in model.graph.initializer}
    given = [v.type for v in model.graph.input if v.name not in stored]
    sets = sorted(folder.glob("test_data_set*"))
    assert sets
    for data in sets:
        inputs = loaded(data, "input", given)
        outputs = loaded(data, "output", [v.type for v in model.graph.output])
        compare(case, outputs, prepared.run(inputs))


def loaded(folder: Path, stem: str, types: list[Any]) -> list[Any]:
    """Return the values of files STEM_0.pb and so on."""
    values: list[Any] = []
    for index in range(len(list(folder.glob(f"{stem}_*.pb")))):
        Runner._load_proto(Runner, str(folder / f"{stem}_{index}.pb"), values, types[index])
    return values


def run_light(case: TestCase, backend: ModuleType) -> None:
    """Run a real network whose weights are made by the graph, over the suite's dummy input."""
    path = DATA / "light" / Path(str(case.url)).name
    model = onnx.load(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [
        Runner.generate_dummy_data(value, seed=0, name=case.model_name, random=False)
        for value in model.graph.input
        if value.name not in stored
    ]
    files = [path.with_name(f"{path.stem}_output_{i}.pb") for i in range(len(model.graph.output))]
    outputs = [onnx.numpy_helper.to_array(onnx.load_tensor(str(file))) for file in files]
    compare(case, outputs, backend.prepare(model, "CPU", threads=1).run(inputs))
