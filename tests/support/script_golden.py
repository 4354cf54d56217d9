"""What llama.cpp's scripts make of the cases; `python -m support.script_golden` stores it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from support.gguf_digest import digest, metadata, tensor_digests
from support.llama_cpp_scripts import conversion, run
from support.script_cases import CASES, RUNS
from support.script_models import write_folder_case

STORED = Path(__file__).parents[1] / "golden" / "llama_cpp_conversion.json"


def script_outputs(parent: Path) -> dict[str, dict[str, Path]]:
    """Write every folder below `parent` and convert it; return files by case and outtype."""
    outputs: dict[str, dict[str, Path]] = {}
    jobs = []
    for name, case in CASES.items():
        folder = write_folder_case(case, parent)
        outtypes = [outtype for run_name, outtype in RUNS if run_name == name]
        outputs[name] = {outtype: parent / f"{name}-{outtype}.gguf" for outtype in outtypes}
        jobs += [conversion(folder, t, path, case.pre) for t, path in outputs[name].items()]
    run(jobs)
    return outputs


def golden_entry(files: dict[str, Path]) -> dict[str, Any]:
    """Return what is stored of one case; metadata differ by outtype in the file type alone."""
    pairs = metadata(files["f32"])
    for outtype, path in files.items():
        other = metadata(path)
        assert {k for k in pairs if pairs[k] != other.get(k)} <= {"general.file_type"}, outtype
    tensors = {outtype: digest(tensor_digests(path)) for outtype, path in files.items()}
    return {"metadata": pairs, "tensors": tensors}


def main() -> None:
    """Write the stored file."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = script_outputs(Path(folder))
        found = {name: golden_entry(files) for name, files in outputs.items()}
    lines = [f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
