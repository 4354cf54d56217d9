"""The quantization_config of compressed-tensors: which scheme a module has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from halfbyte.converters.hugging_face.checkpoints.checkpoint import Quantization
from halfbyte.errors import FormatError

LINEAR = "Linear"
PACKED, INTEGER, FLOAT = "pack-quantized", "int-quantized", "float-quantized"
MIXED = "mixed-precision"


@dataclass(frozen=True)
class Group:
    """One entry of config_groups, or what stands in for it where nothing is said."""

    format: str
    weights: Mapping[str, Any]
    input_activations: Mapping[str, Any] | None = None


class Groups:
    """The config groups of a folder, and which modules they mean."""

    def __init__(self, found: Quantization) -> None:
        """Take what the folder says.

        Raises:
            FormatError: config_groups has another structure.
        """
        self._where = found.where
        self._format = str(found.settings.get("format") or "")
        groups = found.settings.get("config_groups") or {}
        if not isinstance(groups, dict):
            self._fail(f"config_groups is {groups!r}, an object was required")
        self._targets: list[tuple[str, Group]] = []
        for name, group in groups.items():
            targets = group.get("targets") if isinstance(group, dict) else None
            if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
                self._fail(f"config group {name!r} has no list of targets")
            weights = group.get("weights") or {}
            activations = group.get("input_activations")
            if not isinstance(weights, dict) or not isinstance(activations, dict | None):
                self._fail(f"config group {name!r} has weights or activations that are no object")
            said = str(group.get("format") or self._format)
            entry = Group(said, weights, activations)
            self._targets += [(target, entry) for target in targets]

    def _fail(self, rule: str) -> NoReturn:
        raise FormatError(self._where, f"{rule}; correct the config")

    def of(self, module: str) -> Group:
        """Return the group of a linear layer: exact names come before patterns, then classes.

        Raises:
            FormatError: a pattern is no regular expression.
        """
        for matches in (self._is_name, self._is_pattern, self._is_class):
            for target, group in self._targets:
                if matches(target, module):
                    return group
        return Group(self._format, {})

    def activations(self) -> list[Mapping[str, Any]]:
        """Return the schemes of activations, one for each group that has one."""
        found = [group.input_activations for _, group in self._targets]
        return [one for one in found if one is not None]

    @staticmethod
    def _is_name(target: str, module: str) -> bool:
        return target == module

    def _is_pattern(self, target: str, module: str) -> bool:
        if not target.startswith("re:"):
            return False
        try:
            return re.match(target.removeprefix("re:"), module) is not None
        except re.error as error:
            self._fail(f"target {target!r} is no regular expression ({error})")
            raise

    @staticmethod
    def _is_class(target: str, module: str) -> bool:
        return target == LINEAR
