"""Small checkpoints of every layout and dtype, made with the writer of qrs."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import qrs

Tensors = dict[str, np.ndarray[Any, Any]]
INDEX = "model.safetensors.index.json"


def normal(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normal values of a dtype."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)


def small_model() -> Tensors:
    """A model of every kind of tensor: weights, convolutions, embeddings, norms, and odd dtypes."""
    return {
        "embed_tokens.weight": normal((100, 64)),
        "layer.0.attention.weight": normal((64, 64), seed=1),
        "layer.0.attention.bias": normal((64,), seed=2),
        "layer.0.mlp.weight": normal((48, 100), ml_dtypes.bfloat16, seed=3),
        "layer.0.half.weight": normal((32, 128), np.float16, seed=4),
        "layer.0.double.weight": normal((32, 64), np.float64, seed=5),
        "layer.0.conv.weight": normal((16, 32, 3, 3), seed=6),
        "layer.0.norm.weight": normal((1, 1, 64), seed=7),
        "layer.0.fp8.weight": normal((8, 8), ml_dtypes.float8_e4m3fn, seed=8),
        "layer.0.e5m2.weight": normal((8, 8), ml_dtypes.float8_e5m2, seed=9),
        "counts": np.arange(64, dtype=np.int64).reshape(8, 8),
        "bytes": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "mask": np.eye(4, dtype=np.bool_),
        "step": np.array(7, np.int32),
        "nothing": np.zeros((0, 4), np.float32),
    }


def save_model(folder: Path, tensors: Tensors | None = None, **metadata: str) -> Path:
    """A model folder: model.safetensors with config, tokenizer, and a subfolder."""
    folder.mkdir()
    save_companions(folder)
    qrs.save(
        folder / "model.safetensors",
        dict(small_model() if tensors is None else tensors),
        {"format": "pt", **metadata},
    )
    return folder


def save_sharded(folder: Path, tensors: Tensors | None = None, count: int = 3) -> Path:
    """The same as several files with an index."""
    tensors = small_model() if tensors is None else tensors
    folder.mkdir()
    save_companions(folder)
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        shard = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        weight_map.update(dict.fromkeys(mine, shard))
        qrs.save(folder / shard, {name: tensors[name] for name in mine}, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total, "author": "me"}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def save_companions(folder: Path) -> None:
    """What lies beside the weights."""
    (folder / "config.json").write_text('{"hidden_size": 64}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"mean": true}')


def assert_same(got: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """The same names; arrays of the same dtypes, shapes and bytes; equal QTensors."""
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        if isinstance(tensor, qrs.QTensor):
            assert tensor == expected[name], name
            continue
        assert (tensor.dtype, tensor.shape) == (expected[name].dtype, expected[name].shape), name
        assert tensor.tobytes() == expected[name].tobytes(), name


def digests(place: Path) -> dict[str, str]:
    """sha256 of every file of a folder (or of a file), by its path."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def learned_tensors(shape: tuple[int, ...] = (20, 64)) -> dict[str, qrs.QTensor]:
    """A QTensor of each kind that has learned tables, made of parts: nothing is learned here."""
    random = np.random.default_rng(11)
    tensors = {}
    columns = ["kmeans4-axis1-f32"] if len(shape) > 1 else []
    for text in ("kmeans3", "kmeans2-axis0", "kmeans2-g16", "learned4-g32-s6", *columns):
        scheme = qrs.parse(text)
        assert isinstance(scheme, qrs.schemes.Codebook)
        codes = random.integers(0, scheme.levels, shape)
        book = np.sort(random.standard_normal(scheme.book_shape(shape), dtype=np.float32))
        scale = None
        if scheme.inner is not None:
            groups = scheme.nested(shape)["scale"][1]
            scales = random.uniform(0.5, 2, groups) * random.choice([-1, 1], groups)
            scale = qrs.quantize(scales.astype(np.float32), scheme.inner)
        tensors[text] = qrs.QTensor.from_parts(scheme, shape, codes, scale, codebook=book)
    tensors["kmeans3-sparse0.05"] = with_outliers(tensors["kmeans3"], 0.05)
    return tensors


def with_outliers(qt: qrs.QTensor, fraction: float) -> qrs.QTensor:
    """A k-means tensor whose rows have as many values apart, in their last columns."""
    scheme = qrs.KMeans(qt.scheme.bits, outlier_fraction=fraction)
    rows, cols = math.prod(qt.shape[:-1]), qt.shape[-1]
    count = round(fraction * cols)
    leaves = dict(qt.leaves()) | {
        "sparse_values": normal((rows * count,), np.float16, seed=12),
        "sparse_indices": np.tile(np.arange(cols - count, cols, dtype=np.int32), rows),
        "sparse_indptr": np.arange(rows + 1, dtype=np.int64) * count,
    }
    return qrs.QTensor.from_leaves(scheme, qt.shape, "float32", leaves)
