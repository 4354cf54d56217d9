"""The `halfbyte` command: parse, call the library, print."""

from __future__ import annotations

import io
import signal
import sys

from halfbyte.errors import EXIT_INTERRUPTED

# name: (module, line in `halfbyte --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("halfbyte.cli.inspect", "Show what a model is: tensors, encodings, metadata."),
    "convert": ("halfbyte.cli.convert", "Write a model in another format."),
    "quantize": ("halfbyte.cli.quantize", "Write a model with weights in a smaller encoding."),
    "imatrix": ("halfbyte.cli.imatrix", "Collect, merge or show importance matrices."),
    "verify": ("halfbyte.cli.verify", "Measure how far a model is from its reference."),
    "diff": ("halfbyte.cli.diff", "Show what differs between two models."),
    "edit": ("halfbyte.cli.edit", "Change the metadata of a GGUF file."),
    "run": ("halfbyte.cli.run", "Generate text, or run arrays through a model."),
    "bench": ("halfbyte.cli.bench", "Measure prefill and decode speed."),
    "demo": ("halfbyte.cli.demo", "Take the embedded model through every stage."),
    "doctor": ("halfbyte.cli.doctor", "Show devices, compiled features and versions."),
    "completion": ("halfbyte.cli.completion", "Print the completion script of a shell."),
}


def main() -> None:
    """Run the command line and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names and texts may not fit the terminal
    try:
        from halfbyte.cli.group import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while modules are imported
        print("\nerror: interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more must not break the way out
    sys.exit(code)
