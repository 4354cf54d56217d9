"""What transforms found for each layer, in files of a journal.

A layer's file is there as a whole or not at all, so a run that was stopped goes on in its layer.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import FormatError
from halfbyte.files import atomic_file
from halfbyte.quant.transforms import Found

ENDING = ".layer.npz"
INDEX = "index"
Float = NDArray[np.float32]


@dataclass(frozen=True)
class LayerFindings:
    """What is known of a layer after its transforms, in their order.

    importance: of weights whose scales are searched by it, [columns] or [experts, columns].
    """

    found: Sequence[Found] = ()
    importance: dict[str, Float] = field(default_factory=dict)


class Findings:
    """A folder of findings, by the number of the layer."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that is there."""
        self._folder = folder

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}{ENDING}"

    def has(self, number: int) -> bool:
        """Whether a layer is done."""
        return self._path(number).is_file()

    def keep(self, number: int, findings: LayerFindings) -> None:
        """Write what was found for a layer."""
        arrays: list[Float] = []

        def placed(array: Float) -> int:
            arrays.append(array)
            return len(arrays) - 1

        index = {
            "found": [
                {
                    "factors": {name: placed(array) for name, array in each.factors.items()},
                    "limits": {n: [placed(a) for a in pair] for n, pair in each.limits.items()},
                }
                for each in findings.found
            ],
            "importance": {name: placed(array) for name, array in findings.importance.items()},
        }
        named: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
        named[INDEX] = np.frombuffer(json.dumps(index).encode(), np.uint8)
        with atomic_file(self._path(number)) as stream:
            np.savez(stream, **named)

    def of(self, number: int) -> LayerFindings | None:
        """Return what was found for a layer, None where it is to be done.

        Raises:
            FormatError: the file is damaged.
        """
        if not self.has(number):
            return None
        try:
            with (
                self._path(number).open("rb") as stream,
                np.load(stream, allow_pickle=False) as held,
            ):
                index = json.loads(held[INDEX].tobytes())
                found = [
                    Found(
                        {name: held[str(place)] for name, place in each["factors"].items()},
                        {
                            name: (held[str(low)], held[str(high)])
                            for name, (low, high) in each["limits"].items()
                        },
                    )
                    for each in index["found"]
                ]
                importance = {n: held[str(place)] for n, place in index["importance"].items()}
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
            raise FormatError(self._path(number), "is damaged; begin anew") from error
        return LayerFindings(found, importance)
