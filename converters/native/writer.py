"""Writing .hb files: each weight is computed once, hashed on its way out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import halfbyte
from halfbyte.converters.format import Forecast, WriteOptions, WrittenTensor
from halfbyte.converters.hugging_face.safetensors_writer import (
    ArraySpec,
    Job,
    header_bytes,
    in_file_order,
    write_safetensors,
)
from halfbyte.converters.native import values
from halfbyte.converters.native.layout import (
    EXTRA,
    FILES,
    FORMAT_NAME,
    FORMAT_VERSION,
    GRAPH,
    RESERVED,
    TOKENIZER,
    check_encoding,
    part_name,
    require_no_flavour,
    stored_shape,
)
from halfbyte.errors import UnsupportedError
from halfbyte.files import atomic_file
from halfbyte.ir.encodings.encoding import Array
from halfbyte.ir.model import Model
from halfbyte.ir.tensor import Tensor
from halfbyte.ir.text import print_whole

_HASH_DIGITS = 64
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class _Weight:
    """A weight and the arrays that hold it: {part: array}."""

    tensor: Tensor
    arrays: dict[str, ArraySpec]
    shared: frozenset[str]

    def jobs(self) -> Iterator[Job]:
        for start, stop in self.tensor.row_ranges():
            yield partial(self._read, start, stop)

    def _read(self, start: int, stop: int) -> list[tuple[str, Array]]:
        parts = self.tensor.read(start, stop)
        return [
            (spec.name, parts[part])
            for part, spec in self.arrays.items()
            if start == 0 or part not in self.shared
        ]


def write_native(model: Model, path: Path, options: WriteOptions) -> list[WrittenTensor]:
    """Write the model as one .hb file.

    Raises:
        UnsupportedError: a name is reserved or taken twice, an encoding or value is unknown.
        FormatError: the tokenizer has more tokens than the model.
    """
    made = _prepared(model, options)
    with atomic_file(path) as stream:
        write_safetensors(
            stream,
            made.specs,
            {**made.metadata, "sha256": values.dump(made.placeholder)},
            _jobs(made.weights, made.texts),
            threads=options.threads,
            progress=options.progress,
            finish=partial(_with_hashes, made.metadata, made.placeholder),
        )
    return made.written()


def forecast_native(model: Model, path: Path, options: WriteOptions) -> Forecast:
    """Return the file that `write_native` would write, with its bytes.

    Raises:
        HalfbyteError: as `write_native`.
    """
    made = _prepared(model, options)
    metadata = {**made.metadata, "sha256": values.dump(made.placeholder)}
    head = header_bytes(in_file_order(made.specs), metadata)
    size = len(head) + sum(spec.nbytes for spec in made.specs)
    return Forecast({path: size}, made.written())


@dataclass(frozen=True)
class _Prepared:
    """Everything that goes into a file but the values of its weights."""

    weights: list[_Weight]
    texts: dict[str, bytes]
    specs: list[ArraySpec]
    metadata: dict[str, str]
    placeholder: dict[str, str]

    def written(self) -> list[WrittenTensor]:
        tensors = [weight.tensor for weight in self.weights]
        return [WrittenTensor(t.name, t.name, str(t.encoding), t.nbytes) for t in tensors]


def _prepared(model: Model, options: WriteOptions) -> _Prepared:
    require_no_flavour(options.flavour)
    weights = [_weight(tensor) for tensor in model.weights.values()]
    texts, tokenizer_files = _texts(model)
    specs = [spec for weight in weights for spec in weight.arrays.values()]
    specs += [ArraySpec(n, np.dtype(np.uint8), (len(raw),)) for n, raw in texts.items()]
    _require_distinct(specs)
    metadata = _metadata(model, tokenizer_files)
    placeholder = {spec.name: "0" * _HASH_DIGITS for spec in in_file_order(specs)}
    return _Prepared(weights, texts, specs, metadata, placeholder)


def _with_hashes(
    metadata: Mapping[str, str], order: Mapping[str, str], digests: Mapping[str, str]
) -> dict[str, str]:
    return {**metadata, "sha256": values.dump({name: digests[name] for name in order})}


def _weight(tensor: Tensor) -> _Weight:
    if tensor.name.startswith(RESERVED) or _SURROGATES.search(tensor.name):
        raise UnsupportedError(
            f"tensor name {tensor.name!r}", "--to hb", advice=f"names may not begin with {RESERVED}"
        )
    check_encoding(tensor.encoding, tensor.name)
    specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
    arrays = {
        part: ArraySpec(part_name(tensor.name, part, specs), s.dtype, stored_shape(tensor, s))
        for part, s in specs.items()
    }
    return _Weight(tensor, arrays, frozenset(p for p, s in specs.items() if not s.per_row))


def _require_distinct(specs: list[ArraySpec]) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise UnsupportedError(
                f"array name {spec.name!r} for two things", "--to hb", advice="rename one weight"
            )
        seen.add(spec.name)


def _jobs(weights: list[_Weight], texts: Mapping[str, bytes]) -> Iterator[Job]:
    for weight in weights:
        yield from weight.jobs()
    for name, raw in texts.items():
        yield partial(_text_job, name, raw)


def _text_job(name: str, raw: bytes) -> list[tuple[str, Array]]:
    return [(name, np.frombuffer(raw, np.uint8))]


def _texts(model: Model) -> tuple[dict[str, bytes], list[str]]:
    """Return the arrays that are text, and the files that the tokenizer record shares."""
    texts: dict[str, bytes] = {}
    if model.build is not None:
        texts[GRAPH] = print_whole(model.graph, model.weights).encode("utf-8")
    extra = {k: v for k, v in model.metadata.items() if k not in ("files", "origin")}
    if extra:
        texts[EXTRA] = values.dump(extra).encode("ascii")
    files = dict(model.metadata.get("files", {}))
    shared: list[str] = []
    if model.tokenizer is not None:
        _check_vocabulary(model)
        source = model.tokenizer.source
        shared = sorted(name for name, raw in source.items() if files.get(name) == raw)
        own = {name: raw for name, raw in source.items() if name not in shared}
        texts[TOKENIZER] = replace(model.tokenizer, source=own).to_json().encode("utf-8")
    texts.update({FILES + name: raw for name, raw in files.items()})
    return texts, shared


def _check_vocabulary(model: Model) -> None:
    rows = model.config.get("vocab_size")
    if model.tokenizer is not None and isinstance(rows, int):
        model.tokenizer.check_vocabulary_size(rows, model.provenance.source or "tokenizer")


def _metadata(model: Model, tokenizer_files: list[str]) -> dict[str, str]:
    tensors = [
        {
            "name": t.name,
            "shape": list(t.shape),
            "encoding": t.encoding.name,
            "role": None if t.role is None else t.role.value,
            "layer": t.layer,
            "kind": t.kind,
        }
        for t in model.weights.values()
    ]
    return {
        "format": FORMAT_NAME,
        "halfbyte_format": FORMAT_VERSION,
        "halfbyte_version": halfbyte.__version__,
        "config": values.dump(model.config),
        "generation_config": values.dump(model.generation_config),
        "provenance": values.dump(_origin(model)),
        "tokenizer_files": values.dump(tokenizer_files),
        "tensors": values.dump(tensors),
    }


def _origin(model: Model) -> dict[str, Any]:
    """Return where the model first came from; folders are left out, they differ from run to run."""
    if "origin" in model.metadata:
        return dict(model.metadata["origin"])
    source = model.provenance.source
    if not model.provenance.revision:
        source = Path(source).name
    return {
        "format": model.provenance.format,
        "source": source,
        "revision": model.provenance.revision,
    }
