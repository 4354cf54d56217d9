"""The plan: which encoding each weight gets. Nothing else chooses encodings.

With a type, the rules are llama-quantize's where it has them: norms, biases, vectors and tables of
positions stay float; the output head (or the token embedding that serves as one) gets a better type
than the low-bit types; rows that do not divide into blocks fall back to float16.
Without a type each weight keeps its encoding if the container holds it, else takes a lossless one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.affine import Affine
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import Verdict, judge, judge_tensor, refusal, transcode
from halfbyte.ir.model import Model
from halfbyte.ir.profile import CONSTANT, Profile, stays_float
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms import get_algorithm
from halfbyte.quant.overrides import Aliases, matched_overrides, no_aliases

# llama-quantize gives all these heads Q6_K.
HEAD_TYPES = {"Q4_0": "Q8_0", "Q4_1": "Q8_0", "Q5_0": "Q8_0", "Q5_1": "Q8_0"}
HEAD_TYPES |= dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K"), "Q6_K")
HEAD_BITS = 8
SMALLEST_FLOAT_BITS = 16  # of norms, biases and other weights that are never quantized
# Types with smaller blocks, as llama-quantize picks them for rows that do not divide.
SHORTER_BLOCKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ROW_LENGTH_FALLBACK = "float16"


@dataclass(frozen=True)
class Decision:
    """What becomes of one weight, and why."""

    tensor: Tensor
    target: Encoding
    verdict: Verdict
    reason: str

    @property
    def source(self) -> Encoding:
        """Return the encoding the weight has now."""
        return self.tensor.encoding


@dataclass(frozen=True)
class Plan:
    """One decision for each weight of the model, in its order."""

    decisions: tuple[Decision, ...]
    type_name: str = ""
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Decision:
        """Return the decision on the weight called `name`."""
        return next(d for d in self.decisions if d.tensor.name == name)


def make_plan(
    model: Model,
    profile: Profile,
    type_name: str = "",
    overrides: Sequence[tuple[str, str]] = (),
    requantize: bool = False,
    aliases: Aliases = no_aliases,
) -> Plan:
    """Return the plan for writing `model` into a container, quantized to `type_name` if given.

    overrides: (glob, type) pairs; aliases: further names by which globs find a weight. Reads
    weights only where a verdict depends on their values (range of float16, scales to be narrowed).

    Raises:
        UnsupportedError: a type is unknown, the container cannot hold it, or a quantized weight
            would be quantized again without `requantize`.
        QuantizationError: no type the container holds has the range of a weight.
        HalfbyteError: an override matches nothing.
    """
    base = encoding_from_name(type_name) if type_name else None
    chosen = matched_overrides(model.weights, overrides, aliases)
    planner = _Planner(profile, base, requantize, _is_tied(model))
    for name, tensor in model.weights.items():
        planner.add(tensor, chosen.get(name))
    planner.require_effect()
    return Plan(tuple(planner.decisions), type_name, tuple(planner.warnings))


def apply_plan(
    model: Model,
    plan: Plan,
    method: str = "rtn",
    importance: Mapping[str, NDArray[np.float32]] | None = None,
) -> Model:
    """Return the model with every weight in its planned encoding, computed while it is read.

    importance: [columns] float32 by weight name, for those that have it.

    Raises:
        UnsupportedError: no algorithm is called `method`.
    """
    algorithm = get_algorithm(method)
    weights = {}
    for name, decision in zip(model.weights, plan.decisions, strict=True):
        tensor, target = decision.tensor, decision.target
        if target == tensor.encoding:
            weights[name] = tensor
        elif decision.verdict.is_lossless or not (
            target.is_quantized or tensor.encoding.is_quantized
        ):
            weights[name] = transcode(tensor, target)
        else:
            weights[name] = algorithm(tensor, target, (importance or {}).get(name))
    return model.with_weights(weights)


def _is_integer(encoding: Encoding) -> bool:
    return isinstance(encoding, Dense) and not encoding.is_float


def _require_decodable(tensor: Tensor) -> None:
    if not tensor.encoding.can_decode:
        raise UnsupportedError(
            f"decoding {tensor.encoding}",
            f"tensor {tensor.name!r}",
            advice="its bytes can only be copied to a container that holds them",
        )


def _head_type(base: Encoding) -> Encoding:
    """Return the type of the output head in a file of type `base`: 8 bits under low-bit types."""
    if isinstance(base, Affine) and base.bits < HEAD_BITS:
        return replace(base, bits=HEAD_BITS)
    return encoding_from_name(HEAD_TYPES[base.name]) if base.name in HEAD_TYPES else base


def _fitting(tensor: Tensor, wanted: Encoding) -> Encoding:
    """Return `wanted`, or what stands in for it where rows do not divide into its blocks."""
    try:
        wanted.part_specs(tensor.rows, tensor.columns)
    except QuantizationError:
        name = SHORTER_BLOCKS.get(wanted.name, ROW_LENGTH_FALLBACK)
        return _fitting(tensor, encoding_from_name(name))
    return wanted


def _is_head(tensor: Tensor) -> bool:
    return tensor.role is Role.OUTPUT_HEAD or (
        tensor.role is None and tensor.name in ("output.weight", "lm_head.weight")
    )


def _is_token_embedding(tensor: Tensor) -> bool:
    return tensor.role is Role.TOKEN_EMBEDDING or (
        tensor.role is None and tensor.name == "token_embd.weight"
    )


def _is_tied(model: Model) -> bool:
    return not any(_is_head(tensor) for tensor in model.weights.values())


@dataclass
class _Planner:
    profile: Profile
    base: Encoding | None
    requantize: bool
    tied: bool
    decisions: list[Decision] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, tensor: Tensor, override: tuple[str, Encoding] | None) -> None:
        """Decide on one weight."""
        if override is not None:
            decision = self._overridden(tensor, *override)
        elif self.base is None or _is_integer(tensor.encoding):
            decision = self._kept(tensor)
        elif stays_float(tensor):
            decision = self._float(tensor, stays_float(tensor), self.base)
        else:
            wanted, reason = self._wanted(tensor, self.base)
            decision = self._settled(tensor, wanted, reason)
        self.decisions.append(decision)

    def require_effect(self) -> None:
        """Check that the container took the type for one weight at least, where it refused any.

        Raises:
            UnsupportedError: it took it for none.
        """
        if self.refused and all(decision.target != self.base for decision in self.decisions):
            sample = next(d.tensor for d in self.decisions if d.tensor.name == self.refused[0])
            raise UnsupportedError(
                f"type {self.base}", f"format {self.profile.name}", self._nearest(sample)
            )

    def _nearest(self, tensor: Tensor) -> list[str]:
        """Return what the container holds, nearest to the asked type first."""
        base = self.base
        assert base is not None
        held = self.profile.alternatives(tensor)
        held.sort(
            key=lambda e: (
                not judge(base, e).is_lossless,
                abs(e.bits_per_weight - base.bits_per_weight),
            )
        )
        return [encoding.name for encoding in held]

    def _overridden(self, tensor: Tensor, pattern: str, wanted: Encoding) -> Decision:
        floats = stays_float(tensor)
        if floats and wanted.is_quantized:
            self.warnings.append(f"{tensor.name}: --tensor {pattern} has no effect, {floats}")
            return (
                self._kept(tensor) if self.base is None else self._float(tensor, floats, self.base)
            )
        required = self.profile.required(tensor)
        if required is not None and required != wanted:
            self.warnings.append(
                f"{tensor.name}: --tensor {pattern} has no effect, "
                f"{self.profile.name} needs {required}"
            )
            return self._decided(tensor, required, f"{self.profile.name} needs {required}")
        return self._settled(tensor, wanted, f"--tensor {pattern}", explicit=True)

    def _wanted(self, tensor: Tensor, base: Encoding) -> tuple[Encoding, str]:
        serves_as_head = _is_head(tensor) or (self.tied and _is_token_embedding(tensor))
        better = _head_type(base) if serves_as_head else base
        if better != base:
            return better, f"output head: {better} instead of {base}"
        return base, f"type {base}"

    def _kept(self, tensor: Tensor) -> Decision:
        """Decide without a type: own encoding, else the container's, else a lossless one."""
        required = self.profile.required(tensor)
        if required is not None:
            return self._decided(tensor, required, f"{self.profile.name} needs {required}")
        if self.profile.accepts(tensor, tensor.encoding):
            return Decision(tensor, tensor.encoding, Verdict.EXACT, "kept")
        _require_decodable(tensor)
        held = self.profile.alternatives(tensor)
        reason = f"{self.profile.name} cannot hold {tensor.encoding}"
        for candidate in held:
            if judge(tensor.encoding, candidate).is_lossless:
                verdict = judge_tensor(tensor, candidate)
                if verdict.is_lossless:
                    return Decision(tensor, candidate, verdict, reason)
        if self.requantize:
            for candidate in held:
                if judge(tensor.encoding, candidate) is not Verdict.REFUSED:
                    return self._decided(tensor, candidate, reason)
        raise UnsupportedError(
            f"{tensor.encoding} in {self.profile.name} without loss",
            f"tensor {tensor.name!r}",
            [candidate.name for candidate in held],
            "give --type, or --requantize to take the nearest type",
        )

    def _float(self, tensor: Tensor, reason: str, base: Encoding) -> Decision:
        """Decide on a weight that is never quantized."""
        required = self.profile.required(tensor)
        if required is not None:
            return self._decided(tensor, required, reason)
        wide = isinstance(base, Dense) and base.bits_per_weight >= SMALLEST_FLOAT_BITS
        if wide and tensor.kind != CONSTANT and not tensor.encoding.is_quantized:
            return self._settled(tensor, base, f"type {base}")
        kept = self._kept(tensor)
        return replace(kept, reason=reason) if kept.target == tensor.encoding else kept

    def _settled(
        self, tensor: Tensor, wanted: Encoding, reason: str, explicit: bool = False
    ) -> Decision:
        """Decide for `wanted`, or for what can stand in its place."""
        _require_decodable(tensor)
        if judge(tensor.encoding, wanted) is Verdict.REFUSED:
            if explicit:
                raise refusal(tensor, wanted, lambda e: self.profile.accepts(tensor, e))
            return self._kept(tensor)
        try:
            wanted.part_specs(tensor.rows, tensor.columns)
        except QuantizationError as error:
            fallback = _fitting(tensor, wanted)
            self.warnings.append(f"{tensor.name}: {fallback} instead of {wanted}, {error.rule}")
            wanted = fallback
            reason = f"rows of {tensor.columns} do not divide into blocks"
        if not self.profile.accepts(tensor, wanted):
            return self._not_held(tensor, wanted, explicit)
        return self._decided(tensor, wanted, reason)

    def _not_held(self, tensor: Tensor, wanted: Encoding, explicit: bool) -> Decision:
        held = [candidate.name for candidate in self.profile.alternatives(tensor)]
        if explicit:
            where = f"tensor {tensor.name!r}"
            raise UnsupportedError(f"{wanted} in {self.profile.name}", where, held)
        self.refused.append(tensor.name)
        reason = f"{self.profile.name} cannot hold {wanted} here"
        return replace(self._kept(tensor), reason=reason)

    def _decided(self, tensor: Tensor, target: Encoding, reason: str) -> Decision:
        """Return the decision after looking at the verdict; floats out of range stay wider."""
        if tensor.encoding == target:
            return Decision(tensor, target, Verdict.EXACT, reason)
        try:
            verdict = judge_tensor(tensor, target)
        except QuantizationError as error:
            if not isinstance(target, Dense):
                raise
            return self._wider(tensor, target, error)
        again = tensor.encoding.is_quantized and not verdict.is_lossless
        if again and not self.requantize:
            raise refusal(tensor, target, lambda e: self.profile.accepts(tensor, e))
        return Decision(tensor, target, verdict, reason)

    def _wider(self, tensor: Tensor, target: Dense, error: QuantizationError) -> Decision:
        for candidate in (tensor.encoding, Dense("bfloat16"), Dense("float32")):
            dense = isinstance(candidate, Dense) and candidate != target
            if not dense or not self.profile.accepts(tensor, candidate):
                continue
            try:
                verdict = judge_tensor(tensor, candidate)
            except QuantizationError:
                continue
            self.warnings.append(f"{tensor.name}: {candidate} instead of {target}, {error.rule}")
            return Decision(tensor, candidate, verdict, f"beyond the range of {target}")
        raise error
