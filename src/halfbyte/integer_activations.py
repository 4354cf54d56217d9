"""Integer activations on their way into a conversion: what is asked for, and inputs to run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from halfbyte.calibration import CalibrationRequest, calibration_batches
from halfbyte.calibration_data import owner_of
from halfbyte.errors import HalfbyteError, UnsupportedError
from halfbyte.ir.activation_scheme import ACTIVATIONS, fits_inputs
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.model import Model
from halfbyte.quant.method import NEED_DATA, Chain

MODES = ("none", "int8-static", "int8-dynamic", "fp8", "fp8-static")
STATIC = ("int8-static", "fp8-static")
OF_FLOATS = ("fp8", "fp8-static")
# A checkpoint that says how servers round activations, and the types that go with a kind there.
DECLARING = "hf:compressed-tensors"
TYPES = {"int": ("int8", "int8-bf16", "int8-f32"), "float": ("fp8", "fp8-bf16")}
BY_TENSOR = ("fp8-tensor",)  # for floats whose scale is stored


@dataclass(frozen=True)
class ActivationRequest:
    """What becomes of activations. mode: in MODES; the others are `ActivationOptions` of quant."""

    mode: str = "none"
    method: str = "mse"
    target: str = "x86"
    keep_float: Sequence[str] = ()

    @property
    def is_static(self) -> bool:
        """Whether ranges come from calibration inputs."""
        return self.mode in STATIC

    @property
    def is_dynamic(self) -> bool:
        """Whether ranges are found while the model runs."""
        return self.mode == "int8-dynamic"

    @property
    def kind(self) -> str:
        """Return what codes are: `int` or `float`."""
        return "float" if self.mode in OF_FLOATS else "int"


@dataclass(frozen=True)
class Integers:
    """A model in the QDQ form, a line about it, and the encodings that its weights had."""

    model: Model
    note: str
    encodings: Mapping[str, str]


def check_activations(request: ActivationRequest, type_name: str, target: str) -> None:
    """Refuse what does not go together; target: the format, with its flavour after a colon.

    Raises:
        UnsupportedError: an unknown mode, a format or a type that has no such activations.
    """
    if request.mode not in MODES:
        raise UnsupportedError(f"activations {request.mode!r}", "quantize", MODES)
    if request.mode == "none":
        return
    if target == DECLARING:
        _check_declared(request, type_name)
        return
    if target.partition(":")[0] != "onnx" or request.mode in OF_FLOATS:
        places = [DECLARING] if request.mode in OF_FLOATS else [DECLARING, "onnx"]
        advice = f"give --to {' or '.join(places)}"
        raise UnsupportedError(f"--activations {request.mode}", f"format {target}", advice=advice)
    if type_name != "int8":
        what = f"--activations {request.mode} with --type {type_name or 'none'}"
        raise UnsupportedError(what, "quantize", advice="give --type int8")
    if request.is_dynamic and request.keep_float:
        advice = "give --tensor GLOB=F32"
        raise UnsupportedError("--keep-float with int8-dynamic", "quantize", advice=advice)


def _check_declared(request: ActivationRequest, type_name: str) -> None:
    """Check that weights have one symmetric scale for each row, of the kind of the activations."""
    from halfbyte.quant.calibration.input_ranges import check_range_method

    encoding = None
    with suppress(HalfbyteError):
        encoding = encoding_from_name(type_name)
    if encoding is None or not fits_inputs(encoding, request.kind, not request.is_static):
        what = f"--activations {request.mode} with --type {type_name or 'none'}"
        known = TYPES[request.kind] + (BY_TENSOR if request.mode == "fp8-static" else ())
        raise UnsupportedError(what, DECLARING, [f"--type {name}" for name in known])
    if request.is_static:
        check_range_method(request.method, request.kind)
    if request.keep_float:
        advice = "give --tensor GLOB=bfloat16"
        raise UnsupportedError("--keep-float", DECLARING, advice=advice)


def with_declaration(model: Model, request: ActivationRequest, target: str) -> Model:
    """Return the model that says how a server rounds its activations, if that is asked for."""
    from halfbyte.converters.hugging_face.checkpoints.ct_activations import with_dynamic_inputs

    if target != DECLARING or request.mode == "none" or request.is_static:
        return model
    said = with_dynamic_inputs(model.metadata.get(ACTIVATIONS) or {}, request.kind)
    return replace(model, metadata={**model.metadata, ACTIVATIONS: said})


def _batches(model: Model, request: CalibrationRequest) -> Iterator[Mapping[str, Any]]:
    """Yield inputs by name: from arrays, or from a text for a model with a tokenizer."""
    require_inputs("int8-static", request)
    yield from calibration_batches(model, request).runs


def require_inputs(mode: str, request: CalibrationRequest) -> None:
    """Check that there is data to find ranges with.

    Raises:
        HalfbyteError: there is none.
    """
    if not request.data.sources:
        raise HalfbyteError(
            f"quantize: --activations {mode} needs inputs to find ranges; give --calib FILE "
            "(.npz, a folder of .npz, images or .wav, or a text for models with a tokenizer)"
        )


def require_plain(chain: Chain, mode: str) -> None:
    """Check that nothing but plain rounding is asked of weights that become integer constants.

    Raises:
        UnsupportedError: it is.
    """
    if chain.rounding != "rtn" or any(name in NEED_DATA for name in chain.transforms):
        advice = "leave out --method: scales and biases are fitted to the data as it is"
        what = f"--method {chain.name} with --activations {mode} of a graph without a cache"
        raise UnsupportedError(what, "quantize", advice=advice)


def with_integers(
    model: Model, request: ActivationRequest, calibration: CalibrationRequest, threads: int
) -> Integers:
    """Return the model with static integer activations.

    Raises:
        HalfbyteError: no inputs are given, or they do not fit the model.
    """
    from halfbyte.quant.activations import ActivationOptions, quantize_activations

    options = ActivationOptions(
        request.method,
        preset=request.target,
        keep_float=tuple(request.keep_float),
        threads=threads,
    )
    owner = owner_of(model, calibration.data.sources)
    made, report = quantize_activations(owner, _batches(owner, calibration), options)
    return Integers(made, str(report), report.weights)
