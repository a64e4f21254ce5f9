"""GPTQ beside torch and onnxruntime, in one run on the same arrays.

`python benches/gptq_peers.py [--sizes 1024 4096] [--threads 2]` needs torch; onnxruntime's GPTQ
joins where it and onnx_ir are installed. Each takes turns with the others; medians of seconds, and
what share each leaves of the error tr(E H E^T) that rounding to nearest makes.

torch has no GPTQ of its own: what runs here is the published loop (Frantar et al., 2023, algorithm
1, blocks of 128 columns, all in float32), written for this comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import qrs

GROUP, BLOCK, DAMPING = 128, 128, 0.01
Result = np.ndarray


def problem(k: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight (k, k), and the moments of inputs that go together."""
    rng = np.random.default_rng(k)
    common = rng.standard_normal((2 * k, k // 8)) @ rng.standard_normal((k // 8, k))
    x = rng.standard_normal((2 * k, k)) + common / np.sqrt(k // 8)
    x *= np.exp(rng.standard_normal(k) / 2)
    return rng.standard_normal((k, k)).astype(np.float32), x.T @ x / len(x)


def ours(w: np.ndarray, h: np.ndarray) -> Result:
    return qrs.gptq(w, h, "int4-g128-asym-f16", act_order=False).dequantize()


def polished(w: np.ndarray, h: np.ndarray) -> Result:
    return qrs.gptq(w, h, "int4-g128-asym-f16", polish=1).dequantize()


def published(w: np.ndarray, h: np.ndarray) -> Result:
    """The loop of the paper in torch."""
    w, h = torch.tensor(w), torch.tensor(h, dtype=torch.float32)
    h += DAMPING * h.diagonal().mean() * torch.eye(len(h))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper = torch.linalg.cholesky(inverse, upper=True)
    w_hat = torch.empty_like(w)
    for first in range(0, w.shape[1], BLOCK):
        columns = slice(first, first + BLOCK)
        block, own = w[:, columns].clone(), upper[columns, columns]
        errors = torch.empty_like(block)
        for j in range(block.shape[1]):
            if (first + j) % GROUP == 0:
                part = block[:, j : j + GROUP]
                low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
                scale = ((high - low) / 15).half().float()
                zero = torch.round(-low / scale)
            code = torch.clamp(torch.round(block[:, j] / scale) + zero, 0, 15)
            w_hat[:, first + j] = (code - zero) * scale
            errors[:, j] = (block[:, j] - w_hat[:, first + j]) / own[j, j]
            block[:, j:] -= errors[:, j, None] * own[j, j:]
        w[:, columns.stop :] -= errors @ upper[columns, columns.stop :]
    return w_hat.numpy()


def of_onnxruntime() -> Callable[[np.ndarray, np.ndarray], Result] | None:
    """Its GPTQ, which takes the weight (in, out)."""
    try:
        from onnxruntime.quantization.neural_compressor.weight_only import gptq
    except ImportError:
        return None

    def run(w: np.ndarray, h: np.ndarray) -> Result:
        return gptq(
            w.T.copy(), h.astype(np.float32), num_bits=4, group_size=GROUP, scheme="asym",
            blocksize=BLOCK, percdamp=DAMPING,
        ).T  # fmt: skip

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    qrs.set_num_threads(options.threads)
    runs = {"qrs": ours, "qrs, ordered and polished": polished, "torch, published": published}
    if other := of_onnxruntime():
        runs["onnxruntime"] = other
    for k in options.sizes:
        w, h = problem(k)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        results: dict[str, Result] = {}
        for _ in range(options.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                results[name] = run(w, h)
                seconds[name].append(time.perf_counter() - start)
        nearest = qrs.quantize(w, "int4-g128-asym-f16").dequantize()
        base = qrs.solvers.output_error(w, nearest, h)
        print(f"\n{k} x {k}, int4 g128 asymmetric; rounding to nearest leaves {base:.5f}")
        own = statistics.median(seconds["qrs"])
        for name in runs:
            error = qrs.solvers.output_error(w, results[name], h)
            time_ = statistics.median(seconds[name])
            print(f"{name:28} {time_:8.3f} s {time_ / own:7.2f} x {error / base:7.3f} of nearest")


if __name__ == "__main__":
    main()
