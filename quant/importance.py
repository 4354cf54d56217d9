"""Importance of weights from a matrix file, checked as llama-quantize checks it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.plan import Plan
from halfbyte.quant.type_choice import is_head, is_token_embedding

SHOWN_NAMES = 3


class ImportanceSource(Protocol):
    """What is read from an importance file; weights go by their GGUF names."""

    @property
    def path(self) -> str:
        """Return where it was read from."""

    def importance(self, name: str) -> NDArray[np.float32] | None:
        """Return [columns] or [matrices, columns] for a weight, None where there is no entry."""


def planned_importance(
    plan: Plan, source: ImportanceSource, name_of: Callable[[Tensor], str]
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Return importance for the weights that the plan encodes anew, by weight, and notices.

    Raises:
        QuantizationError: an entry has another length than the weight asks for, or holds a value
            that is not finite or is negative; no entry is of the model.
    """
    found: dict[str, NDArray[np.float32]] = {}
    missing: list[str] = []
    dead: list[str] = []
    notices: list[str] = []
    searched = [decision for decision in plan.decisions if decision.is_search]
    for decision in searched:
        tensor = decision.tensor
        values = source.importance(name_of(tensor))
        if values is None:
            if not (is_head(tensor) or is_token_embedding(tensor)):
                missing.append(tensor.name)
            continue
        shaped = _shaped(tensor, values, source.path)
        if shaped is None:
            notices.append(
                f"{tensor.name}: encoded without importance, {source.path} holds {values.size} "
                f"values for it and {tensor.columns} are required"
            )
        else:
            if not shaped.any(axis=-1).all():
                dead.append(tensor.name)
            found[tensor.name] = _without_dead_matrices(shaped)
    if dead:
        what = "is 0 for all columns, encoded without importance"
        notices.append(f"{source.path}: the importance of {_told(dead)} {what}")
    if missing and not found and not notices:
        rule = f"{source.path} has no entry for it nor for any other weight; is it another model's?"
        raise QuantizationError(missing[0], rule)
    if missing:
        notices.append(_missing_notice(missing, source.path))
    return found, notices


def _told(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_NAMES]) + (" ..." if len(names) > SHOWN_NAMES else "")
    return f"{len(names)} weights ({shown})"


def _missing_notice(missing: list[str], path: str) -> str:
    return f"{path}: no entry for {_told(missing)}, encoded without importance"


def _without_dead_matrices(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [..., columns] with 1 throughout where all columns of a matrix have 0.

    With nothing to weigh errors by, a search would take zeros for the best codes.
    """
    alive = values.any(axis=-1, keepdims=True)
    return np.where(alive, values, np.float32(1))


def _matrices(tensor: Tensor) -> int:
    """Return the number of matrices that are stacked in a weight."""
    return math.prod(tensor.shape[:-2])


def _shaped(tensor: Tensor, values: NDArray[np.float32], path: str) -> NDArray[np.float32] | None:
    """Return [columns] or [matrices, columns]; None for a token embedding of another length."""
    matrices = _matrices(tensor)
    if values.size != matrices * tensor.columns:
        if is_token_embedding(tensor):
            return None
        rule = (
            f"{path} holds {values.size} values for it, "
            f"{matrices * tensor.columns} are required; use the matrix of this model"
        )
        raise QuantizationError(tensor.name, rule)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        rule = f"{path} holds values for it that are negative or not finite; compute it anew"
        raise QuantizationError(tensor.name, rule)
    shape = (tensor.columns,) if matrices == 1 else (matrices, tensor.columns)
    return np.ascontiguousarray(values, np.float32).reshape(shape)


def require_importance(
    plan: Plan, importance: Mapping[str, NDArray[np.float32]], path: str
) -> None:
    """Check that the weights which need importance have it.

    Raises:
        QuantizationError: one has not.
    """
    lacking = [name for name in plan.needs_importance if name not in importance]
    if not lacking:
        return
    decision = plan[lacking[0]]
    more = f", as for {len(lacking) - 1} other weights" if len(lacking) > 1 else ""
    if not path:
        rule = (
            f"{decision.target} needs an importance matrix{more}; "
            f"give --imatrix FILE (`halfbyte imatrix` makes one) or another type"
        )
    else:
        rule = (
            f"{path} has no entry for it, {decision.target} needs one{more}; "
            f"compute the matrix on more text or name another type with --tensor"
        )
    raise QuantizationError(lacking[0], rule)
