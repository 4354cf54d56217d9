"""The command line as a whole: help, laziness, exit codes, errors."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import click
import pytest

from halfbyte import __version__
from halfbyte.cli import COMMANDS, group, main
from halfbyte.cli.output import print_json
from halfbyte.errors import GateError, HalfbyteError
from support.model_folders import tiny_model, write_model

HEAVY = ("numpy", "onnx", "rich", "gguf", "tokenizers", "jinja2", "huggingface_hub", "torch")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from halfbyte.cli.group import run; code = run(['--help']);"
        "print(code, *sys.modules, file=sys.stderr)"
    )
    found = python("-c", code)
    words = found.stderr.decode().split()
    assert words[0] == "0"
    assert not set(HEAVY) & set(words)
    assert not [word for word in words if word.startswith("halfbyte.runtime")]
    shown = re.findall(r"^  (\w+)  +(\S.*)$", found.stdout.decode().split("Commands:")[1], re.M)
    assert shown == [(name, line) for name, (_, line) in COMMANDS.items()]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name, cli):
    found = cli(name, "--help")
    assert found.code == 0
    assert found.out.startswith(f"Usage: halfbyte {name} ")
    if name != "completion":
        assert "--json" in found.out and "--quiet" in found.out


def test_module_and_version():
    found = python("-m", "halfbyte", "--version")
    assert found.returncode == 0
    assert found.stdout.decode().split() == ["halfbyte,", "version", __version__]


def test_exit_code_reaches_the_shell(models):
    found = python("-m", "halfbyte", "inspect", str(models / "nothing.gguf"))
    assert (found.returncode, found.stdout) == (1, b"")
    assert re.fullmatch(rb"error: .*nothing\.gguf: .*\n", found.stderr)


def test_no_arguments_show_the_help(cli):
    found = cli()
    assert found.code == 2
    assert "Commands:" in found.err


@pytest.mark.parametrize(
    ("typed", "hint"), [("inspct", " Did you mean 'inspect'?"), ("zzzz", "")], ids=["near", "far"]
)
def test_unknown_command(typed, hint, cli):
    found = cli(typed)
    assert (found.code, found.out) == (2, "")
    assert found.err.endswith(f"Error: No such command '{typed}'.{hint}\n")


@pytest.mark.parametrize("arguments", [["--nonsense"], ["inspect"], ["doctor", "--what"]])
def test_wrong_usage(arguments, cli):
    found = cli(*arguments)
    assert (found.code, found.out) == (2, "")
    assert "Error: " in found.err


def test_debug_raises(models):
    with pytest.raises(HalfbyteError, match="no such file"):
        group.run(["--debug", "inspect", str(models / "nothing.gguf")])


class Interrupting(ModuleType):
    def __getattr__(self, name: str) -> None:
        raise KeyboardInterrupt


def raising(error: BaseException) -> click.Command:
    def body() -> None:
        raise error

    return click.Command("inspect", callback=body)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "\nerror: interrupted\n"),
        (click.Abort(), 130, "error: interrupted\n"),
        (HalfbyteError("x: y"), 1, "error: x: y\n"),
        (GateError("mean_kl", 2.0, 1.0), 3, "error: gate mean_kl: measured 2, limit 1\n"),
        (OSError(errno.ENOSPC, "No space left", "out.gguf"), 1, "error: out.gguf: No space left\n"),
        (OSError("odd"), 1, "error: odd\n"),
    ],
    ids=["interrupt", "abort", "error", "gate", "disk", "os"],
)
def test_errors_become_exit_codes(error, code, line, monkeypatch, cli):
    monkeypatch.setattr(group.LazyGroup, "get_command", lambda *_: raising(error))
    found = cli("inspect")
    assert (found.code, found.out) == (code, "")
    assert found.err.lstrip("\n") == line.lstrip("\n")


def test_debug_shows_what_the_system_said(monkeypatch):
    odd = OSError(errno.EIO, "Input/output error", "x")
    monkeypatch.setattr(group.LazyGroup, "get_command", lambda *_: raising(odd))
    with pytest.raises(OSError, match="Input/output"):
        group.run(["--debug", "inspect"])


def test_a_reader_that_goes_away_is_no_error(models):
    code = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'halfbyte', 'inspect', sys.argv[1], '--all']\n"
        "reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "reader.stdout.close()\n"
        "print(reader.stderr.read().decode(), reader.wait())\n"
    )
    found = python("-c", code, str(models / "llama.gguf"))
    assert found.stdout.split() == [b"1"]


def test_main_leaves_with_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["halfbyte", "doctor", "--quiet"])
    for module in ("halfbyte.cli", "halfbyte.__main__"):
        with pytest.raises(SystemExit) as left:
            import_module(module).main()
        assert left.value.code == 0
    assert capsys.readouterr() == ("", "")


def test_a_closed_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(group.LazyGroup, "get_command", lambda *_: raising(BrokenPipeError()))
    with contextlib.suppress(SystemExit):
        assert group.run(["inspect"]) == 1


def test_the_group_knows_its_commands():
    context = click.Context(group.halfbyte)
    assert group.halfbyte.list_commands(context) == list(COMMANDS)
    assert group.halfbyte.get_command(context, "nothing") is None


def test_json_has_no_nan(capsys):
    print_json({"a": [math.nan, math.inf, -math.inf, 1.5], "b": ("é", {"c": math.nan})})
    assert json.loads(capsys.readouterr().out) == {
        "a": [None, None, None, 1.5],
        "b": ["é", {"c": None}],
    }


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_an_interrupt_while_text_streams(tmp_path):
    model = tiny_model("llama")
    endless = replace(model.tokenizer, special_ids={}, stop_ids=(), source={})
    path = write_model(replace(model, tokenizer=endless, _graph=[]), tmp_path / "endless.hb")
    command = [
        sys.executable,
        "-m",
        "halfbyte",
        "run",
        str(path),
        "fox",
        "--max-tokens",
        "10000000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.read(10)
        running.send_signal(signal.SIGINT)
        try:
            _, shown = running.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            # Python forgets an interrupt that it raises inside a finalizer; a second one must do.
            running.send_signal(signal.SIGINT)
            _, shown = running.communicate(timeout=30)
    assert running.returncode == 130
    assert shown.decode().strip() == "error: interrupted"


def test_an_interrupt_while_modules_are_imported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "halfbyte.cli.group", Interrupting("halfbyte.cli.group"))
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as left:
            main()
    finally:
        ignored = signal.signal(signal.SIGINT, before)
    assert left.value.code == 130
    assert ignored is signal.SIG_IGN
    assert capsys.readouterr().err == "\nerror: interrupted\n"


def test_output_survives_a_terminal_without_unicode(models):
    model = str(models / "llama.gguf")
    found = python("-m", "halfbyte", "inspect", model, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert found.returncode == 0, found.stderr
    assert b"float32" in found.stdout


def test_doctor(cli):
    found = cli("doctor", "--json").json()
    assert [entry["name"] for entry in found["backends"]] == ["cpu", "cuda", "metal"]
    assert all(
        entry.keys() >= {"name", "available", "reason", "devices"} for entry in found["backends"]
    )
    assert found["backends"][0]["available"]
    assert found["features"] and found["versions"]["halfbyte"] == __version__
    text = cli("doctor")
    assert text.code == 0
    assert re.search(r"^cpu    available", text.out, re.M)
    assert f"version  halfbyte {__version__}" in text.out
    assert cli("doctor", "--quiet").out == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, cli, monkeypatch):
    found = cli("completion", shell)
    assert found.code == 0
    assert "_HALFBYTE_COMPLETE" in found.out
    assert cli("completion", "csh").code == 2


def test_completion_offers_commands(monkeypatch):
    found = python(
        "-m",
        "halfbyte",
        _HALFBYTE_COMPLETE="bash_complete",
        COMP_WORDS="halfbyte in",
        COMP_CWORD="1",
    )
    assert found.stdout.split() == [b"plain,inspect"]


def test_python_interface_is_lazy():
    code = (
        "import sys, json, halfbyte; before = sorted(sys.modules);"
        "names = {n: getattr(halfbyte, n).__module__ for n in halfbyte.__all__ if n[0] != '_'};"
        "peers = [m for m in ('torch', 'transformers', 'onnxruntime', 'llama_cpp', 'mlx')"
        " if m in sys.modules];"
        "print(json.dumps([before, names, peers]))"
    )
    before, names, peers = json.loads(python("-c", code).stdout)
    assert not set(HEAVY) & set(before)
    assert [name for name in before if name.startswith("halfbyte.")] == []
    assert names == {
        "HalfbyteError": "halfbyte.errors",
        "Session": "halfbyte.runtime.session",
        **dict.fromkeys(("convert", "open", "quantize", "verify"), "halfbyte.pipeline"),
    }
    assert peers == []


def test_unknown_attribute():
    import halfbyte

    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = halfbyte.quantise
