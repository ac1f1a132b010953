"""
How long Rank-N-Contrast takes, forward and backward, with its rows sorted once, beside a sort for each anchor; run as

    python tests/benchmarks/bench_ranking.py                     # some 4 minutes on one core
    python tests/benchmarks/bench_ranking.py --large 131072      # memory and time of some anchors among so many rows

A sort for each anchor is what labels with several dimensions take. Both take turns, in processor time, which
other work on the machine lengthens less; medians are shown.
"""

import argparse
import statistics
import time

import torch
from bench_loss import make_batch, peak_memory, show_bytes, show_time

from conr_hf.losses import rank_n_contrast, ranking

SIZES = ((128, 768), (512, 256), (2048, 256), (8192, 256))


def sorted_once(features: torch.Tensor, labels: torch.Tensor, **options) -> torch.Tensor:
    return rank_n_contrast(features, labels, **options)


def sorted_for_each_anchor(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    chosen, ranking.choose_sums_dtype = ranking.choose_sums_dtype, lambda *_: None
    try:
        return rank_n_contrast(features, labels)
    finally:
        ranking.choose_sums_dtype = chosen


def run_once(function, features: torch.Tensor, labels: torch.Tensor) -> float:
    features.grad = None
    start = time.process_time()
    function(features, labels).backward()
    return time.process_time() - start


def compare() -> None:
    print("| labels | M | D | a sort for each anchor | sorted once | ratio |\n" + "|---" * 6 + "|")
    for kind in ("rounded", "unrounded"):
        for rows, dims in SIZES:
            batch = make_batch(kind, rows, dims)
            times: dict = {sorted_for_each_anchor: [], sorted_once: []}
            for _ in range(max(3, min(41, 2**22 // rows**2))):
                for function, seconds in times.items():
                    seconds.append(run_once(function, batch["features"], batch["labels"]))
            before, now = (statistics.median(seconds) for seconds in times.values())
            cells = f"{show_time(before)} | {show_time(now)} | {before / now:.1f}"
            print(f"| {kind} | {rows} | {dims} | {cells} |", flush=True)


def measure_large(rows: int, dims: int = 256, anchors: int = 1024) -> None:
    """Of some anchors, as memory does not grow with their number, and time does in proportion."""
    print("| labels | M | D | memory beyond the inputs | time of all anchors |\n" + "|---" * 5 + "|")
    for kind in ("rounded", "unrounded"):
        batch = make_batch(kind, rows, dims)

        def some(features, labels, **_):
            return sorted_once(features, labels, anchors=slice(0, anchors))

        memory = peak_memory(some, batch)
        seconds = run_once(some, batch["features"], batch["labels"]) * rows / anchors
        print(f"| {kind} | {rows} | {dims} | {show_bytes(memory)} | about {show_time(seconds)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", type=int, help="only memory and time at so many rows")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32\n")
    measure_large(arguments.large) if arguments.large else compare()
