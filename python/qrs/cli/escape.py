"""Text from files, made fit to print."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""The text as one printable line: tensor and file names may hold anything.

    >>> print(escaped("a\nb\x1b[31m é"))
    a\nb\x1b[31m é
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )
