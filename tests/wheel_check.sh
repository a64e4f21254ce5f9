#!/usr/bin/env bash
# wheel_check.sh WHEEL PYTHON: the wheel installs by itself in a clean environment and works there.
set -euo pipefail
wheel=$(realpath "$1") python=$2
home=$PWD/build/wheel-check

[[ $(basename "$wheel") == *-cp310-abi3-* ]] || { echo "not an abi3 wheel: $wheel" >&2; exit 1; }

"$python" -m venv --clear "$home"
"$home/bin/python" -m pip install --quiet "$wheel"
"$home/bin/python" -m pip check

# From another folder and isolated, so that nothing but the installed package can answer.
cd /
"$home/bin/python" -I - <<'PY'
import numpy as np

import qrs

x = np.array([[1.6, -0.7, -3.4, 1.7, -2.9, 0.5, 2.3, 6.2]], dtype=np.float32)
assert qrs.quantize(x, "int8").codes.tolist() == [[33, -14, -70, 35, -59, 10, 47, 127]]
assert "rust" in qrs.available_backends()
PY
"$home/bin/qrs" doctor

"$home/bin/python" -m pip install --quiet auditwheel
"$home/bin/python" -m auditwheel show "$wheel" | sed -n '/platform tag/,$p' | sed '/^$/d'
echo "wheel: $(basename "$wheel") imports and runs with its dependencies alone"
