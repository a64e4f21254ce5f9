"""The command line: `qrs quantize | inspect | dequantize | bits | doctor`, also as `python -m qrs`.

Only this package imports typer and rich. How errors become exit codes: `qrs.cli.app`.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """The entry point of the `qrs` command."""
    try:
        from .commands import app  # takes a moment, in which Ctrl-C may come as well

        app(prog_name="qrs")
    except KeyboardInterrupt:
        sys.exit(130)
