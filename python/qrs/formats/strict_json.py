"""JSON without its traps, for files that somebody else wrote.

The standard parser keeps the last of two equal keys, accepts NaN and Infinity, and raises
RecursionError on deep nesting. Two readers of such a file can disagree about what it says, so here
each of these is a ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Pairs = list[tuple[str, Any]]
"""Keys and values of an object, as the file has them."""


class DuplicateKeyError(ValueError):
    """A key that occurs twice in one object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"key {quote(key)} occurs twice in one object")
        self.key = key


def quote(name: object, limit: int = 100) -> str:
    """`repr`, which escapes control characters, cut to about `limit` characters.

    >>> quote("a\\x1b[31m"), quote("w" * 10**6, limit=20)
    ("'a\\\\x1b[31m'", "'wwwwwwww...wwwwwww'")
    """
    # Cut before repr as well: a name of 1 MB need not be escaped whole to show its ends.
    if isinstance(name, str) and len(name) > 2 * limit:
        name = name[:limit] + name[-limit:]
    try:
        text = repr(name)
    except RecursionError:  # an array of arrays of arrays...
        text = f"a deeply nested {type(name).__name__}"
    if len(text) <= limit:
        return text
    head = (limit - 3) // 2 + 1
    return f"{text[:head]}...{text[len(text) - (limit - 3 - head) :]}"


def unique(pairs: Pairs) -> dict[str, Any]:
    """The object of these pairs. Raises DuplicateKeyError."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKeyError(key)
            seen.add(key)
    return fields


def loads(text: str, convert: Callable[[Pairs], Any] = unique) -> Any:
    """Parse a JSON document; every fault is a ValueError.

    `convert` makes an object of its keys and values, and has to refuse keys that occur twice.

    >>> loads('{"a": [1, true, null]}')
    {'a': [1, True, None]}
    >>> loads('{"a": 1, "a": 1}')
    Traceback (most recent call last):
    ...
    qrs.formats.strict_json.DuplicateKeyError: key 'a' occurs twice in one object
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=convert,
        parse_constant=_no_constant,
        parse_int=_int if "-0" in text else None,
    )
    try:
        return decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_int(value: object) -> bool:
    """Whether `value` is a JSON integer: True and 1.0 are not."""
    return type(value) is int


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _int(text: str) -> int | float:
    # "-0" is a float to other readers (serde), so it must not pass for the integer 0.
    return -0.0 if text == "-0" else int(text)
