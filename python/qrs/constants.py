"""Tables that more than one module needs. One copy of each."""

from __future__ import annotations

from typing import Final

import ml_dtypes
import numpy as np

DTYPES: Final[dict[str, np.dtype]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
"""Float dtypes of tensors, by name. Kernels take the first three; float64 narrows to float32."""

DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
"""The inverse: `dtype.name` is computed anew at each call, which costs microseconds."""

SCALE_DTYPES: Final = {"float32": "", "float16": "f16", "bfloat16": "bf16"}
"""How scales may be stored -> the suffix in a scheme's string."""
