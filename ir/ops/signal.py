"""Fourier transforms, their windows, the mel scale. Complex values: pairs on a last axis of 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from halfbyte.errors import GraphError
from halfbyte.ir.dtypes import dtype_name, numpy_dtype
from halfbyte.ir.graph import Dim, Graph, Node
from halfbyte.ir.ops.older_forms import Lift, older
from halfbyte.ir.ops.spec import (
    UNKNOWN,
    Array,
    Attribute,
    Case,
    Context,
    OpSpec,
    ValueType,
    axis_of,
    common_dtype,
    input_at,
    known_ints,
    normal,
    required_input,
)

HANN = (0.5, 0.5)
HAMMING = (25 / 46, 21 / 46)
BLACKMAN = (0.42, 0.5, 0.08)


def signal_values(data: Array) -> NDArray[Any]:
    """Return pairs on the last axis as complex numbers, single values as reals.

    Transforms of float32 run in float32, as those that the standard compares with do: values that
    cancel to noise are the same noise.
    """
    wide = data.astype(np.float64 if data.dtype == np.float64 else np.float32)
    if data.shape[-1] == 2:
        return np.ascontiguousarray(wide).view(np.result_type(wide, np.complex64))[..., 0]
    return wide[..., 0]


def pairs(values: NDArray[Any]) -> NDArray[Any]:
    """Return complex numbers as pairs on a new last axis."""
    return np.stack([values.real, values.imag], axis=-1)


def whole_number(operand: Any) -> int:
    """Return an integer operand of one value."""
    return int(np.asarray(operand).reshape(-1)[0])


def check_complex(node: Node, shape: Sequence[Dim] | None, onesided: bool) -> None:
    """Check the last axis of a signal.

    Raises:
        GraphError: it holds neither reals nor pairs, or pairs where reals were required.
    """
    if shape and isinstance(shape[-1], int) and shape[-1] not in (1, 2):
        raise GraphError(node.label, f"the last axis has {shape[-1]} values, 1 or 2 were required")
    if shape and onesided and shape[-1] == 2:
        raise GraphError(node.label, "a one-sided transform takes real values; set onesided to 0")


def infer_dft(node: Node) -> list[ValueType]:
    """Infer: the length of the axis from a constant `dft_length`, else from the data.

    Raises:
        GraphError: the axis is that of the complex numbers or outside.
    """
    data, dtype = required_input(node, 0), common_dtype(node, [0])
    inverse, onesided = (bool(node.attributes.get(n)) for n in ("inverse", "onesided"))
    if data.shape is None:
        return [ValueType(dtype, None)]
    rank, given = len(data.shape), input_at(node, 2)
    check_complex(node, data.shape, onesided and not inverse)
    last = 1 if onesided and inverse else 2
    axes = [-2] if given is None else known_ints(given)
    if axes is None:
        return [ValueType(dtype, (*(UNKNOWN,) * (rank - 1), last))]
    axis = axis_of(node, axes[0], rank)
    if axis == rank - 1:
        raise GraphError(node.label, f"axis {axes[0]} holds the complex numbers; give another")
    length: Dim = data.shape[axis]
    if input_at(node, 1) is not None:
        known = known_ints(input_at(node, 1))
        length = UNKNOWN if known is None else known[0]
    elif onesided and inverse:
        length = 2 * (length - 1) if isinstance(length, int) else UNKNOWN
    if onesided and not inverse:
        length = length // 2 + 1 if isinstance(length, int) else UNKNOWN
    return [ValueType(dtype, (*data.shape[:axis], length, *data.shape[axis + 1 : -1], last))]


def evaluate_dft(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate DFT; the signal is cut or padded with zeros to the length."""
    data, length, axis_input = (*inputs, None, None)[:3]
    data = np.asarray(data)
    axis = (-2 if axis_input is None else whole_number(axis_input)) % data.ndim
    inverse, onesided = bool(attributes["inverse"]), bool(attributes["onesided"])
    size = data.shape[axis] if length is None else whole_number(length)
    values = signal_values(data)
    if inverse and onesided:
        size = 2 * (data.shape[axis] - 1) if length is None else size
        result = np.fft.irfft(values, size, axis)[..., None]
    elif inverse:
        result = pairs(np.fft.ifft(values, size, axis))
    elif onesided:
        result = pairs(np.fft.rfft(values.real, size, axis))
    else:
        result = pairs(np.fft.fft(values, size, axis))
    return [result.astype(data.dtype)]


def infer_stft(node: Node) -> list[ValueType]:
    """Infer: [batch, frames, bins, 2] where signal, step and frame length are known.

    Raises:
        GraphError: a one-sided transform of a complex signal.
    """
    signal, dtype = required_input(node, 0), common_dtype(node, [0])
    onesided = bool(node.attributes.get("onesided", 1))
    shape, step = signal.shape, known_ints(required_input(node, 1))
    if shape is None:
        return [ValueType(dtype, None)]
    if len(shape) == 3:
        check_complex(node, shape, onesided)
    window, given = input_at(node, 2), input_at(node, 3)
    frame: Dim = shape[1]
    if given is not None:
        known = known_ints(given)
        frame = UNKNOWN if known is None else known[0]
    elif window is not None:
        frame = window.shape[0] if window.shape else UNKNOWN
    frames: Dim = UNKNOWN
    if isinstance(frame, int) and isinstance(shape[1], int) and step:
        frames = (shape[1] - frame) // step[0] + 1
    bins: Dim = UNKNOWN
    if isinstance(frame, int):
        bins = frame // 2 + 1 if onesided else frame
    return [ValueType(dtype, (shape[0], frames, bins, 2))]


def evaluate_stft(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate STFT: windowed frames, transformed."""
    signal, step, window, length = (*inputs, None, None)[:4]
    signal = np.asarray(signal)
    size = signal.shape[1]
    if length is not None:
        size = whole_number(length)
    elif window is not None:
        size = np.asarray(window).shape[0]
    values = signal_values(signal if signal.ndim == 3 else signal[..., None])
    frames = sliding_window_view(values, size, axis=1)[:, :: whole_number(step)]
    if window is not None:
        frames = frames * np.asarray(window).astype(values.real.dtype)
    onesided = bool(attributes["onesided"])
    found = np.fft.rfft(frames.real) if onesided else np.fft.fft(frames)
    return [pairs(found).astype(signal.dtype)]


def infer_mel(node: Node) -> list[ValueType]:
    """Infer: [bins of the spectrum, mel bins] from constants."""
    bins, length = (known_ints(required_input(node, i)) for i in (0, 1))
    dtype = dtype_name(node.attributes.get("output_datatype") or "float32")
    rows: Dim = UNKNOWN if length is None else length[0] // 2 + 1
    return [ValueType(dtype, (rows, UNKNOWN if bins is None else bins[0]))]


def evaluate_mel(
    inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
) -> list[Array]:
    """Evaluate MelWeightMatrix: triangles between whole bins of the spectrum, spaced in mel."""
    count, length, rate = (whole_number(v) for v in inputs[:3])
    low, high = (float(np.asarray(v).reshape(-1)[0]) for v in inputs[3:5])
    mels = 2595 * np.log1p(np.asarray([low, high]) / 700) / np.log(10)
    places = np.arange(count + 2) * ((mels[1] - mels[0]) / (count + 2)) + mels[0]
    hertz = 700 * np.expm1(places / 2595 * np.log(10))
    edges = np.floor((length + 1) * hertz / rate).astype(np.int64)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rows = np.arange(length // 2 + 1)[:, None]
    rising = (rows - left) / np.maximum(middle - left, 1)
    falling = (right - rows) / np.maximum(right - middle, 1)
    # The peak stands even where the triangle has no left or no right side.
    result = np.where(rows == middle, 1.0, 0.0)
    result = np.where((rows >= left) & (rows < middle), rising, result)
    result = np.where((rows > middle) & (rows < right), falling, result)
    return [result.astype(numpy_dtype(dtype_name(attributes["output_datatype"])))]


def dft_cases() -> list[Case]:
    """Return a complex transform of a given length, a one-sided one and its inverse."""
    signal, spectrum = normal(290, 2, 5, 3, 2), normal(291, 2, 4, 2)
    return [
        Case("complex", [signal, np.asarray(6), np.asarray(1)]),
        Case("onesided", [normal(292, 2, 7, 1)], {"onesided": 1}),
        Case("inverse", [spectrum], {"onesided": 1, "inverse": 1}),
    ]


def stft_cases() -> list[Case]:
    """Return a windowed real signal and a complex one."""
    window = np.hanning(8).astype(np.float32)
    return [
        Case("window", [normal(293, 2, 30, 1), np.asarray(4), window, np.asarray(8)]),
        Case("complex", [normal(294, 1, 20, 2), np.asarray(5), window], {"onesided": 0}),
    ]


def mel_cases() -> list[Case]:
    """Return a small filter bank."""
    numbers = [np.asarray(n) for n in (8, 16, 8192)]
    edges = [np.asarray(hertz, np.float32) for hertz in (0.0, 4096.0)]
    return [Case("small", numbers + edges)]


FLAGS = {"inverse": Attribute("int", 0), "onesided": Attribute("int", 0)}
DFT = OpSpec(
    "DFT",
    (20,),
    ("input", "dft_length?", "axis?"),
    ("output",),
    infer=infer_dft,
    evaluate=evaluate_dft,
    attributes=FLAGS,
    cases=dft_cases,
)
OLDER_DFT = older(
    DFT, (17,), {"axis": Lift(2, "int64", scalar=True)}, {"axis": Attribute("int", 1)}
)


def infer_older_dft(node: Node) -> list[ValueType]:
    """Infer with the axis that DFT-17 takes when none is given: not that of DFT-20."""
    return OLDER_DFT.infer(replace(node, attributes={"axis": 1} | node.attributes))


def upgrade_older_dft(graph: Graph, node: Node) -> bool:
    """Turn the axis into an input, also where it is not given."""
    node.attributes.setdefault("axis", 1)
    return OLDER_DFT.upgrade is not None and OLDER_DFT.upgrade(graph, node)


def window(size: int, periodic: bool, weights: Sequence[float]) -> Array:
    """Return the sum of cosines with alternating signs, in float64."""
    steps = size if periodic else size - 1
    phase = 2 * np.pi * np.arange(size) / max(steps, 1)
    terms = [(-1) ** k * weight * np.cos(k * phase) for k, weight in enumerate(weights)]
    return np.asarray(sum(terms))


def infer_window(node: Node) -> list[ValueType]:
    """Infer: as long as the constant input says."""
    size = known_ints(required_input(node, 0))
    to = dtype_name(node.attributes.get("output_datatype", "float32"))
    return [ValueType(to, (size[0] if size else UNKNOWN,))]


def window_spec(op: str, weights: Sequence[float]) -> OpSpec:
    """Return the spec of a window: a sum of cosines."""

    def evaluate(
        inputs: Sequence[Any], attributes: Mapping[str, Any], context: Context
    ) -> list[Array]:
        size = int(np.asarray(inputs[0]).reshape(()))
        values = window(size, bool(attributes["periodic"]), weights)
        return [values.astype(numpy_dtype(dtype_name(attributes["output_datatype"])))]

    return OpSpec(
        op,
        (17,),
        ("size",),
        ("output",),
        infer=infer_window,
        evaluate=evaluate,
        attributes={
            "periodic": Attribute("int", 1),
            "output_datatype": Attribute("dtype", "float32"),
        },
        cases=lambda: [
            Case("periodic", [np.asarray(10, np.int64)]),
            Case("symmetric", [np.asarray(7, np.int64)], {"periodic": 0}),
        ],
    )


SPECS: tuple[OpSpec, ...] = (
    window_spec("HannWindow", HANN),
    window_spec("HammingWindow", HAMMING),
    window_spec("BlackmanWindow", BLACKMAN),
    replace(OLDER_DFT, infer=infer_older_dft, upgrade=upgrade_older_dft),
    DFT,
    OpSpec(
        "STFT",
        (17,),
        ("signal", "frame_step", "window?", "frame_length?"),
        ("output",),
        infer=infer_stft,
        evaluate=evaluate_stft,
        attributes={"onesided": Attribute("int", 1)},
        cases=stft_cases,
    ),
    OpSpec(
        "MelWeightMatrix",
        (17,),
        ("num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"),
        ("output",),
        infer=infer_mel,
        evaluate=evaluate_mel,
        attributes={"output_datatype": Attribute("dtype", "float32")},
        cases=mel_cases,
    ),
)
