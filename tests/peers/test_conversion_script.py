"""Hugging Face to GGUF beside llama.cpp's conversion script, tensor for tensor and key for key.

Needs HALFBYTE_LLAMA_CPP_SOURCE, a llama.cpp source tree. Elsewhere the digests stored of the
script's output take its place: tests/golden/test_conversion_golden.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from halfbyte.converters import read
from halfbyte.converters.gguf.container import read_container
from support.gguf_digest import said
from support.gguf_models import write
from support.llama_cpp_scripts import require_source_tree
from support.script_cases import MAY_DIFFER, RUNS, type_request
from support.script_golden import STORED, golden_entry, script_outputs

pytestmark = pytest.mark.peer
Outputs = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    require_source_tree()
    return script_outputs(tmp_path_factory.mktemp("script"))


@pytest.mark.parametrize(("name", "outtype"), RUNS)
def test_the_script_writes_the_same(
    theirs: Outputs, tmp_path: Path, name: str, outtype: str
) -> None:
    source = theirs[name][outtype].parent / name
    type_name, overrides = type_request(outtype)
    write(read(source), tmp_path / "ours.gguf", type_name, overrides=overrides)
    expected = read_container(theirs[name][outtype])
    found = read_container(tmp_path / "ours.gguf")
    known = {info.name: info for info in found.tensors}
    assert known.keys() == {info.name for info in expected.tensors}
    for info in expected.tensors:
        assert (info.shape, info.kind) == (known[info.name].shape, known[info.name].kind)
        ours = found.tensor(known[info.name]).read()["data"]
        np.testing.assert_array_equal(ours, expected.tensor(info).read()["data"])
    excused = {key for case in ("", name, f"{name}/{outtype}") for key in MAY_DIFFER.get(case, ())}
    assert found.metadata.keys() - excused == expected.metadata.keys() - excused
    for key, value in expected.metadata.items():
        assert key in excused or said(key, found.metadata[key]) == said(key, value)


def test_stored_digests_are_the_script_s(theirs: Outputs) -> None:
    stored = json.loads(STORED.read_text())
    assert stored == {name: golden_entry(files) for name, files in theirs.items()}
