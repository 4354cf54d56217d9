"""Hugging Face to GGUF: what llama.cpp's conversion script makes of the same folders.

The stored digests come from the script itself: `python -m support.script_golden` in `tests` writes
them anew where HALFBYTE_LLAMA_CPP_SOURCE names its tree. tests/peers/test_conversion_script.py runs
the script.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from halfbyte.converters import read
from support.gguf_digest import digest, metadata, tensor_digests
from support.gguf_models import write
from support.script_cases import CASES, FILE_TYPE_NUMBERS, MAY_DIFFER, RUNS, type_request
from support.script_models import write_folder_case

GOLDEN = json.loads((Path(__file__).parent / "llama_cpp_conversion.json").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("folders")
    return {name: write_folder_case(case, parent) for name, case in CASES.items()}


def test_every_case_is_stored() -> None:
    assert GOLDEN.keys() == CASES.keys()


@pytest.mark.parametrize(("name", "outtype"), RUNS)
def test_files_are_those_of_the_script(
    folders: dict[str, Path], tmp_path: Path, name: str, outtype: str
) -> None:
    path = tmp_path / "m.gguf"
    type_name, overrides = type_request(outtype)
    write(read(folders[name]), path, type_name, overrides=overrides)
    assert digest(tensor_digests(path)) == GOLDEN[name]["tensors"][outtype]
    expected = {
        **GOLDEN[name]["metadata"],
        "general.file_type": ["UINT32", FILE_TYPE_NUMBERS[outtype]],
    }
    found = metadata(path)
    for case in ("", name, f"{name}/{outtype}"):
        for key in MAY_DIFFER.get(case, {}):
            assert found.pop(key) != expected.pop(key, None)
    assert found == expected
