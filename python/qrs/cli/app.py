"""How the command line behaves whatever the command: errors, exit codes, broken pipes.

Exit codes: 0 done; 1 an error of qrs or of the system, as one line `error: ...` on stderr; 2 a
wrong command line, also one line, and nothing is written; 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP; 141
nobody reads on. After these signals (128 + the number of the signal) nothing is left behind either.
Standard output holds results only, and with `--json` nothing but one JSON document. A stream that
is closed from the start (`>&-`) counts as /dev/null.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import ArgTypeError, ArgValueError, QrsError
from .escape import escaped
from .signals import exit_code

# typer brings its own click, or needs click, depending on its version; both are reached through it.
UsageError: Any = typer.BadParameter.__base__

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
"""The option that all commands with results have."""


@contextmanager
def usage() -> Iterator[None]:
    """Turn a bad value into a usage error, where the command line or the environment has it."""
    try:
        yield
    except (ArgValueError, ArgTypeError) as error:
        if is_of_environment(error):
            raise
        raise UsageError(str(error)) from error


def is_of_environment(error: QrsError) -> bool:
    """Whether a variable such as QRS_SIMD is at fault."""
    return (error.arg or "").startswith("QRS_")


class Command(TyperCommand):
    """A command that refuses an option given twice, where only one value counts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in click, after a look at the options as they were typed."""
        if "--help" not in args:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for param, count in Counter(given).items():
                if count > 1 and not param.multiple and param.param_type_name == "option":
                    raise UsageError(f"{param.opts[-1]} is given {count} times", ctx=ctx)
        return list(super().parse_args(ctx, args))


class Group(TyperGroup):
    """The `qrs` command itself."""

    def main(  # type: ignore[override]
        self, args: Any = None, *, standalone_mode: bool = True, **kwargs: Any
    ) -> Any:
        """Run, print errors as one line, and exit with the code that the module names."""
        open_streams()
        try:
            code = super().main(args, standalone_mode=False, **kwargs)
            sys.stdout.flush()
        except UsageError as error:
            complain(error.format_message(), error.ctx)
            code = 2
        except (QrsError, MemoryError) as error:
            complain(str(error) or "out of memory")
            code = 1
        except (KeyboardInterrupt, typer.Abort) as error:
            code = exit_code(error)
        except OSError as error:  # those of files are QrsErrors: this one is of a stream
            code = broken(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the command line; a signal may come meanwhile."""
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise typer.Exit(exit_code(error)) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and see to what click would answer in its own way."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError as error:
            raise typer.Exit(broken(error)) from None
        return result


def open_streams() -> None:
    """Let both streams take any text; one that is closed takes it and drops it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def broken(error: OSError) -> int:
    """The exit code where results cannot be printed."""
    # What is still buffered must not raise again when Python exits.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return 141
    complain(f"cannot print: {error.strerror or error}")
    return 1


def complain(message: str, ctx: Any = None) -> None:
    """Print an error as one line on stderr, and which help would help."""
    hint = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    if message:  # there is none where the help was printed instead
        with suppress(OSError):  # the exit code says it where stderr cannot be written
            print(f"error: {escaped(message)}{hint}", file=sys.stderr)
