"""What GGUF can hold, by role and encoding."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte.converters.gguf.format import GGUF
from halfbyte.converters.gguf.opaque import OpaqueBlocks
from halfbyte.converters.gguf.profile import GgufProfile, check_profile
from halfbyte.errors import UnsupportedError
from halfbyte.ir.encodings import encoding_from_name
from halfbyte.ir.roles import Role, WeightKey
from halfbyte.ir.tensor import ArrayPart, Tensor, tensor_from_array

PROFILE = GgufProfile()


def weight(
    shape: tuple[int, ...], role: Role | None, kind: str = "weight", dtype: str = "float32"
) -> Tensor:
    tensor = tensor_from_array("w.weight", np.zeros(shape, dtype))
    return tensor.identified(None if role is None else WeightKey(role, 0, kind))


@pytest.mark.parametrize(
    ("role", "shape", "kind"),
    [
        (Role.ATTENTION_NORM, (64,), "weight"),
        (Role.ATTENTION_QUERY, (64,), "bias"),
        (Role.POSITION_EMBEDDING, (8, 64), "weight"),
        (Role.TOKEN_TYPE_EMBEDDING, (2, 64), "weight"),
        (Role.ROPE_DIVISORS, (32,), "weight"),
    ],
)
def test_float_weights_must_be_float32(role: Role, shape: tuple[int, ...], kind: str) -> None:
    tensor = weight(shape, role, kind, "float16")
    required = PROFILE.required(tensor)
    assert required is not None
    assert required.name == "float32"
    assert PROFILE.accepts(tensor, required)
    assert not PROFILE.accepts(tensor, tensor.encoding)
    assert [e.name for e in PROFILE.alternatives(tensor)] == ["float32"]
    with pytest.raises(UnsupportedError, match=r"float16 in GGUF .* supported: float32"):
        check_profile(PROFILE, tensor)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64", "Q4_0", "Q5_1", "Q8_0"])
def test_matrices_may_have_any_type(name: str) -> None:
    tensor = weight((4, 64), Role.ATTENTION_QUERY)
    assert PROFILE.required(tensor) is None
    assert PROFILE.accepts(tensor, encoding_from_name(name))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int4-g32", "int8", "bool"])
def test_encodings_that_ggml_does_not_have(name: str) -> None:
    tensor = weight((4, 64), Role.ATTENTION_QUERY)
    assert not PROFILE.accepts(tensor, encoding_from_name(name))


def test_rows_must_divide_into_blocks() -> None:
    tensor = weight((4, 48), Role.ATTENTION_QUERY)
    assert not PROFILE.accepts(tensor, encoding_from_name("Q8_0"))
    assert PROFILE.accepts(tensor, encoding_from_name("F16"))


def test_activation_types_are_not_for_weights() -> None:
    tensor = weight((4, 256), Role.ATTENTION_QUERY)
    assert not PROFILE.accepts(tensor, OpaqueBlocks("Q8_K", 256, 292))
    assert PROFILE.accepts(tensor, OpaqueBlocks("Q4_K", 256, 144))


def test_tensors_without_a_role_may_stay() -> None:
    tensor = weight((64,), None, dtype="float16")
    assert PROFILE.required(tensor) == tensor.encoding
    assert PROFILE.required(weight((64, 64), None, dtype="float16")) is None
    assert PROFILE.accepts(tensor, tensor.encoding)
    assert not PROFILE.accepts(tensor, encoding_from_name("Q8_0"))
    check_profile(PROFILE, tensor)


def test_alternatives_put_lossless_first() -> None:
    encoding = encoding_from_name("float8_e4m3fn")
    spec = encoding.part_specs(4, 64)["data"]
    part = ArrayPart(np.zeros(spec.shape, spec.dtype))
    tensor = Tensor("w", (4, 64), encoding, {"data": part}).identified(
        WeightKey(Role.ATTENTION_QUERY, 0)
    )
    names = [e.name for e in PROFILE.alternatives(tensor)]
    assert set(names[:3]) == {"float16", "bfloat16", "float32"}
    assert names[3] == "Q8_0"
    with pytest.raises(UnsupportedError, match="float8_e4m3fn in GGUF is not supported"):
        check_profile(PROFILE, tensor)


def test_there_are_no_flavours() -> None:
    assert GGUF.profile().name == "gguf"
    with pytest.raises(UnsupportedError, match="flavour 'x'"):
        GGUF.profile("x")
