"""The mapping table, the folders and the links for type checkers agree; imports keep the layers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("ir", "converters", "quant", "runtime", "kernels", "verification", "cli")
LIBRARY = {"errors", "files", "engine", "memory"}

MAY_IMPORT = {
    "kernels": {"errors"},
    "ir": LIBRARY | {"ir", "kernels"},
    "converters": LIBRARY | {"ir", "kernels", "converters"},
    "runtime": LIBRARY | {"ir", "kernels", "runtime"},
    "quant": LIBRARY | {"ir", "kernels", "runtime", "quant"},
    "verification": LIBRARY | {"ir", "kernels", "runtime", "verification"},
}
HEAVY = {"cupy", "triton", "mlx", "torch", "ray", "onnxruntime", "transformers", "matplotlib"}


def test_table_folders_and_links_agree():
    text = (ROOT / "pyproject.toml").read_text()
    table = dict(re.findall(r'^"halfbyte/(\w+)" = "(\S+)"$', text, re.MULTILINE))
    assert table.pop("demo") == "examples/demo"
    assert table == {part: part for part in PARTS}
    for part in PARTS:
        link = ROOT / "typings" / "halfbyte" / part
        assert (ROOT / part / "__init__.py").is_file()
        if link.is_symlink():
            assert link.resolve() == ROOT / part


def test_every_library_module_has_a_link():
    modules = {path.name for path in (ROOT / "src" / "halfbyte").glob("*.py")}
    links = {path.name for path in (ROOT / "typings" / "halfbyte").glob("*.py")}
    assert links == modules


def imported_parts(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "halfbyte":
                names = [f"halfbyte.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "halfbyte" and len(pieces) > 1:
                found.add(pieces[1])
    return found - {"__version__"}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_parts_import_only_what_lies_below_them(part):
    for path in (ROOT / part).rglob("*.py"):
        extra = imported_parts(path) - MAY_IMPORT[part] - {part}
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}"


def test_nothing_but_the_cli_imports_the_cli():
    for path in [p for part in PARTS[:-1] for p in (ROOT / part).rglob("*.py")]:
        assert "cli" not in imported_parts(path), path


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_heavy_packages_are_imported_late():
    for part in (*PARTS, "src"):
        for path in (ROOT / part).rglob("*.py"):
            assert not top_level_imports(path) & HEAVY, path


def test_files_stay_short_and_well_named():
    for part in (*PARTS, "src", "tests", "bench"):
        for path in (ROOT / part).rglob("*"):
            if path.suffix in (".py", ".cpp", ".hpp") and "__pycache__" not in path.parts:
                lines = len(path.read_text(encoding="utf-8").splitlines())
                assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines"
                assert path.stem not in ("utils", "util", "helpers", "common", "misc"), path
