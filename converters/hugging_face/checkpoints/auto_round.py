"""AutoRound's checkpoints: the arrays of GPTQ or AWQ, named by `packing_format`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from halfbyte.converters.hugging_face.checkpoints.awq import AWQ
from halfbyte.converters.hugging_face.checkpoints.checkpoint import Layout, Quantization
from halfbyte.converters.hugging_face.checkpoints.gptq import GPTQ
from halfbyte.errors import UnsupportedError
from halfbyte.ir.profile import Profile
from halfbyte.ir.tensor import Tensor

_PLAIN = re.compile(r"[\w.\-]+")


class AutoRound:
    """Entry `auto-round` of CHECKPOINTS; read only, it writes nothing of its own."""

    def read(self, tensors: Mapping[str, Tensor], found: Quantization) -> dict[str, Tensor]:
        """Return the tensors with each quantized weight as one; see Checkpoint."""
        packing = str(found.settings.get("packing_format") or "auto_round:auto_gptq")
        if "awq" in packing:
            return AWQ.read(tensors, replace(found, settings=_without_version(found.settings)))
        if "gptq" not in packing:
            known = ["auto_round:auto_gptq", "auto_round:auto_awq"]
            raise UnsupportedError(f"packing_format {packing!r}", str(found.where), known)
        settings = {**_without_version(found.settings), "dynamic": _overrides(found.settings)}
        return GPTQ.read(tensors, replace(found, settings=settings))

    def profile(self) -> Profile:
        """Return what GPTQ holds."""
        return GPTQ.profile()

    def layout(self, tensors: Sequence[Tensor], config: Mapping[str, Any]) -> Layout:
        """Return GPTQ's layout."""
        return GPTQ.layout(tensors, config)


def _without_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in ("version", "format")}


def _overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what single layers have, as GPTQ's `dynamic`."""
    own = settings.get("extra_config")
    if not isinstance(own, dict):
        return {}
    return {f"{re.escape(n) if _PLAIN.fullmatch(n) else n}$": said for n, said in own.items()}


AUTO_ROUND = AutoRound()
