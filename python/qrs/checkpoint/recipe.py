"""Recipes: which scheme and solver each tensor gets, in a JSON file that people can write.

    {"scheme": "int4-g128-asym-f16", "solver": "gptq",
     "tensors": {"encoder.layer.0.*": {"scheme": "int8-axis0", "solver": "minmax"},
                 "pooler.*": {"scheme": "keep"}}}

Names come before patterns of the shell, and patterns in their order. What a rule does not say is as
above the rules, or as the call says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..errors import FormatError, QrsError, StorageError, bad
from ..formats import strict_json
from ..formats.atomic import atomic_write_bytes
from ..formats.strict_json import quote
from ..schemes import as_scheme
from ..solvers import check_solver

KEEP = "keep"
FIELDS = ("scheme", "solver")


@dataclass(frozen=True)
class Rule:
    """What a tensor gets; None where the rule does not say."""

    scheme: str | None = None
    solver: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Without what it does not say."""
        pairs = {"scheme": self.scheme, "solver": self.solver}
        return {name: value for name, value in pairs.items() if value is not None}


@dataclass(frozen=True)
class Recipe:
    """Rules by name or pattern, and what holds for the other tensors.

    >>> recipe = Recipe(Rule("int8-axis0"), {"a.*": Rule("nf4-g64"), "a.b": Rule(KEEP)})
    >>> recipe.rule("a.b").scheme, recipe.rule("a.c").scheme, recipe.rule("b").scheme
    ('keep', 'nf4-g64', 'int8-axis0')
    """

    default: Rule = Rule()
    tensors: Mapping[str, Rule] = field(default_factory=dict)

    def rule(self, tensor: str, with_default: bool = True) -> Rule:
        """What a tensor gets, as far as the recipe says."""
        found = self.tensors.get(tensor)
        if found is None:
            matching = (rule for name, rule in self.tensors.items() if fnmatchcase(tensor, name))
            found = next(matching, Rule())
        default = self.default if with_default else Rule(None, self.default.solver)
        return Rule(found.scheme or default.scheme, found.solver or default.solver)

    def check_kept(self, tensor: str, reason: str) -> None:
        """Raise `ArgValueError` where a tensor that is kept anyway is named with a scheme."""
        named = self.tensors.get(tensor, Rule()).scheme
        if named not in (None, KEEP):
            found = f"{quote(tensor)} gets {named}, and is {reason}"
            raise bad("recipe", found, named, "a tensor that is quantized, or 'keep'")

    def check(self, tensors: Iterable[str]) -> None:
        """Raise `ArgValueError` for a rule that matches no tensor."""
        names = list(tensors)
        for name in self.tensors:
            if name not in names and not any(fnmatchcase(tensor, name) for tensor in names):
                found = f"{quote(name)} matches no tensor"
                raise bad("recipe", found, name, "names or patterns of this model")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, which appears whole or not at all."""
        rules = {name: rule.to_dict() for name, rule in self.tensors.items()}
        text = json.dumps({**self.default.to_dict(), "tensors": rules}, indent=1)
        atomic_write_bytes(path, f"{text}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a file. Raises `StorageError`, and `FormatError` that names the file and the key."""
        name = os.fspath(path)
        try:
            with open(name, encoding="utf-8") as file:
                document = strict_json.loads(file.read())
            return cls._from(document)
        except OSError as error:
            raise StorageError(error.errno or 0, error.strerror or str(error), name) from None
        except (ValueError, TypeError) as error:  # of JSON, of UTF-8, of a scheme or solver
            raise FormatError(f"{name}: {error}", path=name) from None

    @classmethod
    def _from(cls, document: Any) -> Recipe:
        fields = _object("the recipe", document, (*FIELDS, "tensors"))
        tensors = fields.pop("tensors", {})
        if not isinstance(tensors, dict):
            raise ValueError(f"tensors: got {quote(tensors)}, expected an object")
        rules = {name: _rule(f"tensors, {quote(name)}", rule) for name, rule in tensors.items()}
        return cls(_rule("the recipe", fields), rules)


def _object(where: str, value: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """An object with no other keys."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {quote(value)}, expected an object")
    for key in value:
        if key not in known:
            raise ValueError(f"{where}: unknown key {quote(key)}, expected {', '.join(known)}")
    return dict(value)


def _rule(where: str, value: Any) -> Rule:
    """A rule whose scheme and solver there are."""
    fields = _object(where, value, FIELDS)
    for key, text in fields.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}, {key}: got {quote(text)}, expected a string")
    rule = Rule(**fields)
    try:
        if rule.scheme is not None and rule.scheme != KEEP:
            as_scheme(rule.scheme)
        if rule.solver is not None:
            check_solver(rule.solver)
    except QrsError as error:
        raise ValueError(f"{where}: {error}") from None
    return rule
