"""`qrs bits`: what it prints, its JSON, and what it refuses."""

import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from processes import on_a_terminal
from qrs import floats
from qrs.cli.commands import app

COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["bits", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(*arguments: str) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)["numbers"]


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_one_format_is_a_picture() -> None:
    expected = """\
0.1 in bf16: 0x3dcd = 0b0011110111001101

   sign        exponent         mantissa
    0          01111011         1001101
    +    2^(123 - 127) = 2^-4  1 + 77/128

stored      0.10009765625, a normal number
error       +9.765625e-05, relative 0.0009765625
neighbours  0.099609375 and 0.1005859375, ulp 0.00048828125
"""
    assert run("0.1", "--format", "bf16").stdout == expected


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        # Zero has the exponent of subnormals and no leading 1; 0.005 is 2.56 * 2^-9.
        (["-0.0", "--format", "e4m3"], ["-0.0 in e4m3: 0x80 = 0b10000000",
                                        "- 2^(1 - 7) = 2^-6 0 + 0/8", "stored -0, zero"]),
        (["0.005", "--format", "e4m3"], ["0 0000 011", "+ 2^(1 - 7) = 2^-6 0 + 3/8",
                                         "stored 0.005859375, a subnormal number"]),
        (["0x1.8p-3", "--format", "f16"], ["stored 0.1875, a normal number",
                                           "error 0, relative 0"]),
        (["-inf", "--format", "bf16"], ["1 11111111 0000000", "- infinity", "stored -inf, infinity",
                                        "neighbours none and -3.3895313892515355e+38, ulp nan"]),
        (["nan", "--format", "e4m3"], ["nan in e4m3: 0x7f = 0b01111111", "+ nan",
                                       "stored nan, not a number", "error nan, relative nan"]),
        (["-3.25", "--format", "int8"], ["sign mantissa", "1 1111101", "-128 + 125",
                                         "stored -3, a normal number"]),
        (["--code", "0x7e", "--format", "e4m3"], ["0x7e in e4m3: 0x7e = 0b01111110",
                                                  "stored 448, a normal number",
                                                  "neighbours 416.0 and none, ulp 32.0"]),
        (["--code", "0b1111", "--format", "e2m1"], ["0b1111 in e2m1: 0xf = 0b1111",
                                                    "stored -6, a normal number"]),
    ],
)  # fmt: skip
def test_pictures(arguments: list[str], lines: list[str]) -> None:
    printed = [" ".join(line) for line in words(run(*arguments).stdout)]
    assert [line for line in lines if line not in printed] == []


def test_all_formats_are_a_line_each() -> None:
    printed = words(run("0.1").stdout)
    assert printed[0] == ["0.1"]
    rows = {line[0]: line[1:] for line in printed if line and line[0] in floats.NAMES}
    assert tuple(rows) == floats.NAMES
    assert rows["bf16"] == [
        "0x3dcd",
        "0.100097656",
        "+9.77e-05",
        "normal",
        "0",
        "01111011",
        "1001101",
    ]
    assert rows["e2m1"] == ["0x0", "0", "-0.1", "zero", "0", "00", "0"]
    assert rows["int8"] == ["0x00", "0", "-0.1", "zero", "0", "0000000"]
    rows = {line[0]: line[1:] for line in words(run("nan").stdout) if line}
    assert rows["e2m1"] == ["-", "cannot", "hold", "nan", "-", "-", "-"]
    assert rows["e5m2"][:4] == ["0x7e", "nan", "nan", "nan"]


def test_some_formats_and_several_numbers() -> None:
    out = run("1", "-2.5", "--format", "fp16", "--format", "e4m3", "--format", "f16").stdout
    firsts = [line[0] for line in words(out) if line and line[0] != "format"]
    assert [first for first in firsts if "─" not in first] == [
        "1",
        "f16",
        "e4m3",
        "-2.5",
        "f16",
        "e4m3",
    ]
    out = run("1", "2", "--format", "f16", "--code", "0x3c01").stdout
    assert re.findall(r"^(\S+) in f16", out, re.MULTILINE) == ["1", "2", "0x3c01"]


@pytest.mark.parametrize("number", ["-1.5", "-1e-3", "-inf", "-nan", "-0x1.8p0", "-.5", "-0"])
def test_negative_numbers_need_no_dashes(number: str) -> None:
    with_dashes = run("--format", "bf16", "--", number).stdout
    assert run(number, "--format", "bf16").stdout == with_dashes
    assert run("--format", "bf16", number).stdout == with_dashes
    assert with_dashes.startswith(f"{number} in bf16: 0x")


def test_json_says_all_that_decompose_does() -> None:
    (got,) = document("-0.1", "--format", "bf16")
    p = floats.decompose(-0.1, "bf16")
    for key in (
        "input", "format", "code", "sign", "exponent_field", "mantissa_field", "exponent", "kind",
        "value", "relative_error", "ulp", "lower", "higher", "subnormal",
    ):  # fmt: skip
        assert got[key] == getattr(p, key), key
    assert (got["text"], got["hex"], tuple(got["bits"])) == ("-0.1", "0xbdcd", p.bits)
    assert (got["exact"], got["exact_error"]) == ("-0.10009765625", str(p.error).lower())
    assert got["error"] == float(p.error)


def test_json_of_what_json_lacks() -> None:
    rows = {row["format"]: row for row in document("inf")}
    assert tuple(rows) == floats.NAMES
    assert (rows["f16"]["value"], rows["f16"]["exact"], rows["f16"]["ulp"]) == ("inf", "inf", "nan")
    assert rows["f16"]["higher"] is None
    assert (rows["e4m3"]["value"], rows["e4m3"]["error"], rows["e4m3"]["exact_error"]) == (
        448.0, "-inf", "-inf",
    )  # fmt: skip
    rows = {row["format"]: row for row in document("nan")}
    assert rows["bf16"]["value"] == "nan"
    assert rows["e2m1"] == {"text": "nan", "format": "e2m1", "refused": "cannot hold nan"}


def test_the_table() -> None:
    printed = [" ".join(line) for line in words(run("--table").stdout)]
    assert "format bits sign exponent mantissa bias infinities NaN" in printed
    assert "format largest smallest normal smallest subnormal epsilon" in printed
    assert "e4m3 8 1 4 3 7 no yes" in printed and "e4m3 448 0.015625 0.001953125 0.125" in printed
    assert "int8 8 1 0 7 - no no" in printed and "int8 127 1 - 1" in printed
    assert "f16 65504 6.10351562e-05 5.96046448e-08 0.0009765625" in printed
    rows = json.loads(run("--table", "--json").stdout)["formats"]
    assert [floats.Format(**row) for row in rows] == floats.table()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a NUMBER is missing"),
        (["abc"], "cannot read 'abc', expected a number"),
        (["0x"], "cannot read '0x'"),
        ([""], "cannot read ''"),
        (["1", "--frobnicate"], "No such option: --frobnicate"),
        (["-x"], "cannot read '-x'"),
        (["1e39"], "1e+39 overflows float32"),
        (["1e400"], "1e400 overflows float32"),
        (["-0x1p9999"], "-0x1p9999 overflows float32"),
        (["1", "--format", "e9m9"], "format: got 'e9m9', expected one of: f32, f16, bf16"),
        (["1", "--format"], "requires an argument"),
        (["nan", "--format", "f16", "--format", "e2m1"], "e2m1 cannot hold, first nan"),
        (["nan", "--format", "int8"], "int8 cannot hold, first nan"),
        (["--code", "7"], "--code needs --format"),
        (["--code", "1.5", "--format", "f16"], "cannot read '1.5', expected bits such as 0x7e"),
        (["--code", "256", "--format", "e4m3"], "got 256, expected 0 to 255 for e4m3"),
        (["--code", f"{10**30}", "--format", "e4m3"], "expected 0 to 255 for e4m3"),
        (["--code", "-1", "--format", "e4m3"], "got -1, expected 0 to 255 for e4m3"),
        (["--table", "1"], "--table takes no numbers"),
        (["--table", "--format", "f16"], "--table takes no numbers"),
        (["1", "--json", "--json"], "--json is given 2 times"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_wrong_command_lines(arguments: list[str], more: list[str], message: str) -> None:
    if more and arguments[-1:] in (["--format"], ["--json"]):
        more = []
    result = run(*more, *arguments, code=2)
    assert result.stdout == "" and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and message in result.stderr


def test_colors_are_for_terminals_that_want_them() -> None:
    assert "\x1b" not in run("0.1").stdout + run("0.1", "--format", "f16").stdout
    for arguments in (["0.1"], ["0.1", "--format", "bf16"]):
        out = on_a_terminal(["bits", *arguments], {})
        fields = {"0": "35", "01111011": "32", "1001101": "36"}
        for field, style in fields.items():
            assert re.search(rf"\x1b\[{style}m *{field} *\x1b\[0m", out), (field, out)
        assert not COLOR.search(on_a_terminal(["bits", *arguments], {"NO_COLOR": "1"}))


@pytest.mark.parametrize("columns", [40, 60, 79, 80])
@pytest.mark.parametrize("arguments", [["--table"], ["-1e-40"], ["0.1"]], ids=str)
def test_no_digit_is_cut_on_a_narrow_terminal(arguments: list[str], columns: int) -> None:
    """The lines are as long as they have to be, and the terminal wraps them."""
    out = on_a_terminal(["bits", *arguments], {"COLUMNS": str(columns), "NO_COLOR": "1"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    if columns == 80 and arguments == ["--table"]:
        assert max(map(len, plain.splitlines())) <= 80
    assert words(plain) == words(run(*arguments).stdout)
