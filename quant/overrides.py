"""`--tensor GLOB=TYPE`: which weights an override names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from halfbyte.errors import HalfbyteError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.tensor import Tensor

Aliases = Callable[[Tensor], Iterable[str]]
SUFFIX = ".weight"


def no_aliases(tensor: Tensor) -> Iterable[str]:
    """Return no further names."""
    return ()


def names_of(tensor: Tensor, aliases: Aliases = no_aliases) -> list[str]:
    """Return the names a glob may match: own, other containers', role path; `.weight` optional."""
    names = [tensor.name, *aliases(tensor)]
    if tensor.key is not None:
        names.append(str(tensor.key))
    return [form for name in names for form in dict.fromkeys((name, name.removesuffix(SUFFIX)))]


def matched_overrides(
    weights: Mapping[str, Tensor],
    overrides: Sequence[tuple[str, str]],
    aliases: Aliases = no_aliases,
) -> dict[str, tuple[str, Encoding]]:
    """Return weight name -> (glob, encoding); where several globs match, the last one wins.

    Raises:
        UnsupportedError: a type has no such name.
        HalfbyteError: a glob matches nothing; the nearest names are given.
    """
    if not overrides:
        return {}
    names = {name: names_of(tensor, aliases) for name, tensor in weights.items()}
    chosen: dict[str, tuple[str, Encoding]] = {}
    for pattern, type_name in overrides:
        encoding = encoding_from_name(type_name)
        hits = [
            name for name, forms in names.items() if any(fnmatchcase(f, pattern) for f in forms)
        ]
        if not hits:
            known = [form for forms in names.values() for form in forms]
            raise HalfbyteError(
                f"--tensor {pattern}={type_name}: no weight has such a name; "
                f"nearest are {_nearest(pattern, known)}"
            )
        chosen.update((name, (pattern, encoding)) for name in hits)
    return chosen


def _nearest(pattern: str, known: list[str]) -> str:
    plain = pattern.replace("*", "")
    close = difflib.get_close_matches(plain, known, n=5, cutoff=0.0)
    return ", ".join(repr(name) for name in dict.fromkeys(close))
