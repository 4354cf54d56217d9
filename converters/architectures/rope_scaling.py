"""Rotary settings of a config and the frequencies they mean.

Source: modeling_rope_utils.py of transformers 5 for the formulas of each `rope_type`.
Frequencies are float32 and rounded where transformers rounds, so that angles agree to the bit or
nearly so at long positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halfbyte.converters.architectures.config import (
    WHERE,
    ConfigReader,
    as_integer,
    as_number,
    reject,
)
from halfbyte.errors import UnsupportedError
from halfbyte.ir.roles import Role, WeightKey

Floats = NDArray[np.float32]

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
DEFAULT_THETA = 10000.0
DIVISORS = WeightKey(Role.ROPE_DIVISORS)
LONG_FACTORS = WeightKey(Role.ROPE_FACTORS_LONG)
SHORT_FACTORS = WeightKey(Role.ROPE_FACTORS_SHORT)
ROPE_KEYS = (DIVISORS, LONG_FACTORS, SHORT_FACTORS)

_NUMBERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": (),
}
_OPTIONAL_NUMBERS = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": ("factor", "attention_factor"),
}
_MINIMUM = 1e-6
_MAXIMUM = 1e18


@dataclass(frozen=True)
class Frequencies:
    """Angles per position: inverse [dimensions / 2] float32, factor on cosine and sine.

    `long` replaces `inverse` when a sequence passes `original_length` (longrope); with
    `dynamic_factor` the base grows with the part of a sequence beyond `original_length`.
    """

    inverse: Floats
    attention_factor: float = 1.0
    original_length: int = 0
    long: Floats | None = None
    dynamic_factor: float | None = None


def canonical_rope(raw: Mapping[str, Any], max_positions: int, dimensions: int) -> dict[str, Any]:
    """Return `rope_theta`, `rope_scaling` and `rope_interleaved` of a raw config.

    Raises:
        FormatError: a value is missing, has the wrong type or range.
        UnsupportedError: the kind of scaling is unknown.
    """
    given = _given_scaling(raw)
    theta = given.pop("rope_theta", None)
    theta = raw.get("rope_theta") if theta is None else theta
    theta = as_number("rope_theta", DEFAULT_THETA if theta is None else theta, _MINIMUM, _MAXIMUM)
    partial = given.pop("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(f"partial_rotary_factor {partial!r}", WHERE, ["1.0"])
    if dimensions % 2:
        reject("head_dim", dimensions, "an even number")
    return {
        "rope_theta": theta,
        "rope_scaling": _canonical_scaling(given, raw, theta, max_positions, dimensions),
        "rope_interleaved": ConfigReader(raw).flag("rope_interleaved", False),
    }


def _given_scaling(raw: Mapping[str, Any]) -> dict[str, Any]:
    found = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(found, Mapping):
        reject("rope_scaling", found, "a mapping")
    if any(isinstance(value, Mapping) for value in found.values()):
        raise UnsupportedError("rope_parameters for each layer type", WHERE)
    return dict(found)


def _canonical_scaling(
    given: Mapping[str, Any],
    raw: Mapping[str, Any],
    theta: float,
    max_positions: int,
    dimensions: int,
) -> dict[str, Any] | None:
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise UnsupportedError(f"rope_type {kind!r}", WHERE, ROPE_TYPES)
    if kind == "default":
        return None
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind in ("yarn", "llama3", "longrope"):
        original = raw.get("original_max_position_embeddings")
        if original is None:
            original = given.get("original_max_position_embeddings")
        original = max_positions if original is None else original
        original = as_integer("original_max_position_embeddings", original, 2)
        scaling["original_max_position_embeddings"] = original
        if kind == "yarn" and given.get("factor") is None:
            given = {**given, "factor": max_positions / original}
    for name in _NUMBERS[kind]:
        scaling[name] = as_number(f"rope_scaling.{name}", given.get(name), _MINIMUM, _MAXIMUM)
    for name in _OPTIONAL_NUMBERS.get(kind, ()):
        if given.get(name) is not None:
            scaling[name] = as_number(f"rope_scaling.{name}", given[name], 0.0, _MAXIMUM)
    _check_scaling(scaling, given, theta, dimensions)
    return scaling


def _check_scaling(
    scaling: dict[str, Any], given: Mapping[str, Any], theta: float, dimensions: int
) -> None:
    kind = scaling["rope_type"]
    if kind == "yarn":
        scaling["truncate"] = ConfigReader(given).flag("truncate", True)
        if theta <= 1:
            reject("rope_theta", theta, "a number above 1")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        reject("rope_scaling.high_freq_factor", scaling["high_freq_factor"], "a higher number")
    if kind == "dynamic" and dimensions < 4:
        reject("head_dim", dimensions, "at least 4")
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if given.get(name) is not None:
                scaling[name] = _factor_list(f"rope_scaling.{name}", given[name], dimensions // 2)


def _factor_list(key: str, found: object, length: int) -> list[float]:
    if not isinstance(found, list | tuple) or len(found) != length:
        reject(key, found, f"a list of {length} numbers")
    return [as_number(key, value, _MINIMUM, _MAXIMUM) for value in found]


def hugging_face_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary keys of config.json, in the spelling that transformers 4 and 5 read."""
    scaling = config["rope_scaling"]
    written = {"rope_theta": config["rope_theta"], "rope_scaling": scaling}
    if scaling is not None and scaling["rope_type"] == "longrope":
        name = "original_max_position_embeddings"
        written[name] = scaling[name]
    return written


def frequencies(config: Mapping[str, Any], tensors: Mapping[WeightKey, Floats]) -> Frequencies:
    """Return the frequencies of a canonical config and of explicit tensors (flat float32).

    Divisors apply where the config names no scaling or a linear one; where it says llama3 they
    are what the config already says.

    Raises:
        UnsupportedError: the config's scaling cannot be combined with the tensors.
        FormatError: longrope without factors.
    """
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    kind, dimensions = scaling["rope_type"], int(config["head_dim"])
    powers = _powers(config["rope_theta"], dimensions)
    inverse = np.float32(1.0) / powers
    if DIVISORS in tensors and kind not in ("default", "linear", "llama3"):
        raise UnsupportedError(f"rope_type {kind!r} together with divisor tensors", WHERE)
    if DIVISORS in tensors and kind != "llama3":
        inverse = inverse / _checked(tensors[DIVISORS], dimensions, "divisors")
    if kind == "linear":
        return Frequencies(inverse / np.float32(scaling["factor"]))
    if kind == "dynamic":
        length = int(config["max_position_embeddings"])
        return Frequencies(inverse, 1.0, length, dynamic_factor=scaling["factor"])
    if kind == "yarn":
        return Frequencies(_yarn(config, scaling, powers), _yarn_attention_factor(scaling))
    if kind == "llama3":
        return Frequencies(_llama3(inverse, scaling))
    if kind == "longrope":
        return _longrope(config, scaling, tensors, powers)
    return Frequencies(inverse)


def _powers(theta: float, dimensions: int) -> Floats:
    exponents = np.arange(0, dimensions, 2, dtype=np.float32) / np.float32(dimensions)
    powers: NDArray[np.float64] = np.float64(np.float32(theta)) ** exponents.astype(np.float64)
    return powers.astype(np.float32)


def _checked(values: Floats, dimensions: int, what: str) -> Floats:
    if values.shape != (dimensions // 2,) or not np.isfinite(values).all() or (values <= 0).any():
        reject(f"rotary {what}", values.tolist(), f"{dimensions // 2} positive numbers")
    return values


def _yarn(config: Mapping[str, Any], scaling: Mapping[str, Any], powers: Floats) -> Floats:
    dimensions = int(config["head_dim"])
    low, high = _yarn_range(scaling, math.log(config["rope_theta"]), dimensions)
    ramp = (np.arange(dimensions // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1.0) - np.clip(ramp, 0, 1)
    interpolated = np.float32(1.0) / (np.float32(scaling["factor"]) * powers)
    mixed = interpolated * (np.float32(1.0) - keep) + (np.float32(1.0) / powers) * keep
    return np.asarray(mixed, np.float32)


def _yarn_range(
    scaling: Mapping[str, Any], log_theta: float, dimensions: int
) -> tuple[float, float]:
    original = scaling["original_max_position_embeddings"]

    def dimension_at(rotations: float) -> float:
        return dimensions * math.log(original / (rotations * 2 * math.pi)) / (2 * log_theta)

    low = dimension_at(scaling.get("beta_fast") or 32.0)
    high = dimension_at(scaling.get("beta_slow") or 1.0)
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    return low, high + 0.001 if low == high else high


def _yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    factor = scaling["factor"]
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)


def _llama3(inverse: Floats, scaling: Mapping[str, Any]) -> Floats:
    factor = np.float32(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = np.float32(scaling["original_max_position_embeddings"])
    # torch divides a number by a tensor as reciprocal times number; the same roundings here
    wavelength = (np.float32(1.0) / inverse) * np.float32(2 * math.pi)
    stretched = np.where(wavelength > original / np.float32(low), inverse / factor, inverse)
    smooth = (np.float32(1.0) / wavelength) * original - np.float32(low)
    smooth = smooth / np.float32(high - low)
    medium = (1 - smooth) * stretched / factor + smooth * stretched
    is_medium = (wavelength >= original / np.float32(high)) & (
        wavelength <= original / np.float32(low)
    )
    return np.asarray(np.where(is_medium, medium, stretched), np.float32)


def _longrope(
    config: Mapping[str, Any],
    scaling: Mapping[str, Any],
    tensors: Mapping[WeightKey, Floats],
    powers: Floats,
) -> Frequencies:
    original = int(scaling["original_max_position_embeddings"])
    chosen: list[Floats] = []
    for name, key in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)):
        factors = scaling.get(name)
        factors = tensors.get(key) if factors is None else np.asarray(factors, np.float32)
        if factors is None:
            reject(f"rope_scaling.{name}", None, "a list, or a tensor of factors")
        chosen.append(np.float32(1.0) / (_checked(factors, 2 * len(powers), name) * powers))
    factor = scaling.get("factor") or config["max_position_embeddings"] / original
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return Frequencies(chosen[0], attention, original, long=chosen[1])


def rope_tensors(config: Mapping[str, Any]) -> dict[WeightKey, Floats]:
    """Return the explicit tensors [head_dim / 2] that stand for a config's scaling in GGUF.

    llama3 gives divisors of the base frequencies, longrope its two lists; other kinds nothing.
    """
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        return {DIVISORS: llama3_divisors(scaling, config["rope_theta"], config["head_dim"])}
    lists = {LONG_FACTORS: scaling.get("long_factor"), SHORT_FACTORS: scaling.get("short_factor")}
    return {key: np.asarray(found, np.float32) for key, found in lists.items() if found is not None}


def llama3_divisors(scaling: Mapping[str, Any], theta: float, dimensions: int) -> Floats:
    """Return what llama3 scaling divides each base frequency by: [dimensions / 2] float32."""
    one = np.float32(1.0)
    # the roundings of torch, with which llama.cpp's converter computes the same numbers
    wavelength = (one / (one / _powers(theta, dimensions))) * np.float32(2 * math.pi)
    original, factor = scaling["original_max_position_embeddings"], np.float32(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = (one / wavelength) * np.float32(original) - np.float32(low)
    smooth = smooth / np.float32(high - low)
    with np.errstate(divide="ignore"):
        medium = one / ((one - smooth) / factor + smooth)
    medium = np.where(wavelength < np.float32(original / high), one, medium)
    chosen = np.where(wavelength > np.float32(original / low), factor, medium)
    return np.asarray(chosen, np.float32)


def llama3_scaling(divisors: Floats, theta: float, dimensions: int) -> dict[str, Any] | None:
    """Return llama3 settings that give these divisors, or None where there are none.

    Settings scaled together (lengths and both frequency factors) mean the same, so
    `low_freq_factor` is 1.
    """
    factor = float(divisors.max())
    wavelength = 2 * math.pi * _powers(theta, dimensions).astype(np.float64)
    lengths = [(8192, 4.0)]
    medium = (divisors > 1) & (divisors < factor)
    smooth = (1 / divisors[medium].astype(np.float64) - 1 / factor) / max(1 - 1 / factor, 1e-9)
    if len(smooth) >= 2:
        slope, offset = np.polyfit(1 / wavelength[medium], smooth, 1)
        if offset < 0 < slope:
            high = round(1 - 1 / offset, 3)
            lengths.append((round(slope * (high - 1)), high))
    elif len(smooth) == 1:
        lengths.append((round(float(wavelength[medium][0] * (3 * smooth[0] + 1))), 4.0))
    else:
        lengths += _lengths_of_a_step(wavelength[divisors <= 1], wavelength[divisors > 1])
    for original, high in lengths:
        scaling = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": high, "original_max_position_embeddings": original,
        }  # fmt: skip
        found = llama3_divisors(scaling, theta, dimensions)
        if factor > 1 and np.allclose(found, divisors, rtol=1e-5, atol=0):
            return scaling
    return None


def _lengths_of_a_step(
    short: NDArray[np.float64], long: NDArray[np.float64]
) -> list[tuple[int, float]]:
    """Return original length and high factor that leave `short` waves alone and stretch `long`."""
    if not len(short) or not len(long):
        return []
    low, high = float(short.max()), float(long.min())
    original = math.ceil(low + 1e-9)
    for length in (math.floor(math.sqrt(low * high)), original):
        if low < length < high and length >= 2:
            return [(length, (1 + length / low) / 2)]
    return []


def divisors_as_scaling(config: Mapping[str, Any], divisors: Floats) -> dict[str, Any] | None:
    """Return `rope_scaling` for a config whose divisors no settings of llama3 give.

    longrope with the same factors for short and long texts divides by any numbers. None where the
    config says the divisors already.

    Raises:
        UnsupportedError: the config's own scaling cannot be combined with divisors.
    """
    scaling = config["rope_scaling"] or {"rope_type": "default"}
    kind = scaling["rope_type"]
    if kind == "llama3" or (kind == "default" and bool((divisors == 1).all())):
        return None
    if kind not in ("default", "linear"):
        raise UnsupportedError(f"rope_type {kind!r} together with divisor tensors", WHERE)
    stretch = np.float32(scaling.get("factor", 1.0))
    factors = (_checked(divisors, config["head_dim"], "divisors") * stretch).astype(float).tolist()
    return {
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }  # fmt: skip


def scaling_from_tensors(
    config: Mapping[str, Any], tensors: Mapping[WeightKey, Floats]
) -> dict[str, Any] | None:
    """Return `rope_scaling` completed by explicit tensors, as far as a config can say them."""
    scaling: dict[str, Any] | None = config["rope_scaling"]
    if scaling is None and DIVISORS in tensors:
        return llama3_scaling(tensors[DIVISORS], config["rope_theta"], config["head_dim"])
    if scaling is not None and scaling["rope_type"] == "longrope":
        named = {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS}
        lists = {n: tensors[k].astype(float).tolist() for n, k in named.items() if k in tensors}
        return {**lists, **scaling}
    return scaling
