"""`halfbyte edit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from halfbyte.cli.options import device_options, output_options
from halfbyte.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from halfbyte.converters.gguf.edit import MetadataEdit
    from halfbyte.converters.gguf.metadata_value import MetadataValue

TEMPLATE_KEY = "tokenizer.chat_template"


def _halves(entry: str, option: str) -> tuple[str, str]:
    key, separator, value = entry.partition("=")
    if not separator or not key:
        raise click.BadParameter(f"{entry!r} is not KEY=VALUE", param_hint=option)
    return key, value


def _text(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path}: {error}", param_hint=option) from error


def _edit(
    source: Path,
    settings: tuple[str, ...],
    files: tuple[str, ...],
    tokens: tuple[str, ...],
    renamed: tuple[str, ...],
    removed: tuple[str, ...],
) -> MetadataEdit:
    from halfbyte.converters.gguf.container import read_container
    from halfbyte.converters.gguf.edit import MetadataEdit, parse_value, special_token

    before = read_container(source).metadata
    found: dict[str, MetadataValue] = {}
    texts = [(*_halves(entry, "--set"), "") for entry in settings]
    for entry in files:
        key, path = _halves(entry, "--set-file")
        texts.append((key, _text(path, "--set-file"), "str"))
    for name, text, fixed in texts:
        key, _, type_name = name.partition(":")
        found[key] = parse_value(key, text, type_name or fixed, before.get(key))
    for entry in tokens:
        key, value = special_token(before, *_halves(entry, "--special-token"))
        found[key] = value
    pairs = [_halves(entry, "--rename") for entry in renamed]
    return MetadataEdit(found, removed, pairs)


@click.command("edit", help="Change the metadata of the GGUF file SRC, in place or written to DST.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("destination", metavar="[DST]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY[:TYPE]=VALUE",
    help="Set a key; the type is the one it has, or u32, f32, bool, str, [i32] ...",
)
@click.option(
    "--set-file", "files", multiple=True, metavar="KEY=FILE", help="Set a key to a file's text."
)
@click.option("--chat-template", metavar="FILE", help="Set the chat template to a file's text.")
@click.option(
    "--special-token",
    "tokens",
    multiple=True,
    metavar="NAME=TEXT",
    help="Set a special token (bos, eos, unk, pad, eot ...) by its text or id.",
)
@click.option("--rename", "renamed", multiple=True, metavar="OLD=NEW", help="Rename a key.")
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Remove a key.")
@device_options()
@output_options()
def command(
    source: Path,
    destination: Path | None,
    settings: tuple[str, ...],
    files: tuple[str, ...],
    chat_template: str | None,
    tokens: tuple[str, ...],
    renamed: tuple[str, ...],
    removed: tuple[str, ...],
    device: str,
    threads: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Edit metadata."""
    from halfbyte.converters.gguf.edit import edit_metadata
    from halfbyte.engine import available_threads

    if chat_template is not None:
        files = (*files, f"{TEMPLATE_KEY}={chat_template}")
    if not (settings or files or tokens or renamed or removed):
        raise click.UsageError("nothing to change; give --set, --set-file, --rename or --remove")
    edit = _edit(source, settings, files, tokens, renamed, removed)
    with progress_bar("writing", silent=quiet or as_json) as bar:
        advance = None if bar is None else bar.of_total(source.stat().st_size)
        patched = edit_metadata(source, destination, edit, threads or available_threads(), advance)
    target = source if destination is None else destination
    if as_json:
        print_json({"output": str(target), "changed": sorted(edit.set), "patched": patched})
    elif not quiet:
        print(f"{target}: {'patched in place' if patched else 'written'}")
