"""Clusters of numbers and of points."""

from .lloyd import kmeans
from .result import KMeansResult

__all__ = ["KMeansResult", "kmeans"]
