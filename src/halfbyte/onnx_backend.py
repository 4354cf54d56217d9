"""The backend interface of ONNX over our runtime, so that anyone can run ONNX's test suite on us.

`prepare`, `run_model`, `run_node`, `supports_device` and `is_compatible` stand at module level.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import onnx
from onnx.backend.base import Backend, BackendRep

from halfbyte.converters.onnx.reader import read_model
from halfbyte.errors import HalfbyteError
from halfbyte.ir.dtypes import ONNX_NUMBERS, dtype_of
from halfbyte.runtime.session import Session

DEVICES = {"CPU": "cpu"}


class HalfbyteRep(BackendRep):
    """A model that is ready to run."""

    def __init__(self, model: onnx.ModelProto, device: str, **options: Any) -> None:
        """Read a model; its stored tensors stay in a temporary file for as long as this lives.

        options: those of `Session`.

        Raises:
            HalfbyteError: the model breaks a rule, or needs what this version lacks.
        """
        folder = mkdtemp(prefix="halfbyte-")
        self._remove = weakref.finalize(self, rmtree, folder, ignore_errors=True)
        path = Path(folder, "model.onnx")
        path.write_bytes(model.SerializeToString())
        self.session = Session(read_model(path), DEVICES[device], **options)
        self._inputs = [value.name for value in self.session.graph.inputs]
        self._outputs = [value.name for value in self.session.graph.outputs]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the outputs in the graph's order for inputs in its order, or by name."""
        given = inputs
        if not isinstance(inputs, Mapping):
            values = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            given = dict(zip(self._inputs, values, strict=False))
        results = self.session.run(given)
        return tuple(results[name] for name in self._outputs)


class HalfbyteBackend(Backend):
    """Runs ONNX models by `Session`."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> HalfbyteRep:
        """Return a model that is ready to run; options are those of `Session`.

        Raises:
            HalfbyteError: the model breaks a rule, or needs what this version lacks.
        """
        return HalfbyteRep(model, device, **kwargs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Return the outputs of one node; `opset_version` is the newest unless given."""
        version = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        values = list(inputs)
        names = [name for name in node.input if name]
        typed = [_value_info(name, value) for name, value in zip(names, values, strict=True)]
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", typed, results)
        opsets = [onnx.helper.make_opsetid(node.domain, version)]
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        return cls.prepare(model, device, **kwargs).run(values)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a device, by ONNX's name for it, can be used."""
        return device in DEVICES

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every operator of a model is there and its graph makes sense."""
        try:
            cls.prepare(model, device, **kwargs)
        except HalfbyteError:
            return False
        return True


def _value_info(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, Sequence):
        kind = ONNX_NUMBERS[dtype_of(value[0])] if value else onnx.TensorProto.FLOAT
        return onnx.helper.make_tensor_sequence_value_info(name, kind, None)
    return onnx.helper.make_tensor_value_info(name, ONNX_NUMBERS[dtype_of(value)], value.shape)


prepare = HalfbyteBackend.prepare
run_model = HalfbyteBackend.run_model
run_node = HalfbyteBackend.run_node
supports_device = HalfbyteBackend.supports_device
is_compatible = HalfbyteBackend.is_compatible
