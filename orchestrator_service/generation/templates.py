"""Prompt templates: Jinja2, sandboxed and strict, checked on the syntax tree before anything is filled.

TemplateRefused    can't be read, or uses what templates may not use
FillError          can't be filled with these values
+-- Unresolved     a placeholder has no value
+-- FilledTooLarge
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from orchestrator_service.domain.plan import AxisText

FILLED_MAX_BYTES = 262_144
NODES_MAX = 5_000
EXPRESSION_NODES_MAX = 200
DEPTH_MAX = 100
LOOPS_MAX = 20
LOOP_ITEMS_MAX = 1_000
SEPARATOR_MAX_CHARS = 100

# What one of these costs is bounded by what goes in; replace, format, center, indent, round and the like are not.
FILTERS = (
    "capitalize",
    "count",
    "d",
    "default",
    "first",
    "join",
    "last",
    "length",
    "lower",
    "title",
    "trim",
    "upper",
)
TESTS = ("boolean", "defined", "eq", "even", "in", "mapping", "ne", "none", "number", "odd", "string", "undefined")
ALLOWED: tuple[type[nodes.Node], ...] = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.CondExpr,
    nodes.For,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Compare,
    nodes.Operand,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Neg,
    nodes.Pos,
    nodes.List,
    nodes.Tuple,
    nodes.Keyword,
)
WORDS: Mapping[type[nodes.Node], str] = {
    nodes.Mul: "the operator *",
    nodes.Pow: "the operator **",
    nodes.Mod: "the operator %",
    nodes.Call: "a call",
    nodes.Assign: "set",
    nodes.AssignBlock: "set",
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Extends: "extends",
    nodes.FilterBlock: "a filter block",
}
GIVEN_LIST = "given_list"


class TemplateRefused(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"Line {line}: {message}")
        self.line = line


class FillError(Exception):
    pass


class Unresolved(FillError):
    def __init__(self, placeholder: str) -> None:
        super().__init__(f"The placeholder {placeholder} has no value.")
        self.placeholder = placeholder


class FilledTooLarge(FillError):
    def __init__(self) -> None:
        super().__init__(f"The filled prompt is larger than {FILLED_MAX_BYTES:,} bytes.")


@dataclass(frozen=True)
class Template:
    # The placeholders that it names, wherever they come.
    names: frozenset[str]
    # The last attribute of a placeholder to all of it: name -> client.name.
    paths: Mapping[str, str]
    compiled: jinja2.Template

    def fill(self, values: Mapping[str, object]) -> str:
        context = self.compiled.new_context(cast("dict[str, Any]", values))
        pieces: list[str] = []
        chars = 0
        try:
            for piece in self.compiled.root_render_func(context):
                pieces.append(piece)
                chars += len(piece)
                if chars > FILLED_MAX_BYTES:
                    raise FilledTooLarge
        except _NoValue as error:
            raise Unresolved(self.paths.get(error.name, error.name)) from None
        # A value of the wrong kind, such as a text to add to a number.
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise FillError(f"The template can't be filled: {error}.") from error
        return "".join(pieces)


def compile_template(text: str) -> Template:
    """Raises TemplateRefused."""
    try:
        tree = ENVIRONMENT.parse(text)
        _check(tree)
        names, paths = frozenset(find_undeclared_variables(tree)), dict(_dotted(tree))
        code = ENVIRONMENT.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateRefused(error.lineno, error.message or "can't be read.") from None
    # Python's own limits on nesting, which a template of ordinary size never meets.
    except (RecursionError, SyntaxError, MemoryError):
        raise TemplateRefused(1, "the template is nested too deeply.") from None
    # Python reads and writes whole numbers of so many digits only.
    except ValueError:
        raise TemplateRefused(1, "a number is too long.") from None
    compiled = jinja2.Template.from_code(ENVIRONMENT, code, {})
    return Template(names=names, paths=paths, compiled=compiled)


class _NoValue(jinja2.UndefinedError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Strict(jinja2.StrictUndefined):
    """Any use of a placeholder without a value raises _NoValue with its name."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: Callable[[str], jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        def no_value(_message: str) -> _NoValue:
            return _NoValue(name or "?")

        super().__init__(hint, obj, name, cast("type[jinja2.TemplateRuntimeError]", no_value))


class _Environment(ImmutableSandboxedEnvironment):
    """Reaches into what was given and no further: no methods of Python's own values."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict):
            return self.getitem(obj, attribute)
        if isinstance(obj, LoopContext) or (isinstance(obj, AxisText) and attribute == "id"):
            return super().getattr(obj, attribute)
        if isinstance(obj, Undefined):
            # Complains about what is missing, not about the attribute that was wanted of it.
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        value: Any = None
        if isinstance(obj, dict | list | str):
            with suppress(TypeError, LookupError):
                value = cast("Any", obj)[argument]
        return self.undefined(obj=obj, name=str(argument)) if value is None else value


def _shown(value: Any) -> Any:
    """What a placeholder becomes: 45 for 45.0, true for True, a list with commas; never Python's own notation."""
    if isinstance(value, str | Undefined):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return ", ".join(str(_shown(item)) for item in cast("list[Any]", value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def _given_list(value: Any) -> list[Any]:
    if isinstance(value, Undefined):
        value.__str__()  # raises with the placeholder's name
    items = list(cast("dict[Any, Any]", value)) if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise TypeError("a loop goes over a list")
    listed = cast("list[Any]", items)
    if len(listed) > LOOP_ITEMS_MAX:
        raise ValueError(f"a loop goes over at most {LOOP_ITEMS_MAX:,} items")
    return listed


def _environment() -> _Environment:
    environment = _Environment(undefined=_Strict, finalize=_shown, autoescape=False)
    environment.globals.clear()
    environment.filters = {name: environment.filters[name] for name in FILTERS} | {GIVEN_LIST: _given_list}
    environment.tests = {name: environment.tests[name] for name in TESTS}
    return environment


ENVIRONMENT = _environment()


def _check(tree: nodes.Template) -> None:
    """Refuses whatever could take more time or memory than the template and its values are long."""
    count = loops = 0
    stack: list[tuple[nodes.Node, int, bool]] = [(tree, 0, False)]
    while stack:
        node, depth, in_loop = stack.pop()
        count += 1
        loops += isinstance(node, nodes.For)
        if count > NODES_MAX or depth > DEPTH_MAX or loops > LOOPS_MAX:
            raise TemplateRefused(node.lineno, "the template has too many parts or is nested too deeply.")
        _check_node(node, in_loop=in_loop)
        inside = in_loop or isinstance(node, nodes.For)
        stack += [(child, depth + 1, inside) for child in node.iter_child_nodes()]
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, GIVEN_LIST, [], [], None, None, lineno=loop.lineno, environment=ENVIRONMENT)


def _check_node(node: nodes.Node, *, in_loop: bool) -> None:
    if not isinstance(node, ALLOWED):
        word = WORDS.get(type(node), type(node).__name__.lower())
        raise TemplateRefused(node.lineno, f"{word} is not allowed in a prompt template.")
    match node:
        case nodes.For():
            _check_loop(node, in_loop=in_loop)
            _check_expressions(node)
        case nodes.Name() if node.name.startswith("_") or node.name == "self":
            raise TemplateRefused(node.lineno, f"{node.name} is no placeholder.")
        case nodes.Getattr() if node.attr.startswith("_"):
            raise TemplateRefused(node.lineno, f"{node.attr} is no placeholder.")
        case nodes.Filter() if node.name == "join":
            _check_join(node)
        case nodes.Filter() if node.name == GIVEN_LIST:
            raise TemplateRefused(node.lineno, f"No filter named '{GIVEN_LIST}'.")
        case nodes.Output() | nodes.If():
            _check_expressions(node)
        case _:
            pass


def _check_loop(loop: nodes.For, *, in_loop: bool) -> None:
    if in_loop:
        raise TemplateRefused(loop.lineno, "a loop inside a loop is not allowed.")
    over = loop.iter
    while isinstance(over, nodes.Getattr | nodes.Getitem):
        over = over.node
    if not isinstance(over, nodes.Name) or loop.recursive:
        raise TemplateRefused(loop.lineno, "a loop goes over a parameter that is a list.")


def _check_join(node: nodes.Filter) -> None:
    separator = node.args[0] if node.args else nodes.Const("")
    short = isinstance(separator, nodes.Const) and len(str(separator.value)) <= SEPARATOR_MAX_CHARS
    if not short or node.kwargs or len(node.args) > 1 or node.dyn_args or node.dyn_kwargs:
        raise TemplateRefused(node.lineno, "join takes one short text.")


def _check_expressions(node: nodes.Output | nodes.If | nodes.For) -> None:
    expressions = node.nodes if isinstance(node, nodes.Output) else [node.test] if node.test else []
    for expression in expressions:
        # Each may stand for a long text, and nothing is sent out before the expression is whole.
        if sum(1 for _ in expression.find_all(nodes.Node)) > EXPRESSION_NODES_MAX:
            raise TemplateRefused(node.lineno, "the expression is too long.")


def _dotted(tree: nodes.Template) -> Iterator[tuple[str, str]]:
    for node in tree.find_all(nodes.Getattr):
        names = [node.attr]
        base = node.node
        while isinstance(base, nodes.Getattr):
            names.append(base.attr)
            base = base.node
        if isinstance(base, nodes.Name):
            yield node.attr, ".".join([base.name, *reversed(names)])
