"""Open, convert, quantize, verify and inspect, end to end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfbyte.calibration import ACTIVATION_LIMIT_BYTES, CalibrationRequest
from halfbyte.calibration_data import DataRequest
from halfbyte.calibration_media import MediaOptions
from halfbyte.conversion import ProgressFor, write
from halfbyte.convert_report import ConvertReport
from halfbyte.converters import detect
from halfbyte.converters.format import ReadOptions
from halfbyte.engine import available_threads
from halfbyte.errors import HalfbyteError
from halfbyte.integer_activations import ActivationRequest
from halfbyte.ir.model import Model
from halfbyte.output_request import OutputRequest, SplitRequest
from halfbyte.quant.method import ActOrder, MethodOptions
from halfbyte.quant.type_choice import TypeOptions

if TYPE_CHECKING:
    from halfbyte.runtime.session import Session
    from halfbyte.verification.diff import Comparison
    from halfbyte.verification.inspection import Inspection
    from halfbyte.verification.report import VerifyReport
    from halfbyte.verification.stored_graph import Runnable


def resolve(source: str | Path, revision: str = "", allow_pickle: bool = True) -> Path:
    """Return the local path of a file, folder or hub id, downloading what is missing.

    Without `allow_pickle` nothing is downloaded from a repository that holds pickles only.
    """
    if Path(source).exists():
        return Path(source)
    from halfbyte.converters.hugging_face.hub import resolve as resolve_hub

    return resolve_hub(str(source), revision, allow_pickle)


def open(source: str | Path, *, revision: str = "", allow_pickle: bool = False) -> Model:
    """Return the model at a path or hub id; weights stay on disk until they are touched.

    Raises:
        HalfbyteError: nothing is there, or a file breaks a rule of its format.
    """
    path = resolve(source, revision, allow_pickle)
    return detect(path).read(path, ReadOptions(allow_pickle=allow_pickle))


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: str = "",
    type: str = "",
    overrides: Sequence[tuple[str, str]] = (),
    requantize: bool = False,
    keep_split: bool = False,
    split_max_bytes: int = 0,
    split_max_tensors: int = 0,
    lora: Sequence[tuple[str | Path, float]] = (),
    base: str | Path = "",
    threads: int = 0,
    device: str = "cpu",
    allow_pickle: bool = False,
    revision: str = "",
    push_to_hub: str = "",
    opset: int | None = None,
    progress: ProgressFor | None = None,
) -> ConvertReport:
    """Write the model at `source` in another format.

    Weights keep their encoding where the target can hold the same values; `type` names another.
    `progress(total_bytes)` is called once and returns a function that takes bytes written. opset:
    of ONNX files; None takes the lowest that fits. keep_split, split_max_bytes, split_max_tensors:
    the parts of GGUF output; bytes are for Hugging Face folders too. lora: adapters to merge, with
    their factors. A source that is an adapter becomes a GGUF adapter; base: its base model, if it
    names none or another.

    Raises:
        HalfbyteError: the source is broken, or the target cannot hold the model.
    """
    request = OutputRequest(
        to,
        type,
        overrides,
        requantize,
        "rtn",
        threads,
        device,
        push_to_hub,
        ReadOptions(allow_pickle),
        opset,
        split=SplitRequest(keep_split, split_max_bytes, split_max_tensors),
        lora=_local(lora, allow_pickle),
        base=str(base),
    )
    return write(resolve(source, revision, allow_pickle), Path(destination), request, progress)


def quantize(
    source: str | Path,
    destination: str | Path | None,
    *,
    type: str,
    method: str = "rtn",
    to: str = "",
    overrides: Sequence[tuple[str, str]] = (),
    pure: bool = False,
    output_type: str = "",
    token_embedding_type: str = "",
    leave_output: bool = False,
    imatrix: str | Path = "",
    calib: str | Path | Sequence[str | Path] = (),
    calib_samples: int = 128,
    calib_length: int = 512,
    calib_random: int = 0,
    calib_skip_first: bool = False,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    image_mean: Sequence[float] = MediaOptions.image_mean,
    image_std: Sequence[float] = MediaOptions.image_std,
    sample_rate: int | None = None,
    stats: str | Path = "",
    save_stats: str | Path = "",
    damping: float = MethodOptions.damping,
    act_order: ActOrder = "none",
    static_groups: bool = False,
    refine: int = MethodOptions.refine,
    trials: bool = True,
    tail_damping: bool = True,
    group_search: bool | None = None,
    true_sequential: bool = True,
    smoothquant_alpha: float = 0.5,
    activation_limit_bytes: int = ACTIVATION_LIMIT_BYTES,
    journal: bool = True,
    activations: str = "none",
    calibration_method: str = "mse",
    target: str = "x86",
    keep_float: Sequence[str] = (),
    compat: bool = False,
    search: str = "default",
    requantize: bool = False,
    keep_split: bool = False,
    split_max_bytes: int = 0,
    split_max_tensors: int = 0,
    lora: Sequence[tuple[str | Path, float]] = (),
    dry_run: bool = False,
    threads: int = 0,
    device: str = "cpu",
    allow_pickle: bool = False,
    revision: str = "",
    push_to_hub: str = "",
    opset: int | None = None,
    progress: ProgressFor | None = None,
) -> ConvertReport:
    """Write the model at `source` with its weights in encoding `type`, chosen by `method`.

    type: a mix as llama-quantize names it (Q4_K_M), or an encoding. pure: no mix. output_type,
    token_embedding_type: encodings of these two; leave_output: the head keeps its own. imatrix: an
    importance file. calib: what calibrated methods see, see docs/calibration.md: `calib_samples`
    sequences of `calib_length` tokens or samples of other inputs, drawn by `seed`, and
    `calib_random` sequences of random tokens. stats: statistics that `save_stats` wrote, instead.
    damping to true_sequential: as in `MethodOptions`. smoothquant_alpha: share of the activations,
    0 to 1. journal: keep what is finished beside the output. activations: `int8-static` or
    `int8-dynamic` of an ONNX file; these, `fp8` and `fp8-static` declared to servers in a folder of
    `hf:compressed-tensors`; calibration_method, target, keep_float: how static ranges are cut, what
    multiplies the integers, globs of what stays float.
    compat: llama.cpp's bytes also where its encoder has a fault. search: `exhaustive` looks through
    all scales that a block can store. progress: as for `convert`, and before that with the number
    of steps of a calibration. dry_run: write
    nothing, `destination` may be None (GGUF). Parts and adapters as for `convert`.

    Raises:
        HalfbyteError: as `convert`; also when a weight cannot be encoded as asked.
    """
    if not type:
        raise HalfbyteError("quantize: no type given, one is required; for example Q4_0 or int8")
    if destination is None and not dry_run:
        raise HalfbyteError("quantize: no output given, one is required; or ask for a dry run")
    request = OutputRequest(
        to,
        type,
        overrides,
        requantize,
        method,
        threads,
        device,
        push_to_hub,
        ReadOptions(allow_pickle),
        opset,
        TypeOptions(pure, output_type, token_embedding_type, leave_output),
        str(imatrix),
        compat,
        search,
        SplitRequest(keep_split, split_max_bytes, split_max_tensors),
        dry_run,
        _local(lora, allow_pickle),
        calibration=CalibrationRequest(
            DataRequest(
                (str(calib),) if isinstance(calib, (str, Path)) else tuple(map(str, calib)),
                calib_samples,
                calib_length,
                seed,
                calib_skip_first,
                MediaOptions(image_size, tuple(image_mean), tuple(image_std), sample_rate or 0),
            ),
            calib_random,
            str(stats),
            str(save_stats),
            MethodOptions(
                damping=damping,
                act_order=act_order,
                static_groups=static_groups,
                refine=refine,
                trials=trials,
                tail_damping=tail_damping,
                group_search=group_search,
                true_sequential=true_sequential,
            ),
            activation_limit_bytes,
            journal,
            smoothquant_alpha,
        ),
        activations=ActivationRequest(activations, calibration_method, target, keep_float),
    )
    output = Path("dry-run.gguf" if destination is None else destination)
    return write(resolve(source, revision, allow_pickle), output, request, progress)


def _local(
    adapters: Sequence[tuple[str | Path, float]], allow_pickle: bool
) -> list[tuple[str, float]]:
    """Return adapters with their local paths, downloaded where they are hub ids."""
    return [(str(resolve(path, "", allow_pickle)), scale) for path, scale in adapters]


def session(
    model: Model, *, device: str = "cpu", compute: str = "exact", threads: int = 0
) -> Session:
    """Return a session that runs `model`."""
    from halfbyte.runtime.session import Session

    return Session(model, device=device, compute=compute, threads=threads or available_threads())


def judged(
    model: Model, *, device: str, compute: str, threads: int, declared: bool = False
) -> Runnable:
    """Return what runs the graph that a model's file holds, if it holds one, else `session`.

    declared: with activations rounded as its container declares them.
    """
    from halfbyte.converters.hugging_face.input_scales import input_scales_of
    from halfbyte.runtime.session import OUTPUTS
    from halfbyte.verification.declared_activations import with_declared
    from halfbyte.verification.stored_graph import StoredGraph

    owner = model.over_stored_graph()
    owner = with_declared(owner, input_scales_of(owner)) if declared else owner
    if model.stored_graph is None:
        return session(owner, device=device, compute=compute, threads=threads)
    held = session(owner, device=device, compute=compute, threads=threads)
    is_language_model = any(value.name == OUTPUTS for value in model.graph.inputs)
    return StoredGraph(held) if is_language_model else held


def verify(
    reference: str | Path,
    candidate: str | Path,
    *,
    data: str | Path | None = None,
    context: int = 512,
    chunks: int | None = None,
    limits: Mapping[str, float] | None = None,
    reference_storage: str = "exact",
    device: str = "cpu",
    compute: str = "exact",
    activations: str = "float",
    threads: int = 0,
    allow_pickle: bool = False,
    progress: ProgressFor | None = None,
) -> VerifyReport:
    """Measure how far `candidate` is from `reference`.

    data: a text file, or an .npz of inputs for other models; limits: {metric: limit}.
    reference_storage: `exact`, or `16-bit` to round the reference's log-probabilities of a language
    model as llama-perplexity's base file does. activations: `float`, so that weights alone are
    judged, or `declared`: rounded as checkpoints say that servers round them.

    Raises:
        HalfbyteError: the models are not comparable, or the data does not fit them.
    """
    from halfbyte.array_files import graph_owner
    from halfbyte.evaluation_data import evaluation_data
    from halfbyte.verification import language_model, outputs
    from halfbyte.verification.declared_activations import activation_notes
    from halfbyte.verification.gates import judge, require_figures
    from halfbyte.verification.report import VerifyReport

    started = time.perf_counter()
    models = [open(path, allow_pickle=allow_pickle) for path in (reference, candidate)]
    if data is not None and Path(data).suffix == ".npz":
        models = [graph_owner(data, model) for model in models]
    notes = activation_notes(models, activations, compute)
    rounds = activations == "declared"
    first, second = (
        judged(model, device=device, compute=compute, threads=threads, declared=rounds)
        for model in models
    )
    inputs = evaluation_data(models[0], models[1], data)
    require_figures(limits or {}, of_outputs=bool(inputs.batches))
    figures: dict[str, float] = {}
    entries: list[dict[str, Any]] = []
    if inputs.batches:
        entries = outputs.compare(first, second, inputs.batches)
        measured = outputs.worst(entries)
    else:
        table = language_model.chunk_tokens(inputs.tokens, context, chunks, inputs.first_token)
        step = None if progress is None else progress(len(table))
        figures = language_model.compare(first, second, table, step, reference_storage)
        measured = figures
    gates = judge(limits or {}, measured)
    seconds = time.perf_counter() - started
    return VerifyReport(str(reference), str(candidate), figures, entries, gates, seconds, notes)


def inspect(
    source: str | Path,
    *,
    verify: bool = False,
    threads: int = 0,
    revision: str = "",
    allow_pickle: bool = False,
) -> Inspection:
    """Return what the model at `source` is; `verify` reads and checks every weight.

    Raises:
        HalfbyteError: the file cannot be read, or a stored hash does not match.
    """
    from halfbyte.verification.inspection import describe

    path = resolve(source, revision, allow_pickle)
    reader = detect(path)
    model = reader.read(path, ReadOptions(allow_pickle=allow_pickle))
    if verify:
        reader.verify_content(path, threads or available_threads())
    return describe(model, str(source), read_weights=verify)


def _in_one_order(model: Model) -> Model:
    """Return the model with query and key rows in the order of Hugging Face."""
    from halfbyte.converters.architectures import ARCHITECTURES, get_architecture
    from halfbyte.converters.weight_map import model_in_rotary_order

    if model.build is None or model.architecture not in ARCHITECTURES:
        return model
    return model_in_rotary_order(model, get_architecture(model.architecture), interleaved=False)


def diff(
    first: str | Path,
    second: str | Path,
    *,
    threads: int = 0,
    progress: ProgressFor | None = None,
) -> Comparison:
    """Return what differs between two models: settings, tokenizer, metadata, tensors.

    Models of different formats are compared by what their weights stand for; metadata only where
    both have the same kind.

    Raises:
        HalfbyteError: a file cannot be read.
    """
    from halfbyte.kernels import cpu
    from halfbyte.verification.diff import compare

    if cpu.available():
        cpu.set_threads(threads or available_threads())
    models = [_in_one_order(open(path)) for path in (first, second)]
    held = [model.metadata.get("gguf") for model in models]
    metadata = (held[0], held[1]) if held[0] is not None and held[1] is not None else ({}, {})
    total = sum(tensor.nbytes for tensor in models[0].weights.values())
    step = None if progress is None else progress(total)
    return compare(models[0], models[1], metadata, step)
