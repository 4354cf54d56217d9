"""The command group: commands are imported on first use, errors become exit codes."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from halfbyte import __version__
from halfbyte.cli import COMMANDS
from halfbyte.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, HalfbyteError


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command for the arguments; an unknown name suggests the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list from the table, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="halfbyte")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def halfbyte(debug: bool) -> None:
    """Convert, quantize and verify neural-network models."""


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def run(arguments: list[str]) -> int:
    """Run the command line with these arguments and return the exit code."""
    debug = "--debug" in arguments
    try:
        result: Any = halfbyte.main(arguments, prog_name="halfbyte", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _print_error("interrupted")
        return EXIT_INTERRUPTED
    except HalfbyteError as error:
        if debug:
            raise
        _print_error(str(error))
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
    except OSError as error:
        if debug:
            raise
        name = f"{error.filename}: " if error.filename else ""
        _print_error(f"{name}{error.strerror or error}")
        return EXIT_ERROR
    return result if isinstance(result, int) else EXIT_OK
