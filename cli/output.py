"""What commands print: JSON, tables, progress."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def print_json(document: Any) -> None:
    """Print one JSON document to standard output; NaN and infinities become null."""
    print(json.dumps(_finite(document), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def print_table(renderable: RenderableType) -> None:
    """Print tables or text to standard output."""
    from rich.console import Console

    # Names come from files: they are no markup.
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 110
    )
    console.print(renderable)


def print_warnings(warnings: tuple[str, ...] | list[str]) -> None:
    """Print warnings to standard error."""
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)


def size_text(count: int) -> str:
    """Return a byte count with a unit."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} B"


class Bar:
    """A progress bar on standard error."""

    def __init__(self, advance: Callable[[int], None], resize: Callable[[int], None]) -> None:
        self._advance = advance
        self._resize = resize

    def of_total(self, total: int) -> Callable[[int], None]:
        """Set the total and return the function that advances the bar."""
        self._resize(total)
        return self._advance


@contextlib.contextmanager
def progress_bar(label: str, *, silent: bool, unit: str = "bytes") -> Iterator[Bar | None]:
    """Yield a bar on standard error; None when silent or where there is no terminal."""
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    counter = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield Bar(
            lambda amount: bar.advance(task, amount),
            lambda total: bar.update(task, total=total, completed=0),
        )
