"""The place of the CUDA backend: CuPy arrays, raw kernels. This version has no kernels yet.

Nothing here imports cupy.
"""

from __future__ import annotations


def missing() -> tuple[str, str]:
    """Why the backend is not available, and what would fix it."""
    return (
        "this version of qrs has no CUDA kernels",
        "pass numpy arrays (`x.get()` copies a CuPy array to the host)",
    )
