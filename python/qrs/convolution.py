"""The shape of a convolution: where its windows lie. No arithmetic on values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Convolution:
    """Windows of `kernel` over images of `size`, both (height, width).

    >>> Convolution(3, size=(5, 7), kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1)).out_size
    (3, 4)
    """

    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right."""
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def out_size(self) -> tuple[int, int]:
        """Positions of the window: (height, width)."""
        top, left, bottom, right = self.padding
        padded = self.size[0] + top + bottom, self.size[1] + left + right
        rows, cols = (
            max(0, (whole - (k - 1) * d - 1) // s + 1)
            for whole, k, s, d in zip(padded, self.kernel, self.stride, self.dilation, strict=True)
        )
        return rows, cols
