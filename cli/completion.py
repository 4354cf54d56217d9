"""`halfbyte completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion", help="Print the completion script of SHELL, to be sourced by it.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print a completion script."""
    from halfbyte.cli.group import halfbyte

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(halfbyte, {}, "halfbyte", "_HALFBYTE_COMPLETE").source())
