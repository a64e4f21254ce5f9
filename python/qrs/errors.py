"""Every exception qrs raises on purpose.

Each class is a `QrsError` and the natural builtin as well, so `except ValueError` and
`except qrs.QrsError` both work. The message says which argument, which value, and what was
expected; the same three are attributes. Nothing here formats arrays or touches files.
"""

from __future__ import annotations

import copyreg
import os
import pickle
from typing import Any

__all__ = [
    "ArgTypeError",
    "ArgValueError",
    "DeviceError",
    "FormatError",
    "InternalError",
    "QrsError",
    "QrsMemoryError",
    "ResumeError",
    "StorageError",
]


class QrsError(Exception):
    """Base of all errors of this package.

    Attributes: `arg` (name of the argument), `value` (what was given), `expected` (what is
    accepted). They are None where they do not apply.

    >>> error = ArgValueError("bits: got 9, expected 2..8", arg="bits", value=9, expected="2..8")
    >>> isinstance(error, QrsError), isinstance(error, ValueError), error.arg
    (True, True, 'bits')
    """

    def __init__(
        self, message: str = "", *, arg: str | None = None, value: Any = None, expected: Any = None
    ) -> None:
        super().__init__(message)
        self.arg = arg
        self.value = value
        self.expected = expected

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword-only arguments do not pickle by default, nor do lambdas at all.
        try:
            pickle.dumps(self.value)
        except Exception:
            self.value = repr(self.value)
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ArgTypeError(QrsError, TypeError):
    """An argument has a type or dtype that is not accepted."""


class ArgValueError(QrsError, ValueError):
    """An argument has the right type and a value that is not accepted."""


class DeviceError(QrsError, RuntimeError):
    """A device or backend is missing, or arrays live on different devices."""


class ResumeError(QrsError, RuntimeError):
    """A job cannot be continued from what is on disk."""


class InternalError(QrsError, RuntimeError):
    """A bug in qrs: please report it."""


class QrsMemoryError(QrsError, MemoryError):
    """Memory could not be allocated; `value` is the number of bytes asked for."""


def bad(
    arg: str, found: str, value: Any, expected: Any, kind: type[QrsError] = ArgValueError
) -> QrsError:
    """The error of an argument, with its message and attributes from the same words.

    >>> str(bad("bits", "got 9", 9, "2..8"))
    'bits: got 9, expected 2..8'
    """
    return kind(f"{arg}: {found}, expected {expected}", arg=arg, value=value, expected=expected)


class FormatError(QrsError, ValueError):
    """A file does not follow its format.

    Attributes: `path`, `offset` (in bytes), `tensor`, `field`, each None where unknown.
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str | os.PathLike[str] | None = None,
        offset: int | None = None,
        tensor: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.path = None if path is None else os.fspath(path)
        self.offset = offset
        self.tensor = tensor
        self.field = field


class StorageError(QrsError, OSError):
    """The operating system refused; keeps `errno` and `filename`.

    >>> str(StorageError(28, "No space left on device", "out.safetensors"))
    "[Errno 28] No space left on device: 'out.safetensors'"
    """

    def __init__(
        self, errno: int = 0, message: str = "", filename: str | os.PathLike[str] | None = None
    ) -> None:
        OSError.__init__(self, errno, message)
        if filename is not None:
            self.filename = os.fspath(filename)
        self.arg = self.value = self.expected = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errno, self.strerror, self.filename)


class KernelFault(Exception):
    """What a kernel found wrong in the numbers; `qrs.api` turns it into an error for the user.

    `reason` is "nonfinite", "scale_overflow" or "decode_overflow"; `group` is the flat index of
    the first such group (0 for "nonfinite"). Kernels know neither axes nor argument names, so
    they report no more than this.
    """

    def __init__(self, reason: str, group: int) -> None:
        super().__init__(reason, group)
        self.reason = reason
        self.group = group
