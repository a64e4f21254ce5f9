"""Clusters of numbers and of points: what quantization with a codebook is made of.

`exact.py` finds the optimum in one dimension, `lloyd.py` a good one in any. Nothing here knows
schemes or QTensors.
"""

from .exact import kmeans_1d
from .lloyd import kmeans
from .result import KMeansResult

__all__ = ["KMeansResult", "kmeans", "kmeans_1d"]
