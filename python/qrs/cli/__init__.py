"""The command line: `qrs quantize | inspect | dequantize | doctor`, also as `python -m qrs`.

Only this package imports typer and rich. How errors become exit codes: `qrs.cli.app`.
"""

from .commands import app

__all__ = ["app", "main"]


def main() -> None:
    """The entry point of the `qrs` command."""
    app(prog_name="qrs")
