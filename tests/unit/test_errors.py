"""Wording and exit codes of errors."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from halfbyte import errors
from halfbyte.errors import (
    BackendError,
    FormatError,
    GateError,
    GraphError,
    HalfbyteError,
    QuantizationError,
    UnsupportedError,
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FormatError(Path("a.gguf"), "is cut short"), "a.gguf: is cut short"),
        (FormatError("a.gguf", "is cut short", 7), "a.gguf at byte 7: is cut short"),
        (FormatError("a.gguf", "is cut short", 0), "a.gguf at byte 0: is cut short"),
        (UnsupportedError("type X", "a.gguf"), "a.gguf: type X is not supported"),
        (
            UnsupportedError("type X", "a", ["Y", "Z"], "use Y"),
            "a: type X is not supported; supported: Y, Z; use Y",
        ),
        (
            UnsupportedError("type X", "a", tuple("abcdefg")),
            "a: type X is not supported; supported: a, b, c, d, e and 2 more",
        ),
        (GraphError("add_3", "has no output"), "graph node add_3: has no output"),
        (QuantizationError("w", "has a NaN"), "tensor 'w': has a NaN"),
        (BackendError("no MLX", "install mlx"), "no MLX; install mlx"),
        (GateError("mean_kl", 0.25, 0.125), "gate mean_kl: measured 0.25, limit 0.125"),
    ],
)
def test_wording(error, text):
    assert isinstance(error, HalfbyteError)
    assert str(error) == text


def test_fields_say_what_the_message_says():
    found = FormatError("a.gguf", "is cut short", 7)
    assert (found.path, found.rule, found.offset) == ("a.gguf", "is cut short", 7)
    assert UnsupportedError("x", "y", ("z",)).supported == ["z"]
    assert BackendError("no MLX", "install mlx").how_to_install == "install mlx"
    assert QuantizationError("w", "r").tensor == "w"
    assert GraphError("n", "r").node == "n"


def test_exit_codes():
    assert HalfbyteError("x").exit_code == errors.EXIT_ERROR == 1
    assert GateError("x", 1.0, 0.0).exit_code == errors.EXIT_GATE == 3
    assert (errors.EXIT_OK, errors.EXIT_USAGE, errors.EXIT_INTERRUPTED) == (0, 2, 130)


def test_plain_errors_cross_process_borders():
    assert str(pickle.loads(pickle.dumps(HalfbyteError("x: y")))) == "x: y"
