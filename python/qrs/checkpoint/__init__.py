"""Whole models: plan, quantize, dequantize and inspect checkpoints, one tensor at a time.

>>> import os, tempfile, numpy as np, qrs
>>> from qrs import checkpoint
>>> folder = tempfile.mkdtemp()
>>> model, small = (os.path.join(folder, f"{name}.safetensors") for name in ("model", "int8"))
>>> w = np.random.default_rng(0).standard_normal((64, 256), dtype=np.float32)
>>> qrs.save(model, {"layer.weight": w, "layer.bias": np.zeros(64, np.float32)})
>>> report = checkpoint.quantize_checkpoint(model, small, "int8-axis0")
>>> report.plan.bits_per_weight, report.errors.sqnr_db > 40
(8.125, True)
>>> np.array_equal(qrs.load(small)["layer.weight"].dequantize(), w)
False
"""

from . import budget
from .budget import Budget, Choice, plan_bits
from .contents import Contents, Stored, inspect_checkpoint
from .decode import dequantize_checkpoint
from .distribution import Histogram, Spread, Statistics
from .known import KnownStatistics
from .look import CodebookUse, Look, look_at, look_into
from .output import Output, output_path
from .plan import Plan, TensorPlan, make_plan
from .recipe import Recipe, Rule
from .report import ErrorSums, Report, TensorReport
from .selection import Selection
from .source import Checkpoint, open_checkpoint
from .stream import (
    Progress,
    plan_checkpoint,
    plan_of,
    quantize_checkpoint,
    run_plan,
)
from .subject import subject_of

__all__ = [
    "Budget",
    "Checkpoint",
    "Choice",
    "CodebookUse",
    "Contents",
    "ErrorSums",
    "Histogram",
    "KnownStatistics",
    "Look",
    "Output",
    "Plan",
    "Progress",
    "Recipe",
    "Report",
    "Rule",
    "Selection",
    "Spread",
    "Statistics",
    "Stored",
    "TensorPlan",
    "TensorReport",
    "budget",
    "dequantize_checkpoint",
    "inspect_checkpoint",
    "look_at",
    "look_into",
    "make_plan",
    "open_checkpoint",
    "output_path",
    "plan_bits",
    "plan_checkpoint",
    "plan_of",
    "quantize_checkpoint",
    "run_plan",
    "subject_of",
]
