"""The plan: which encoding each weight gets. Nothing else chooses encodings.

With a type, the rules are llama-quantize's where it has them: norms, biases, vectors and tables of
positions stay float; a mix (`mixes.py`) gives better types to weights that matter more; rows that
do not divide into blocks fall back to smaller blocks or float16.
Without a type each weight keeps its encoding if the container holds it, else takes a lossless one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from halfbyte.errors import QuantizationError, UnsupportedError, and_others
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Encoding
from halfbyte.ir.encodings.transcode import Verdict, judge, judge_tensor, refusal, transcode
from halfbyte.ir.model import Model
from halfbyte.ir.profile import CONSTANT, AdvisingProfile, HeadProfile, Profile, stays_float
from halfbyte.ir.tensor import Tensor
from halfbyte.quant.algorithms import get_algorithm
from halfbyte.quant.mixes import ROW_LENGTH_FALLBACK, SHORTER_BLOCKS
from halfbyte.quant.overrides import Aliases, matched_overrides, no_aliases
from halfbyte.quant.type_choice import TypeChoice, TypeOptions, is_head, named_type

SMALLEST_FLOAT_BITS = 16  # of norms, biases and other weights that are never quantized
STAND_IN = "Q8_0"  # where a container does not hold the better type that a mix has


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

    @property
    def is_search(self) -> bool:
        """Whether an algorithm chooses codes: the values change, and one side has codes."""
        has_codes = self.target.is_quantized or self.source.is_quantized
        return has_codes and not self.verdict.keeps_codes


@dataclass(frozen=True)
class Plan:
    """One decision for each weight of the model, in its order.

    file_type: the number of the mix in `general.file_type`, if the type is one. needs_importance:
    weights that must not be encoded without an importance matrix.
    """

    decisions: tuple[Decision, ...]
    type_name: str = ""
    warnings: tuple[str, ...] = ()
    file_type: int | None = None
    needs_importance: tuple[str, ...] = ()

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
    options: TypeOptions | None = None,
) -> Plan:
    """Return the plan for writing `model` into a container, quantized to `type_name` if given.

    type_name: a mix or an encoding. overrides: (glob, type) pairs; aliases: further names by which
    globs find a weight; options: what bends the type. Reads weights only where a verdict depends on
    their values (range of float16, scales to be narrowed).

    Raises:
        UnsupportedError: a type is unknown, the container cannot hold it, or a quantized weight
            would be quantized again without `requantize`.
        QuantizationError: no type the container holds has the range of a weight.
        HalfbyteError: an override matches nothing.
    """
    choice = None
    if type_name:
        choice = TypeChoice(model, named_type(type_name), options or TypeOptions())
    chosen = matched_overrides(model.weights, overrides, aliases)
    planner = _Planner(profile, choice, requantize)
    for name, tensor in model.weights.items() if choice is None else choice.in_order():
        planner.add(name, tensor, chosen.get(name))
    planner.require_effect()
    return Plan(
        tuple(planner.decisions[name] for name in model.weights),
        type_name,
        planner.notices,
        None if choice is None else choice.named.file_type,
        tuple(name for name in model.weights if name in planner.needs_importance),
    )


def apply_plan(
    model: Model,
    plan: Plan,
    method: str = "rtn",
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    compat: bool = False,
) -> Model:
    """Return the model with every weight in its planned encoding, computed while it is read.

    importance: [columns] or, for stacked experts, [matrices, columns] float32 by weight name, for
    those that have it. compat: llama.cpp's bytes also where its encoder has a fault.

    Raises:
        UnsupportedError: no algorithm is called `method`.
    """
    algorithm = get_algorithm(method)
    weights = {}
    for (name, tensor), decision in zip(model.weights.items(), plan.decisions, strict=True):
        target = decision.target
        if target == tensor.encoding:
            weights[name] = tensor
        elif not decision.is_search:
            weights[name] = transcode(tensor, target)
        else:
            weights[name] = algorithm(tensor, target, (importance or {}).get(name), compat)
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


def _fitting(tensor: Tensor, wanted: Encoding) -> Encoding:
    """Return `wanted`, or what stands in for it where rows do not divide into its blocks."""
    try:
        wanted.part_specs(tensor.rows, tensor.columns)
    except QuantizationError:
        name = SHORTER_BLOCKS.get(wanted.name, ROW_LENGTH_FALLBACK)
        return _fitting(tensor, encoding_from_name(name))
    return wanted


def _advice(tensor: Tensor) -> str:
    """Return what to do with a weight that a container cannot hold without loss."""
    requantize = "give --type, or --requantize to take the nearest type"
    grid = tensor.encoding.grid
    if grid is None or not grid.act_order:
        return requantize
    return f"hf:gptq, onnx:ort and hb keep the order of its groups (act-order); or {requantize}"


def _effect_advice(profile: Profile) -> str:
    """Return what to do where a container takes a type for no weight at all."""
    return profile.advice if isinstance(profile, AdvisingProfile) else ""


@dataclass
class _Planner:
    profile: Profile
    choice: TypeChoice | None
    requantize: bool
    decisions: dict[str, Decision] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    needs_importance: set[str] = field(default_factory=set)
    fallbacks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def notices(self) -> tuple[str, ...]:
        """Return the warnings, alike ones as one."""
        alike = [f"{names[0]}{and_others(names)}: {what}" for what, names in self.fallbacks.items()]
        return (*self.warnings, *alike)

    @property
    def base(self) -> Encoding | None:
        """Return the type of most weights, None without a type."""
        return None if self.choice is None else self.choice.named.base

    def add(self, name: str, tensor: Tensor, override: tuple[str, Encoding] | None) -> None:
        """Decide on one weight of the model."""
        decision = self._decision(tensor, override)
        self.decisions[name] = decision
        choice, target = self.choice, decision.target
        if choice is not None and decision.is_search and choice.needs_importance(tensor, target):
            self.needs_importance.add(name)

    def _decision(self, tensor: Tensor, override: tuple[str, Encoding] | None) -> Decision:
        choice = self.choice
        is_fixed = _is_integer(tensor.encoding) or bool(stays_float(tensor))
        if choice is not None and not is_fixed:
            stays = choice.stays(tensor)
            if stays:
                return replace(self._kept(tensor), reason=stays)
            explicit = choice.explicit(tensor, override is not None)
            if explicit is not None:
                return self._settled(tensor, *explicit, explicit=True)
        if override is not None:
            return self._overridden(tensor, *override)
        if choice is None or _is_integer(tensor.encoding):
            return self._kept(tensor)
        if is_fixed:
            return self._float(tensor, stays_float(tensor), choice.named.base)
        chosen = choice.choose(tensor)
        if self._leaves_head and is_head(tensor):
            return replace(self._kept(tensor), reason=f"readers of {self.profile.name} want it so")
        return self._settled(tensor, *chosen)

    @property
    def _leaves_head(self) -> bool:
        return isinstance(self.profile, HeadProfile) and self.profile.leaves_head

    def require_effect(self) -> None:
        """Check that the container took the type for one weight at least, where it refused any.

        Raises:
            UnsupportedError: it took it for none.
        """
        if self.refused and all(
            decision.target != self.base for decision in self.decisions.values()
        ):
            assert self.choice is not None
            lists = [self._nearest(self.decisions[name].tensor) for name in self.refused]
            raise UnsupportedError(
                f"type {self.choice.named.name}", f"format {self.profile.name}",
                max(lists, key=len), _effect_advice(self.profile),
            )  # fmt: skip

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
            _advice(tensor),
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
            what = f"{fallback} instead of {wanted}, {error.rule}"
            self.fallbacks.setdefault(what, []).append(tensor.name)
            wanted = fallback
            reason = f"rows of {tensor.columns} do not divide into blocks"
        if self.profile.accepts(tensor, wanted):
            return self._decided(tensor, wanted, reason)
        stand_in = encoding_from_name(STAND_IN)
        better = self.base is not None and wanted != self.base and wanted.is_quantized
        if better and not explicit and self.profile.accepts(tensor, stand_in):
            return self._decided(tensor, stand_in, f"{self.profile.name} cannot hold {wanted} here")
        return self._not_held(tensor, wanted, explicit)

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
        again = tensor.encoding.is_quantized and not verdict.keeps_codes
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
