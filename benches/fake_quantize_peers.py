"""Fake quantization forward and backward, beside torch's, in one run on the same tensors.

`python benches/fake_quantize_peers.py [--threads 2] [--sizes 1024 4096]` needs torch. Int8 weights
with a scale for each row, given or learned. All take turns; medians of milliseconds for each way,
and the ratio of the sums. Values and gradients are compared before anything is timed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

# Threads of torch that wait for work by spinning would take the cores from those of qrs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import qrs
from qrs.torch import LSQ, fake_quantize

ROUNDS = 15
Call = Callable[[torch.Tensor], torch.Tensor]


def learned(step: torch.Tensor) -> Call:
    """torch's own operation for steps that are learned."""
    scale, zero = step.clone().requires_grad_(), torch.zeros_like(step).requires_grad_()
    factor = 1 / (step.numel() * 127) ** 0.5
    return lambda x: torch._fake_quantize_learnable_per_channel_affine(
        x, scale, zero, 0, -127, 127, factor
    )


def calls(x: torch.Tensor) -> dict[str, dict[str, Call]]:
    """Pairs to compare: what is done -> who does it."""
    scale = x.abs().amax(dim=1) / 127 * 0.9
    scale = 2.0 ** scale.log2().round()  # torch multiplies by 1 / scale, which is exact for these
    zero = torch.zeros(len(x), dtype=torch.int32)
    lsq = LSQ("int8-axis0", x)
    with torch.no_grad():
        lsq.step.copy_(scale)

    def torchs(x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, -127, 127)

    return {
        "scale given": {
            "qrs": lambda x: fake_quantize(x, "int8-axis0", scale=scale), "torch": torchs,
        },
        "scale from the range": {"qrs": lambda x: fake_quantize(x, "int8-axis0")},
        "step learned": {"qrs": lsq, "torch": learned(scale)},
    }  # fmt: skip


def timed(call: Call, x: torch.Tensor, dy: torch.Tensor) -> tuple[float, float]:
    """Milliseconds there and back."""
    x.grad = None
    start = time.perf_counter()
    y = call(x)
    middle = time.perf_counter()
    y.backward(dy)
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=qrs.num_threads())
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    qrs.set_num_threads(given.threads)
    print(f"{given.threads} threads, {qrs.simd_level()}, torch {torch.__version__}")
    for size in given.sizes:
        x, dy = torch.randn(2, size, size).unbind()
        x = x.clone().requires_grad_()
        for name, whose in calls(x.detach()).items():
            found = []
            for call in whose.values():
                x.grad = None
                y = call(x)
                y.backward(dy)
                found.append((y.detach(), x.grad))
            assert all(torch.equal(y, found[0][0]) for y, _ in found)
            differ = max(int((g != found[0][1]).sum()) for _, g in found)
            assert name == "step learned" or not differ  # LSQ clips half a step earlier than torch
            times: dict[str, list[tuple[float, float]]] = {who: [] for who in whose}
            for _ in range(ROUNDS):
                for who, call in whose.items():
                    times[who].append(timed(call, x, dy))
            medians = {
                who: [statistics.median(way) for way in zip(*all_, strict=True)]
                for who, all_ in times.items()
            }
            for who, (there, back) in medians.items():
                ratio = sum(medians[who]) / sum(medians["qrs"])
                print(f"{size:5} {name:21} {who:5} {there:7.2f} + {back:7.2f} ms {ratio:6.2f}x")


if __name__ == "__main__":
    main()
