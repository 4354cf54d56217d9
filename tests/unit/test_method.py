"""Names of methods and their options."""

from __future__ import annotations

import pytest

from halfbyte.errors import UnsupportedError
from halfbyte.quant.algorithms import get_calibrated
from halfbyte.quant.method import Chain, MethodOptions, parse_method


def test_chains_are_read_and_named() -> None:
    assert parse_method("rtn") == Chain((), "rtn")
    assert parse_method("awq+gptq") == Chain(("awq",), "gptq")
    assert parse_method("AWQ") == Chain(("awq",), "rtn")
    assert parse_method("rotate + smoothquant+gptaq").name == "rotate+smoothquant+gptaq"
    for text in ("rtn", "exhaustive", "gptq", "rotate+awq+gptaq"):
        assert parse_method(text).name == text


def test_what_a_chain_needs() -> None:
    needs = {
        text: (chain.is_calibrated, chain.needs_hessian, chain.needs_float_stream)
        for text in ("rtn", "rotate", "awq", "gptq", "gptaq")
        for chain in [parse_method(text)]
    }
    assert needs == {
        "rtn": (False, False, False),
        "rotate": (False, False, False),
        "awq": (True, False, False),
        "gptq": (True, True, False),
        "gptaq": (True, True, True),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gtpq", "'gtpq' is not supported; supported: gptq"),
        ("foo", "'foo' is not supported; a method is one of rtn, .*best, after .*awq, .*rotate"),
        ("", "''"),
        ("awq++gptq", r"empty place.*awq\+gptq"),
        ("awq+", r"'awq\+' with an empty place.*supported: awq"),
        ("+", r"'\+' with an empty place is not supported; a method is one of rtn"),
        ("gptq+awq", r"'awq' follows 'gptq', which rounds, is not .*awq\+gptq"),
        ("gptq+rtn", r"'rtn' follows 'gptq', which rounds, is not .*gptq, rtn"),
        ("awq+awq+gptq", r"'awq' twice.*awq\+gptq"),
    ],
)
def test_wrong_chains_are_refused_with_what_was_meant(text: str, told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        parse_method(text)


def test_options_without_meaning_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"act_order": "sorted"},
        {"damping": -1.0},
        {"damping": float("nan")},
        {"refine": -1},
    ]
    for options in wrong:
        with pytest.raises(UnsupportedError):
            MethodOptions(**options)  # type: ignore[arg-type]


def test_an_unknown_calibrated_algorithm_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="gptq"):
        get_calibrated("gptk")
