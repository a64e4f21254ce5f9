"""The command line, `qrs`, also as `python -m qrs`: quantize, inspect, dequantize, calibrate, ...

Only this package imports typer and rich. How errors become exit codes: `qrs.cli.app`.
"""

import sys

from .signals import exit_code, ignore_signals, stop_on_signals

__all__ = ["main"]


def main() -> None:
    """The entry point of the `qrs` command."""
    try:
        stop_on_signals()
        from .commands import app  # takes a moment, in which Ctrl-C may come as well

        app(prog_name="qrs")
    except KeyboardInterrupt as error:
        sys.exit(exit_code(error))
    finally:
        ignore_signals()
