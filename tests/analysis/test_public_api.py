"""The public API: every name imports and says what it is, what it takes, what its fields mean, and what it raises."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

import varscale_analysis
from varscale_analysis.form import Form

NAMES = sorted(varscale_analysis.__all__)
CLASSES = [name for name in NAMES if inspect.isclass(getattr(varscale_analysis, name))]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(varscale_analysis, name))]
LAWS = [name for name in CLASSES if issubclass(getattr(varscale_analysis, name), Form)]


def members(kind: type) -> Iterator[tuple[str, FunctionType, str]]:
    """Public methods and properties that a class defines: name, function, docstring (which may be inherited)."""
    for name, member in vars(kind).items():
        function: Any = member
        if isinstance(member, property):
            function = member.fget
        elif isinstance(member, classmethod | staticmethod):
            function = member.__func__
        elif hasattr(member, "func"):  # a cached property
            function = member.func
        if not name.startswith("_") and isinstance(function, FunctionType):
            inherited = next((vars(base)[name] for base in kind.__mro__ if documented(base, name)), None)
            yield name, function, inspect.getdoc(inherited) or ""


def documented(base: type, name: str) -> bool:
    """Whether a class in the order of inheritance has a docstring for a member."""
    return name in vars(base) and bool(vars(base)[name].__doc__)


def raises(function: Callable[..., Any]) -> bool:
    """Whether the body of a function raises by itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(tree))


def mentions(text: str, word: str) -> bool:
    """Whether a text holds a name as a word of its own."""
    return re.search(rf"(?<![\w]){re.escape(word)}(?![\w])", text) is not None


def test_all_is_sorted_complete_and_imports() -> None:
    assert list(varscale_analysis.__all__) == sorted(set(varscale_analysis.__all__))
    assert sorted([*CLASSES, *FUNCTIONS]) == NAMES
    kept = {
        name
        for name, value in vars(varscale_analysis).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }
    assert kept <= set(NAMES), "imported into the package, but not public"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_and_its_public_members_are_documented(name: str) -> None:
    kind = getattr(varscale_analysis, name)
    text = kind.__doc__ or ""
    assert text and not text.startswith(f"{name}("), "no docstring of its own"
    for member, function, doc in members(kind):
        assert doc, f"{name}.{member} has no docstring"
        if raises(function):
            assert re.search("[Rr]aises", doc), f"{name}.{member} raises and does not say what"


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if dataclasses.is_dataclass(getattr(varscale_analysis, name))]
)
def test_a_result_is_frozen_and_says_what_each_field_is(name: str) -> None:
    kind = getattr(varscale_analysis, name)
    assert kind.__dataclass_params__.frozen
    text = " ".join(base.__doc__ or "" for base in kind.__mro__[:-1])
    fields = [field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")]
    assert [field for field in fields if not mentions(text, field)] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_and_raises(name: str) -> None:
    function = getattr(varscale_analysis, name)
    text = inspect.getdoc(function) or ""
    assert text
    assert [p for p in inspect.signature(function).parameters if not mentions(text, p)] == []
    if raises(function):
        assert re.search("[Rr]aises", text), f"{name} raises and does not say what"


@pytest.mark.parametrize("name", [name for name in LAWS if name not in ("Law", "JointLaw")])
def test_a_law_names_its_source(name: str) -> None:
    module = inspect.getmodule(getattr(varscale_analysis, name))
    assert module is not None and module.__doc__ is not None
    assert re.search(r"Source: .*arXiv:\d{4}\.\d{5}", module.__doc__, re.DOTALL)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_reports_a_unit_for_every_parameter(name: str) -> None:
    kind = getattr(varscale_analysis, name)
    if inspect.isabstract(kind):
        assert name == "Law"
        return
    law = kind()
    units = law.units("nat/token", dict.fromkeys(law.roles, "parameter"))
    assert set(units) == set(law.names)
    assert all(units.values())
