"""The operator table against every version of ai.onnx: forms, attributes, inputs, outputs."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

from halfbyte.ir.dtypes import ONNX_DTYPES
from halfbyte.ir.graph import CANONICAL_OPSET
from halfbyte.ir.ops import OPS, op_specs, since_version

DOMAINS = {
    "": CANONICAL_OPSET,
    "ai.onnx.ml": 5,
    "ai.onnx.preview": 1,
    "ai.onnx.preview.training": 1,
}
NOT_YET = {"ai.onnx.preview.training.Gradient"}
ELSEWHERE = "ai.onnx.ml"
KINDS = {"INT": "int", "FLOAT": "float", "STRING": "string", "TENSOR": "tensor", "GRAPH": "graph"}


@cache
def schemas() -> dict[str, dict[int, Any]]:
    """Return the schemas of every operator of the domains in the table, by key and version."""
    found: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in DOMAINS:
            key = f"{schema.domain}.{schema.name}" if schema.domain else schema.name
            found.setdefault(key, {})[schema.since_version] = schema
    return found


KEYS = [key for key in OPS if key in schemas()]


def test_every_operator_of_the_standard_is_there() -> None:
    wanted = {key for key in schemas() if not key.startswith(ELSEWHERE)}
    assert wanted - set(OPS) == NOT_YET


@pytest.mark.parametrize("key", KEYS)
def test_each_version_has_one_form(key: str) -> None:
    versions = [version for spec in op_specs(key) for version in spec.versions]
    assert sorted(versions) == sorted(set(versions))
    assert set(versions) == {v for v in schemas()[key] if v <= DOMAINS[schemas()[key][v].domain]}


@pytest.mark.parametrize("key", KEYS)
def test_forms_stand_in_order_and_lead_to_the_newest(key: str) -> None:
    specs = op_specs(key)
    for older, newer in pairwise(specs):
        assert older.versions[-1] < newer.versions[0]
    deprecated = newest(key)[0].deprecated
    assert (specs[-1].upgrade is None) != deprecated


@pytest.mark.parametrize("key", KEYS)
def test_attributes_are_those_of_the_newest_version(key: str) -> None:
    schema, spec = newest(key)
    assert set(spec.attributes) - {"captures"} == set(schema.attributes)
    for name, given in schema.attributes.items():
        mine = spec.attributes[name]
        assert mine.required == given.required, name
        assert kinds_agree(mine.kind, given.type.name), name
        if given.default_value.name:
            same_default(mine.default, onnx.helper.get_attribute_value(given.default_value))
        elif not given.required and mine.kind != "dtype":
            assert mine.default is None or name in ("block_size", "output_dtype"), name


@pytest.mark.parametrize("key", KEYS)
def test_inputs_and_outputs_are_those_of_the_newest_version(key: str) -> None:
    schema, spec = newest(key)
    for given, mine in ((schema.inputs, spec.inputs), (schema.outputs, spec.outputs)):
        wanted = [marked(value) for value in given]
        assert [name for name in mine if name != "captures*"] == wanted


@pytest.mark.parametrize("key", KEYS)
def test_old_forms_know_their_attributes(key: str) -> None:
    for spec in op_specs(key)[:-1]:
        for version in spec.versions:
            assert set(schemas()[key][version].attributes) <= set(spec.attributes), version


def test_version_in_force_is_the_last_one_up_to_the_opset() -> None:
    assert since_version("Add", 28) == 14
    assert since_version("Add", 6) == 6
    assert since_version("Clip", 10) == 6
    assert since_version("SwiGLU", 27) is None


def newest(key: str) -> tuple[Any, Any]:
    found = schemas()[key]
    return found[max(found)], op_specs(key)[-1]


def marked(value: Any) -> str:
    """Return a schema's name of an input or output with the mark of the table."""
    option = value.option.name
    return str(value.name) + {"Optional": "?", "Variadic": "*"}.get(option, "")


def kinds_agree(mine: str, given: str) -> bool:
    """Whether a kind of the table stands for a type of the schemas."""
    if mine == "dtype":
        return given in ("INT", "TYPE_PROTO")
    plural = given.endswith("S")
    wanted = KINDS.get(given[:-1] if plural else given, "tensor")
    return mine == wanted + "s" * plural


def same_default(mine: Any, given: Any) -> None:
    """Compare defaults; floats as float32, types by name."""
    if isinstance(given, bytes):
        assert mine == given.decode()
    elif isinstance(given, float):
        assert np.float32(mine) == np.float32(given)
    elif isinstance(mine, str):
        assert ONNX_DTYPES[given] == mine
    elif isinstance(given, list):
        assert list(mine) == [v.decode() if isinstance(v, bytes) else v for v in given]
    else:
        assert mine == given
