"""Codes of 2 to 8 bits to bytes and back."""

from __future__ import annotations

import numpy as np

from .arrays import Bytes, Codes, into


class PackingOperations:
    """Packed rows of codes."""

    def pack_bits(self, codes: Codes, bits: int, out: Bytes | None = None) -> Bytes:
        """Codes (rows, cols) to bytes (rows, ceil(cols * bits / 8)). Class A.

        Least significant bits first; every row starts on a byte and ends with zero bits. Signed
        codes are two's complement cut to `bits`. 4 bits, codes a b c -> bytes [b<<4 | a, c]:

        >>> from qrs.backends.reference import Reference
        >>> Reference().pack_bits(np.array([[1, -1, 7]], np.int8), 4).tolist()
        [[241, 7]]
        """
        rows, cols = codes.shape
        planes = np.unpackbits(codes.view(np.uint8)[..., None], axis=2, bitorder="little")
        stream = planes[..., :bits].reshape(rows, cols * bits)
        return into(out, np.packbits(stream, axis=1, bitorder="little"))

    def unpack_bits(
        self, packed: Bytes, bits: int, cols: int, signed: bool, out: Codes | None = None
    ) -> Codes:
        """The inverse of `pack_bits`: int8 codes if `signed`, else uint8. Class A."""
        rows = packed.shape[0]
        stream = np.unpackbits(packed, axis=1, count=cols * bits, bitorder="little")
        planes = stream.reshape(rows, cols, bits)
        codes = np.packbits(planes, axis=2, bitorder="little").reshape(rows, cols)
        if not signed:
            return into(out, codes)
        sign = np.uint8(1 << (bits - 1))
        return into(out, ((codes ^ sign) - sign).view(np.int8))
