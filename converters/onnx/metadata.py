"""What an ONNX file carries so that a language model comes back whole.

metadata_props, all text:

    halfbyte.version             version of this layout, "1"
    halfbyte.config              canonical config, JSON
    halfbyte.generation_config   JSON
    halfbyte.tokenizer           the tokenizer record, JSON
    halfbyte.metadata            key-value data of the source container, JSON (`native/values.py`)
    halfbyte.origin              where the model first came from, JSON
    halfbyte.weights             JSON list: name, shape, encoding, role, layer, kind and which
                                 constants hold it ({array: constant}, style of its codes), or its
                                 bytes in base64 where the graph has no use for it

Texts longer than COMPRESS_BYTES are deflated and in base64, marked by a prefix.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.converters.native import values
from halfbyte.converters.onnx.language.builder import Holding
from halfbyte.converters.onnx.language.weight_form import NIBBLES, SIGNED, form_of, restored
from halfbyte.errors import FormatError, QuantizationError, UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.encodings.dense import Dense
from halfbyte.ir.encodings.encoding import Array, PartSpec
from halfbyte.ir.model import Model
from halfbyte.ir.part_views import ReshapedPart
from halfbyte.ir.roles import Role
from halfbyte.ir.tensor import ArrayPart, Part, Tensor, rows_and_columns
from halfbyte.ir.tokenizer import Tokenizer

PREFIX = "halfbyte."
VERSION_KEY, VERSION = f"{PREFIX}version", "1"
WEIGHTS_KEY = f"{PREFIX}weights"
COMPRESS_BYTES = 1 << 16
COMPRESSED = "deflate,base64:"
LARGEST_TEXT = 1 << 27
LARGEST_INLINE = 1 << 20
_ROLES = {role.value: role for role in Role}
_ENTRY_KEYS = {"name", "shape", "encoding", "role", "layer", "kind"}


def properties(model: Model, holdings: Mapping[str, Holding]) -> dict[str, str]:
    """Return the metadata_props of a written model.

    Raises:
        UnsupportedError: a weight that the graph does not use is too large to be carried.
    """
    extra = {k: v for k, v in model.metadata.items() if k not in ("onnx", "origin")}
    texts = {
        "config": values.dump(model.config),
        "generation_config": values.dump(model.generation_config),
        "metadata": values.dump(extra),
        "origin": values.dump(_origin(model)),
        "weights": json.dumps(
            [_entry(name, t, holdings.get(name)) for name, t in model.weights.items()],
            separators=(",", ":"),
        ),
    }
    if model.tokenizer is not None:
        texts["tokenizer"] = model.tokenizer.to_json()
    packed = {f"{PREFIX}{name}": _packed(text) for name, text in texts.items()}
    return {VERSION_KEY: VERSION, **packed}


def _origin(model: Model) -> dict[str, Any]:
    if "origin" in model.metadata:
        return dict(model.metadata["origin"])
    source, revision = model.provenance.source, model.provenance.revision
    name = source if revision else Path(source).name
    return {"format": model.provenance.format, "source": name, "revision": revision}


def _packed(text: str) -> str:
    if len(text) <= COMPRESS_BYTES:
        return text
    raw = zlib.compress(text.encode("utf-8", "surrogatepass"), 6)
    return COMPRESSED + base64.b64encode(raw).decode("ascii")


def _unpacked(text: str, where: Path, key: str) -> str:
    if not text.startswith(COMPRESSED):
        return text
    try:
        raw = base64.b64decode(text[len(COMPRESSED) :], validate=True)
        unpacker = zlib.decompressobj()
        whole = unpacker.decompress(raw, LARGEST_TEXT)
        if not unpacker.eof:
            raise ValueError(f"more than {LARGEST_TEXT} bytes, or cut off")
        return whole.decode("utf-8", "surrogatepass")
    except (ValueError, zlib.error) as error:
        raise FormatError(
            where, f"{key} cannot be unpacked ({error}); the file is damaged"
        ) from None


def _entry(name: str, tensor: Tensor, held: Holding | None) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "shape": list(tensor.shape),
        "encoding": tensor.encoding.name,
        "role": None if tensor.role is None else tensor.role.value,
        "layer": tensor.layer,
        "kind": tensor.kind,
    }
    if held is not None:
        entry["constants"] = held.constants
        if held.style:
            entry["style"] = held.style
        return entry
    if tensor.nbytes > LARGEST_INLINE:
        raise UnsupportedError(
            f"a weight of {tensor.nbytes} bytes outside the graph", f"tensor {name!r}"
        )
    parts = tensor.read()
    entry["inline"] = {
        part: base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
        for part, array in parts.items()
    }
    return entry


def carries_model(props: Mapping[str, str]) -> bool:
    """Whether a file's metadata_props are ours and describe a language model."""
    return VERSION_KEY in props and WEIGHTS_KEY in props


def restore(model: Model, props: Mapping[str, str]) -> Model:
    """Return the language model that a generic model read from ONNX carries.

    model: weights by constant name. Every weight comes back in its own encoding.

    Raises:
        FormatError: metadata and constants do not fit each other.
        UnsupportedError: a later version wrote the file, or an encoding is unknown.
    """
    where = Path(model.provenance.source)
    version = props[VERSION_KEY]
    if version != VERSION:
        raise UnsupportedError(
            f"{VERSION_KEY} {version!r}", str(where), [VERSION], "upgrade halfbyte"
        )
    reader = _Reader(model, props, where)
    config = reader.canonical_config()
    metadata = reader.document("metadata")
    metadata["origin"] = reader.document("origin")
    found = Model(
        reader.weights(),
        config,
        reader.tokenizer(),
        reader.document("generation_config"),
        metadata,
        model.provenance,
        None,
        model.warnings,
    )
    return _bound(found, where)


def _bound(model: Model, where: Path) -> Model:
    """Return the model with its graph's builder, after checking weights against the config."""
    from halfbyte.converters.architectures import get_architecture

    architecture = get_architecture(model.architecture)
    model = replace(model, build=architecture.build)
    try:
        architecture.bind(model, model.config)
    except UnsupportedError as error:
        raise FormatError(where, str(error)) from error
    return model


class _Reader:
    """Reads our metadata_props, trusting none of them."""

    def __init__(self, model: Model, props: Mapping[str, str], where: Path) -> None:
        self.model = model
        self.props = props
        self.where = where

    def text(self, key: str) -> str:
        """Return one of our texts.

        Raises:
            FormatError: it is missing or damaged.
        """
        name = f"{PREFIX}{key}"
        if name not in self.props:
            raise FormatError(self.where, f"metadata lacks {name!r}; the file is damaged")
        return _unpacked(self.props[name], self.where, name)

    def json(self, key: str) -> Any:
        """Return one of our texts as a value."""
        return values.load(self.text(key), self.where, f"{PREFIX}{key}")

    def document(self, key: str) -> dict[str, Any]:
        """Return one of our texts as an object."""
        found = self.json(key)
        self.require(
            isinstance(found, dict) and all(isinstance(k, str) for k in found),
            f"{PREFIX}{key} is no JSON object",
        )
        return dict(found)

    def require(self, holds: bool, rule: str) -> None:
        """Raise FormatError unless a rule holds."""
        if not holds:
            raise FormatError(self.where, f"{rule}; the file is damaged")

    def canonical_config(self) -> dict[str, Any]:
        """Return the config, checked by its architecture."""
        from halfbyte.converters.architectures import get_architecture

        config = self.document("config")
        architecture = get_architecture(str(config.get("model_type", "")))
        try:
            return architecture.canonical_config(config)
        except FormatError as error:
            raise FormatError(self.where, error.rule) from error

    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer, or None where the file has none."""
        if f"{PREFIX}tokenizer" not in self.props:
            return None
        return Tokenizer.from_json(self.text("tokenizer"))

    def weights(self) -> dict[str, Tensor]:
        """Return the weights in their own encodings, by name."""
        table = self.json("weights")
        self.require(isinstance(table, list), f"{WEIGHTS_KEY} is no list")
        found: dict[str, Tensor] = {}
        for entry in table:
            tensor = self._described(entry)
            self.require(tensor.name not in found, f"weight {tensor.name!r} stands twice")
            try:
                found[tensor.name] = self._filled(tensor, entry)
            except QuantizationError as error:
                raise FormatError(self.where, f"weight {tensor.name!r}: {error.rule}") from error
        return found

    def _described(self, entry: Any) -> Tensor:
        self.require(isinstance(entry, dict) and set(entry) >= _ENTRY_KEYS, "a weight lacks keys")
        name, shape = entry["name"], entry["shape"]
        counts = isinstance(shape, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
        self.require(isinstance(name, str) and counts, f"weight {name!r} has a bad name or shape")
        role, layer, kind = entry["role"], entry["layer"], entry["kind"]
        self.require(role is None or role in _ROLES, f"weight {name!r} has role {role!r}")
        number = layer is None or (type(layer) is int and layer >= 0)
        self.require(number and isinstance(kind, str), f"weight {name!r} has layer {layer!r}")
        encoding = encoding_from_name(str(entry["encoding"]))
        return Tensor(
            name, tuple(shape), encoding, {}, None if role is None else _ROLES[role], layer, kind
        )

    def _filled(self, tensor: Tensor, entry: Mapping[str, Any]) -> Tensor:
        if "inline" in entry:
            return replace(tensor, parts=self._inline(tensor, entry["inline"]))
        names = entry.get("constants")
        self.require(isinstance(names, dict), f"weight {tensor.name!r} names no constants")
        assert isinstance(names, dict)
        if isinstance(tensor.encoding, Dense):
            dtype = tensor.encoding.dtype
            rows, columns = rows_and_columns(tensor.shape)
            spec = PartSpec(dtype, (rows, columns))
            return replace(tensor, parts={"data": self._part(tensor, names, "data", spec)})
        style = entry.get("style")
        form = form_of(tensor.encoding, tensor.columns)
        known = style in (NIBBLES, SIGNED) and form is not None
        self.require(known, f"weight {tensor.name!r} has style {style!r}")
        assert form is not None
        specs = form.specs(tensor.rows, SIGNED if style == SIGNED else NIBBLES)
        if form.act_order:
            index = "order" if "order" in names else "places"
            specs[index] = PartSpec(np.dtype(np.int64), (1, tensor.columns))
        parts = {what: self._part(tensor, names, what, spec) for what, spec in specs.items()}
        return restored(tensor, form, SIGNED if style == SIGNED else NIBBLES, parts)

    def _part(self, tensor: Tensor, names: Mapping[str, Any], what: str, spec: PartSpec) -> Part:
        constant = names.get(what)
        held = self.model.weights.get(constant) if isinstance(constant, str) else None
        label = f"{what} of weight {tensor.name!r}"
        self.require(held is not None, f"constant {constant!r}, {label}, is missing")
        assert held is not None
        dtype = held.encoding.dtype if isinstance(held.encoding, Dense) else None
        fits = dtype == spec.dtype and held.size == math.prod(spec.shape)
        self.require(
            fits,
            f"constant {constant!r} is {held.encoding} {list(held.shape)}, {label} must be "
            f"{spec.dtype} {list(spec.shape)}",
        )
        part = held.parts["data"]
        return part if part.shape == spec.shape else ReshapedPart(part, spec.shape)

    def _inline(self, tensor: Tensor, texts: Any) -> dict[str, Part]:
        specs = tensor.encoding.part_specs(tensor.rows, tensor.columns)
        same = isinstance(texts, dict) and set(texts) == set(specs)
        self.require(same, f"weight {tensor.name!r} has other parts than {tensor.encoding} has")
        parts: dict[str, Part] = {}
        for name, spec in specs.items():
            try:
                raw = base64.b64decode(texts[name], validate=True)
            except (ValueError, TypeError):
                raw = b""
            self.require(len(raw) == spec.nbytes, f"weight {tensor.name!r} has a bad {name}")
            array: Array = np.frombuffer(raw, spec.dtype).reshape(spec.shape)
            parts[name] = ArrayPart(array)
        return parts
