"""Chat templates: the right text, and nothing else."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import pytest

from halfbyte.converters.tokenizers import apply_chat_template, chat_template, from_hugging_face
from halfbyte.errors import HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer
from support import tiny_tokenizers as tiny

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Grüße <b> 'x' 🙂"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]


def with_template(template: str | None, **named: str) -> Tokenizer:
    return Tokenizer(
        "bpe",
        ("<s>", "</s>"),
        (3, 3),
        special_ids={"bos": 0, "eos": 1},
        chat_template=template,
        chat_templates=named,
    )


def render(template: str, **variables: Any) -> str:
    return apply_chat_template(with_template(template), MESSAGES, **variables)


def test_chatml() -> None:
    tokenizer = from_hugging_face(tiny.every_kind()["smollm"])
    assert tokenizer is not None
    expected = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nGrüße <b> 'x' 🙂<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )
    assert apply_chat_template(tokenizer, MESSAGES, False) == expected
    assert apply_chat_template(tokenizer, MESSAGES) == expected + "<|im_start|>assistant\n"


def test_blocks_are_trimmed_and_loops_controlled() -> None:
    source = (
        "{{ bos_token }}\n  {% for m in messages %}\n    {% if loop.index == 3 %}{% break %}"
        "{% endif %}\n{{ m.role }};\n  {% endfor %}\nend"
    )
    assert render(source) == "<s>\nsystem;\nuser;\nend"


def test_extras_of_transformers() -> None:
    assert render("{{ messages[1].content | tojson }}") == "\"Grüße <b> 'x' 🙂\""
    assert render("{{ messages[:1] | tojson(indent=1) }}") == json.dumps(MESSAGES[:1], indent=1)
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{% generation %}a{% endgeneration %}b") == "ab"
    assert render("{{ undefined_name }}{{ extra }}", extra=3) == "3"
    assert render("{{ documents }}", documents=["d"]) == "['d']"
    with pytest.raises(HalfbyteError) as error:
        render("{{ raise_exception('roles must alternate') }}")
    assert str(error.value) == "chat template 'default': roles must alternate"


def test_operators_and_filters_still_work() -> None:
    source = (
        "{{ 'a' ~ 1 ~ 'b' }} {{ 'ab' * 2 }} {{ 2 ** 3 }} {{ 7 % 4 }} {{ '%s' % 'x' }} {{ 1 + 2 }} "
        "{{ [1] + [2] }} {{ 'a-b'.replace('-', '+') }} {{ ['x','y'] | join(',') }} "
        "{{ '{}!'.format('z') }} {{ range(3) | list }} {{ 6 // 4 }} {{ '%s' | format('f') }}"
    )
    assert render(source) == "a1b abab 8 3 x 3 [1, 2] a+b x,y z! [0, 1, 2] 1 f"
    assert render("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) ~ m(2) }}") == "<1><2>"


def test_template_names_and_tools() -> None:
    tokenizer = with_template("plain", tool_use="tools: {{ tools | length }}", rag="rag")
    assert apply_chat_template(tokenizer, []) == "plain"
    assert apply_chat_template(tokenizer, [], tools=[{"name": "f"}]) == "tools: 1"
    assert apply_chat_template(tokenizer, [], chat_template="rag") == "rag"
    assert apply_chat_template(tokenizer, [], chat_template="given {{ 1 }}") == "given 1"


def test_no_template() -> None:
    with pytest.raises(HalfbyteError) as error:
        apply_chat_template(with_template(None), MESSAGES)
    message = "tokenizer: it has no chat template; give plain text"
    assert str(error.value) == message
    with pytest.raises(HalfbyteError, match="named templates: rag; give"):
        apply_chat_template(with_template(None, rag="x"), MESSAGES)


def test_special_tokens_come_from_the_configuration() -> None:
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}}
    config["chat_template"] = "[{{ bos_token }}{{ eos_token }}]"  # type: ignore[assignment]
    tokenizer = from_hugging_face(tiny.files(tiny.byte_level_json(), config))
    assert tokenizer is not None
    assert apply_chat_template(tokenizer, []) == "[<|im_end|>]"


LOOP = "{% for i in range(100000) %}"
GROWTH = "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}"
REFUSED = {
    "attribute walk": "{{ ''.__class__.__mro__ }}",
    "attribute walk by filter": "{{ ''|attr('__class__') }}",
    "attribute walk by map": "{{ (1, 2)|map(attribute='__class__')|list }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "changing the messages": "{{ messages.append(1) }}",
    "loop bomb": LOOP * 3 + "{% endfor %}" * 3,
    "loop bomb with output": LOOP * 2 + "xxxxxxxxxxxxxxxxxxxxxxxxxx" + "{% endfor %}" * 2,
    "range": "{% for i in range(1000000) %}{% endfor %}",
    "huge range": "{{ range(10**9)|list }}",
    "repetition": "{{ 'a' * 10**9 }}",
    "repetition of lists": "{{ ([0] * 100000) * 100000 }}",
    "power": "{{ 10**10**10 }}",
    "product": "{% set ns = namespace(x=9**60) %}{% for i in range(20) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling": GROWTH + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by plus": GROWTH + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling by join": GROWTH + "{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "padding": "{{ 'x'.ljust(10**10) }}",
    "padding by filter": "{{ 'x'|center(10000000000) }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "old format": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "replace": "{% set b = 'b' * 1000000 %}{{ b.replace('b', b) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "nesting": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "syntax": "{% for %}",
    "unfinished": "{{",
    "wrong type": "{{ 1 + 'a' }}",
    "undefined member": "{{ a.b.c }}",
    "length": " " * (1 << 20) + "x",
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_templates_end_with_one_clear_error(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(HalfbyteError, match="^chat template 'default': "):
        render(REFUSED[name])
    assert time.monotonic() - start < 4 * chat_template.MAX_SECONDS


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", -1.0)
    with pytest.raises(HalfbyteError, match="more than -1 seconds"):
        render("{% for m in messages %}{% endfor %}")


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_LENGTH", 10)
    with pytest.raises(HalfbyteError, match="output longer than 10"):
        render("{{ 'abcdef' }}{{ 'abcdef' }}")
