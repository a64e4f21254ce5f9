"""The CUDA kernels: the numeric contract in `.cuh` files, and one `.cu` file for each family.

Nothing is included by the files: what NVRTC compiles is the text of the `.cuh` files followed by
that of one family, put together here.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["FAMILIES", "source"]

_FOLDER = files(__name__)
_HEADERS = ("common.cuh", "numeric.cuh", "codebooks.cuh", "sums.cuh")

FAMILIES = tuple(
    sorted(f.name.removesuffix(".cu") for f in _FOLDER.iterdir() if f.name.endswith(".cu"))
)
"""Names of the families, which are the names of their files."""


def source(family: str) -> str:
    """The whole source of a family, with #line directives, so that messages name the file."""
    parts = ((name, _FOLDER / name) for name in (*_HEADERS, f"{family}.cu"))
    return "\n".join(f'#line 1 "{name}"\n{file.read_text("utf-8")}' for name, file in parts)
