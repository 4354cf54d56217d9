"""Render chat templates as transformers does, but never trust one.

A template is a program from a stranger: it runs in jinja2's immutable sandbox, attribute walks end
it, and loops, time, text length and numbers in calls are bounded.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from halfbyte.converters.tokenizers.special_tokens import (
    MAX_TEMPLATE_BYTES,
    NAMES,
    json_file,
)
from halfbyte.errors import HalfbyteError
from halfbyte.ir.tokenizer import Tokenizer

MAX_LENGTH = 16 << 20
MAX_STEPS = 250_000
MAX_RANGE = 100_000
MAX_NUMBER = 1_000_000
MAX_SECONDS = 5.0


class _Budget:
    """Counts what one rendering has used."""

    def __init__(self) -> None:
        self.steps = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> str:
        """Count one turn of a loop or call of a macro; returns "" so that it can stand in text."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise SecurityError(f"more than {MAX_STEPS} loop turns")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"more than {MAX_SECONDS:.0f} seconds")
        return ""


def _check_length(value: Any) -> Any:
    if isinstance(value, str | bytes | list | tuple | dict) and len(value) > MAX_LENGTH:
        raise SecurityError(f"a value longer than {MAX_LENGTH}")
    return value


def _check_arguments(function: Any, arguments: Sequence[Any]) -> None:
    """Refuse calls whose result could be huge before they are made."""
    function = getattr(function, "__wrapped__", function)
    owner = getattr(function, "__self__", None)
    values = [owner, *arguments] if isinstance(owner, str | bytes) else list(arguments)
    sizes = 1
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"the number {value:.3g} in a call")
        if isinstance(value, str | bytes | list | tuple):
            sizes *= len(value) + 1
    name = getattr(function, "__name__", "")
    if name in ("replace", "do_replace", "join", "do_join") and sizes > MAX_LENGTH * 8:
        raise SecurityError(f"a {name} that may grow beyond {MAX_LENGTH}")
    if name in ("format", "format_map", "do_format") and _wide_format(values):
        raise SecurityError("a format with a huge width")


def _wide_format(values: Sequence[Any]) -> bool:
    return any(isinstance(v, str) and re.search(r"\d{5,}|[%*]\*|\{:?[^}]*\{", v) for v in values)


def _bounded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        _check_arguments(function, [*arguments, *named.values()])
        return _check_length(function(*arguments, **named))

    return call


def _concatenate(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MAX_LENGTH:
        raise SecurityError(f"a text longer than {MAX_LENGTH}")
    return "".join(texts)


class _Metered(NodeTransformer):
    """Put a step counter into every loop and macro; make `~` a bounded call."""

    def _meter(self, node: Any) -> Any:
        self.generic_visit(node)
        step = nodes.Call(nodes.Name("__step", "load"), [], [], None, None)
        node.body.insert(0, nodes.Output([step], lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _meter  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.Name("__concatenate", "load"), node.nodes, [], None, None)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the tag's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox: transformers' settings, bounded operators, calls and filters."""

    intercepted_binops = frozenset(("*", "**", "+", "%", "//", "-", "/"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            cache_size=0,
        )
        self.filters = {name: _bounded_filter(f) for name, f in self.filters.items()}
        self.filters["tojson"] = _bounded_filter(_to_json)
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda pattern: datetime.now().strftime(pattern),
            range=_bounded_range,
            __concatenate=_concatenate,
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        metered = _Metered().visit(tree)
        assert isinstance(metered, nodes.Template)
        for part in metered.find_all(nodes.Node):
            part.set_environment(self)
        return metered

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse a walk along Python's own attributes."""
        raise SecurityError(f"access to attribute {attribute!r} of {type(obj).__name__!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator within bounds."""
        if operator == "*":
            _check_product(left, right)
        if operator == "**" and (_magnitude(left) > 1e6 or _magnitude(right) > 64):
            raise SecurityError("a power of large numbers")
        if operator == "%" and isinstance(left, str | bytes) and re.search(r"\d{5,}|\*", str(left)):
            raise SecurityError("a format with a huge width")
        if operator == "+" and isinstance(left, str | list | tuple):
            _check_length(left)
        return _check_length(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        """Call what a template calls, within bounds."""
        if getattr(obj, "__func__", None) is _Budget.step:
            return obj()
        _check_arguments(obj, [*arguments, *named.values()])
        return _check_length(super().call(context, obj, *arguments, **named))


def _magnitude(value: Any) -> float:
    return abs(float(value)) if isinstance(value, int | float) else 0.0


def _check_product(left: Any, right: Any) -> None:
    for text, count in ((left, right), (right, left)):
        repeats = isinstance(text, str | bytes | list | tuple) and isinstance(count, int)
        if repeats and len(text) * count > MAX_LENGTH:
            raise SecurityError(f"a repetition longer than {MAX_LENGTH}")
    if _magnitude(left) * _magnitude(right) > 1e300:
        raise SecurityError("a product of large numbers")


def _bounded_range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_RANGE:
        raise SecurityError(f"a range of more than {MAX_RANGE}")
    return found


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=8)
def _compile(source: str) -> Any:
    return _Environment().from_string(source)


def apply_chat_template(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Return the prompt that a tokenizer's chat template makes of messages.

    messages: dictionaries with `role` and `content`. tools: function descriptions as JSON schemas;
    a template named `tool_use` is then preferred. Other variables are handed to the template;
    `chat_template` picks a named template or is one.

    Raises:
        HalfbyteError: there is no template, it is broken, refuses the messages, or oversteps the
            sandbox or its bounds.
    """
    name, source = _choose(tokenizer, tools, variables.pop("chat_template", None))
    where = f"chat template {name!r}"
    if len(source) > MAX_TEMPLATE_BYTES:
        found = f"{len(source)} characters, at most {MAX_TEMPLATE_BYTES} are allowed"
        raise HalfbyteError(f"{where}: {found}; give the prompt without it (--raw)")
    known = {**_special_tokens(tokenizer), **variables}
    budget = _Budget()
    try:
        template = _compile(source)
        parts = template.generate(
            messages=list(messages),
            tools=tools,
            documents=known.pop("documents", None),
            add_generation_prompt=add_generation_prompt,
            __step=budget.step,
            **known,
        )
        return _collect(parts)
    except SecurityError as error:
        raise HalfbyteError(f"{where}: refused, it asks for {error}") from error
    except TemplateError as error:
        raise HalfbyteError(f"{where}: {error.message or type(error).__name__}") from error
    except (RecursionError, MemoryError) as error:
        raise HalfbyteError(f"{where}: nested too deeply or too large; use --raw") from error
    except Exception as error:
        raise HalfbyteError(f"{where}: {type(error).__name__}: {error}") from error


def _collect(parts: Any) -> str:
    found: list[str] = []
    length = 0
    for part in parts:
        length += len(part)
        if length > MAX_LENGTH:
            raise SecurityError(f"output longer than {MAX_LENGTH}")
        found.append(part)
    return "".join(found)


def _choose(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None, wanted: str | None
) -> tuple[str, str]:
    named = dict(tokenizer.chat_templates)
    if tokenizer.chat_template is not None:
        named["default"] = tokenizer.chat_template
    if wanted is not None:
        return (wanted, named[wanted]) if wanted in named else ("given", wanted)
    if tools and "tool_use" in named:
        return "tool_use", named["tool_use"]
    if "default" in named:
        return "default", named["default"]
    known = f"; named templates: {', '.join(sorted(named)[:5])}" if named else ""
    raise HalfbyteError(f"tokenizer: it has no chat template{known}; give plain text")


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `bos_token` and the like, as transformers hands them to a template."""
    config = {
        **json_file(tokenizer.source, "special_tokens_map.json"),
        **json_file(tokenizer.source, "tokenizer_config.json"),
    }
    if not config:
        found = {f"{name}_token": tokenizer.special_token(name) for name in NAMES}
        return {name: text for name, text in found.items() if text is not None}
    found = {}
    for name in NAMES:
        entry = config.get(f"{name}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str):
            found[f"{name}_token"] = text
    return found
