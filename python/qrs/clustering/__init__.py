"""Clusters of numbers: what quantization with a codebook is made of.

`exact.py` finds the optimum in one dimension. Nothing here knows schemes or QTensors.
"""

from .exact import kmeans_1d
from .result import KMeansResult

__all__ = ["KMeansResult", "kmeans_1d"]
