"""`qrs bits`: what becomes of a number in a format, as a picture of its bits."""

from __future__ import annotations

import math
from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from .. import floats
from ..errors import ArgValueError
from .app import Json, UsageError, usage
from .escape import escaped
from .show import show_json
from .table import LEFT, RIGHT, show_table

FIELDS = ("sign", "exponent", "mantissa")
STYLES = ("magenta", "green", "cyan")
KINDS = {
    "zero": "zero",
    "subnormal": "a subnormal number",
    "normal": "a normal number",
    "infinity": "infinity",
    "nan": "not a number",
}
Words = list[str]
# A number as it was typed, a format, and its parts, or why the format cannot hold it.
Entry = tuple[str, str, floats.Parts | str]


def bits(
    numbers: Annotated[
        Words,
        typer.Argument(
            metavar="NUMBER",
            help="Such as 0.1, -1e-40, 0x1.8p-3, inf, nan.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    format: Annotated[
        Words,
        typer.Option(
            metavar="FORMAT",
            help=f"{', '.join(floats.NAMES)}; repeatable. Default: all, in one line each.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    code: Annotated[
        Words,
        typer.Option(
            metavar="CODE",
            help="The bits themselves in place of a number, such as 0x7e; repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    table: Annotated[bool, typer.Option("--table", help="Print the table of formats.")] = False,
    json: Json = False,
) -> None:
    """Show numbers as a format stores them: sign, exponent, mantissa, the exact value, the error.

    What is too large becomes the largest number of the format. Numbers narrow to float32 first.
    """
    if table:
        if numbers or format or code:
            raise UsageError("--table takes no numbers, formats or codes")
        show_formats(json)
        return
    if not numbers and not code:
        raise UsageError("a NUMBER is missing (or use --code or --table)")
    if code and not format:
        raise UsageError("--code needs --format")
    with usage():
        names = list(dict.fromkeys(map(floats.format_name, format)))
        shown = [_of_number(text, names) for text in numbers]
        shown += [_of_code(text, names) for text in code]
    if json:
        show_json({"numbers": [_document(entry) for entries in shown for entry in entries]})
        return
    for place, entries in enumerate(shown):
        if place:
            print()
        text, _, p = entries[0]
        if len(entries) == 1 and isinstance(p, floats.Parts):
            show_picture(text, p)
        else:
            show_lines(entries)


def _of_number(text: str, names: Words) -> list[Entry]:
    """The number in these formats; without any, in all of them, and some may not hold it."""
    x = parsed(text)
    if names:
        return [(text, name, floats.decompose(x, name)) for name in names]
    floats.decompose(x, "f32")  # what float32 cannot hold is an error
    return [(text, name, _or_reason(x, name)) for name in floats.NAMES]


def _or_reason(x: float, name: str) -> floats.Parts | str:
    try:
        return floats.decompose(x, name)
    except ArgValueError:
        return f"cannot hold {x}"


def _of_code(text: str, names: Words) -> list[Entry]:
    try:
        number = int(text, 0)
    except ValueError:
        raise UsageError(f"--code: cannot read {text!r}, expected bits such as 0x7e") from None
    return [(text, name, floats.decompose_code(number, name)) for name in names]


def parsed(text: str) -> float:
    """A number as people write it; decimal, hexadecimal, inf or nan.

    >>> parsed("-1.5"), parsed("0x1.8p-3"), parsed("-inf")
    (-1.5, 0.1875, -inf)
    """
    if text.startswith("--"):
        raise UsageError(f"No such option: {text}")
    try:
        x = float.fromhex(text) if "0x" in text.lower() else float(text)
    except OverflowError:
        x = math.inf
    except ValueError:
        raise UsageError(f"cannot read {text!r}, expected a number such as 0.1") from None
    if math.isinf(x) and "inf" not in text.lower():
        raise UsageError(f"{text} overflows float32, expected at most 3.4028235e+38")
    return x


def show_picture(text: str, p: floats.Parts) -> None:
    """One number in one format: the fields above what they mean, then the value and the error."""
    columns = list(zip(FIELDS, p.bits, _meanings(p), strict=True))
    widths = [max(map(len, column)) for column in columns]
    console = Console()

    def line(words: str) -> None:
        console.print(Text(words), soft_wrap=True)

    line(f"{escaped(text)} in {p.format}: {_hex(p)} = 0b{''.join(p.bits)}\n")
    for row in range(3):
        picture = Text(" ")
        for column, size, digit, style in zip(columns, widths, p.bits, STYLES, strict=True):
            if digit:  # int8 has no exponent
                picture.append("  ").append(column[row].center(size), style)
        picture.rstrip()
        console.print(picture, soft_wrap=True)
    line(f"\nstored      {_decimal(p.exact)}, {KINDS[p.kind]}")
    line(f"error       {_error(p, 7)}, relative {p.relative_error:.7g}")
    line(f"neighbours  {_neighbour(p.lower)} and {_neighbour(p.higher)}, ulp {p.ulp!r}")


def _meanings(p: floats.Parts) -> tuple[str, str, str]:
    """What the fields say, in the order of `FIELDS`."""
    sign = "-" if p.sign else "+"
    if p.format == floats.INT8:
        return "-128" if p.sign else "0", "", f"+ {p.mantissa_field}"
    if p.kind in ("infinity", "nan"):
        return sign, "", p.kind
    leading = int(p.kind == "normal")
    # Zero and subnormals have the exponent of the smallest normal number, whose field is 1.
    field = p.exponent_field or 1
    exponent = f"2^({field} - {field - p.exponent}) = 2^{p.exponent}"
    return sign, exponent, f"{leading} + {p.mantissa_field}/{1 << len(p.bits[2])}"


def show_lines(entries: list[Entry]) -> None:
    """One number in several formats, a line each."""
    fields = Text(" ").join(Text(*pair) for pair in zip(FIELDS, STYLES, strict=True))
    columns = (
        ("format", LEFT),
        ("code", LEFT),
        ("stored", LEFT),
        ("error", LEFT),
        ("kind", LEFT),
        (fields, LEFT),
    )
    print(escaped(entries[0][0]))
    show_table(columns, map(_line, entries), whole=True)


def _line(entry: Entry) -> tuple[str | Text, ...]:
    _, name, p = entry
    if isinstance(p, str):
        return name, "-", p, "-", "-", "-"
    pairs = [pair for pair in zip(p.bits, STYLES, strict=True) if pair[0]]
    fields = Text(" ").join(Text(*pair) for pair in pairs)
    return name, _hex(p), f"{p.value:.9g}", _error(p, 3), p.kind, fields


def show_formats(json: bool) -> None:
    """`qrs bits --table`."""
    rows = floats.table()
    if json:
        show_json({"formats": [asdict(row) for row in rows]})
        return
    # Two tables, since one would be wider than many terminals.
    fields = _columns("bits", "sign", "exponent", "mantissa", "bias", "infinities", "NaN")
    show_table(fields, map(_fields_row, rows), whole=True)
    values = _columns("largest", "smallest normal", "smallest subnormal", "epsilon")
    show_table(values, map(_values_row, rows), whole=True)


def _columns(*titles: str) -> list[tuple[str, str]]:
    return [("format", LEFT), *((title, RIGHT) for title in titles)]


def _fields_row(f: floats.Format) -> tuple[str, ...]:
    bias = "-" if f.bias is None else str(f.bias)
    widths = (f.bits, f.sign_bits, f.exponent_bits, f.mantissa_bits)
    flags = ("yes" if flag else "no" for flag in (f.infinities, f.nan))
    return f.name, *map(str, widths), bias, *flags


def _values_row(f: floats.Format) -> tuple[str, ...]:
    values = (f.largest, f.smallest_normal, f.smallest_subnormal, f.epsilon)
    return f.name, *("-" if value is None else f"{value:.9g}" for value in values)


def _document(entry: Entry) -> dict[str, Any]:
    """For JSON, which has no infinities, no NaN, and no exact decimals: those are strings."""
    text, name, p = entry
    if isinstance(p, str):
        return {"text": text, "format": name, "refused": p}
    more = {"hex": _hex(p), "bits": p.bits, "subnormal": p.subnormal}
    parts = {**asdict(p), "exact": _decimal(p.exact), "error": float(p.error)}
    values = {"text": text, **parts, "exact_error": _decimal(p.error), **more}
    return {key: _jsonable(value) for key, value in values.items()}


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _hex(p: floats.Parts) -> str:
    return f"0x{p.code:0{-(-sum(map(len, p.bits)) // 4)}x}"


def _error(p: floats.Parts, digits: int) -> str:
    if not p.error or p.error.is_nan():
        return _decimal(p.error)
    return f"{float(p.error):+.{digits}g}"


def _decimal(number: Decimal) -> str:
    """All digits of it; "nan" and "inf" as Python spells them."""
    return str(number).lower() if number.is_finite() else str(float(number))


def _neighbour(number: float | None) -> str:
    return "none" if number is None else repr(number)
