"""
How long the loss takes, forward and backward, beside the plain dense form; run as

    python tests/benchmarks/bench_loss.py                    # all sizes, about 25 minutes on 2 cores
    python tests/benchmarks/bench_loss.py --rows 128 512 2048 --dims 256

Prints two tables for each kind of labels and predictions. All algorithms of a cell take turns, and medians are taken.
On an accelerator where there is one, of which peaks are then those of its own memory.
"""

import argparse
import ctypes
import gc
import math
import platform
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

from conr_hf.losses import conr_loss
from conr_hf.losses.conr_slices import make_plan
from conr_hf.losses.validation import Settings

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import reference

SETTINGS = {"window": 1.0, "push_scale": 0.01, "temperature": 0.07}
KINDS = {
    "rounded": "labels normal(45, 16), rounded, 1 to 101; predictions label + normal(0, 8)",
    "unrounded": "the same labels not rounded",
    "collapsed": "rounded labels; predictions of standard deviation 0.1: every pair is a candidate",
}
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
LONGEST, ALGORITHMS = 60.0, ("plain", "dense", "windowed", "auto", "compiled", "SupCon")


def make_batch(kind: str, rows: int, dims: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    labels = 45 + 16 * torch.randn(rows, generator=generator)
    labels = labels if kind == "unrounded" else labels.round().clamp(1, 101)
    noise = torch.randn(rows, generator=generator)
    batch = {
        "features": torch.randn(rows, dims, generator=generator),
        "labels": labels,
        "predictions": 45 + 0.1 * noise if kind == "collapsed" else labels + 8 * noise,
        "weights": 0.5 + torch.rand(rows, generator=generator),
    }
    batch = {name: values.to(DEVICE) for name, values in batch.items()}
    batch["features"].requires_grad_()
    return batch


def find_functions() -> dict:
    def of(algorithm):
        return lambda **batch: conr_loss(**batch, **SETTINGS, algorithm=algorithm)

    functions = {
        "plain": lambda **batch: reference.plain_conr_loss(**batch, **SETTINGS),
        "dense": of("dense"),
        "windowed": of("windowed"),
        "auto": of("auto"),
        "compiled": torch.compile(of("dense"), dynamic=False),
    }
    try:
        from pytorch_metric_learning.losses import SupConLoss
    except ImportError:
        print("pytorch-metric-learning is not installed: its SupConLoss is left out.")
    else:
        criterion = SupConLoss(temperature=0.07)
        # It has no loss for continuous labels; the nearest takes equal whole labels for a class and pushes the rest.
        functions["SupCon"] = lambda features, labels, **_: criterion(features, labels.round().long())
    return functions


def run_once(function, batch: dict) -> float:
    batch["features"].grad = None
    wait()
    start = time.perf_counter()
    function(**batch).backward()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the accelerator has done what it was given."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()


def peak_memory(function, batch: dict) -> float:
    """Bytes beyond those before the call: an accelerator's, or on Linux of resident memory; nan elsewhere."""
    batch["features"].grad = None
    gc.collect()
    if DEVICE.type != "cpu":
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        function(**batch).backward()
        return float(torch.accelerator.max_memory_allocated() - before)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = read_status("VmRSS")
        function(**batch).backward()
        return (read_status("VmHWM") - before) * 1024.0
    except OSError:
        function(**batch).backward()
        return math.nan


def read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def matrix_rate(dims: int) -> float:
    """Operations a second of the best of a few matrix products of the kind that a loss needs."""
    best = 0.0
    for rows in (256, 1024, 2048):
        a, b = torch.randn(rows, dims, device=DEVICE), torch.randn(dims, rows, device=DEVICE)
        for _ in range(8):
            wait()
            start = time.perf_counter()
            a @ b
            wait()
            best = max(best, 2 * rows * rows * dims / (time.perf_counter() - start))
    return best


def show_time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def show_bytes(count: float) -> str:
    return "?" if math.isnan(count) else f"{count / 2**20:.0f} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"


class Growth:
    """What an algorithm took at the last sizes: predicts the next, and gives the exponent of its growth."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, float, float]] = []  # rows, pairs formed, seconds, bytes

    def predict(self, rows: int, pairs: float, is_dense: bool) -> tuple[float, float]:
        if not self.seen:
            return 0.0, 0.0
        last_rows, last_pairs, seconds, memory = self.seen[-1]
        return seconds * pairs / last_pairs, memory * (rows / last_rows) ** (2 if is_dense else 1)

    def exponent(self) -> str:
        if len(self.seen) < 2:
            return ""
        (rows, _, seconds, _), (more_rows, _, more_seconds, _) = self.seen[-2:]
        return f"{math.log(more_seconds / seconds) / math.log(more_rows / rows):.2f}"


def measure_cell(functions: dict, batch: dict, pairs: dict, growth: dict, limit: float) -> tuple[dict, dict, dict]:
    """Median seconds, peak bytes, and the reasons why others were left out."""
    rows = len(batch["labels"])
    medians, memory, left_out = {}, {}, {}
    for name in functions:
        seconds, size = growth[name].predict(rows, pairs[name], pairs[name] == rows**2)
        if growth[name].seen and seconds > LONGEST:
            left_out[name] = f"about {seconds:.0f} s"
        elif growth[name].seen and not math.isnan(size) and size > limit:
            left_out[name] = f"about {show_bytes(size)}"
        elif name == "compiled" and rows > 8192:
            left_out[name] = "as dense"
    running = [name for name in functions if name not in left_out]
    first = {}
    for name in running:
        torch._dynamo.reset() if name == "compiled" else None
        if name == "compiled":
            run_once(functions[name], batch)
        memory[name] = peak_memory(functions[name], batch)
        first[name] = run_once(functions[name], batch)
    # Some 10 s a cell, and at least 3 turns unless one takes over 8 s; small cells are timed over several calls.
    slowest = max(first.values(), default=0.0)
    turns = 1 if slowest > 8 else max(3, min(25, int(10 / max(sum(first.values()), 0.01))))
    times = {name: [] for name in running}
    for turn in range(turns):
        for name in running if turn % 2 else reversed(running):
            calls = max(1, min(20, int(0.05 / first[name])))
            times[name].append(statistics.median(run_once(functions[name], batch) for _ in range(calls)))
    for name in running:
        medians[name] = statistics.median(times[name] if turns > 1 else [*times[name], first[name]])
        growth[name].seen.append((rows, pairs[name], medians[name], memory[name]))
    return medians, memory, left_out


def compare_slices(anchors: list[int], dims: int = 1024) -> None:
    """A process's own anchors among the rows of many processes: where `auto` should change from one to the other."""
    print(f"\n## Some anchors among many rows, D = {dims}\n")
    print("| anchors | M | dense | windowed | auto |\n" + "|---" * 5 + "|")
    for count in anchors:
        for rows in (2048, 8192, 32768):
            batch = make_batch("rounded", rows, dims)
            times: dict[str, list[float]] = {"dense": [], "windowed": [], "auto": []}
            for _ in range(5):
                for name, seconds in times.items():
                    call = partial(conr_loss, **SETTINGS, algorithm=name, anchors=slice(rows // 2, rows // 2 + count))
                    seconds.append(run_once(call, batch))
            cells = [show_time(statistics.median(seconds)) for seconds in times.values()]
            print(f"| {count} | {rows} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--anchors", type=int, nargs="+", help="only of so many anchors among many rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[128, 512, 2048, 8192, 32768, 131072])
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    if arguments.anchors:
        compare_slices(arguments.anchors)
        return
    functions = find_functions()
    memory_limit = 1e10
    if platform.system() == "Linux":
        memory_limit = 0.5 * 1024 * int(Path("/proc/meminfo").read_text().split()[1])
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, float32, half of memory {show_bytes(memory_limit)}")
    settings = Settings(1.0, 0.01, 0.07, "exponential", "exact", "mean", "mean_abs", "windowed")
    for kind in arguments.kinds:
        print(f"\n## {kind}: {KINDS[kind]}\n")
        names = [name for name in ALGORITHMS if name in functions]
        print("| M | D | " + " | ".join(names) + " | auto against plain | against the better |")
        print("|" + "---|" * (len(names) + 4))
        details = []
        for dims in arguments.dims:
            growth = {name: Growth() for name in functions}
            for rows in arguments.rows:
                batch = make_batch(kind, rows, dims)
                values = batch["labels"], batch["predictions"], batch["weights"]
                plan = make_plan(*values, (1.0, 1.0), settings, 0, rows)
                pairs = {name: float(rows**2) for name in functions}
                pairs |= {"windowed": float(plan.pairs), "auto": float(plan.pairs)}
                medians, memory, left_out = measure_cell(functions, batch, pairs, growth, memory_limit)
                cells = [show_time(medians[name]) if name in medians else f"- ({left_out[name]})" for name in names]
                auto, plain = medians.get("auto"), medians.get("plain")
                ratio = f"{plain / auto:.1f}" if auto and plain else "-"
                better = min((medians[name] for name in ("dense", "windowed") if name in medians), default=None)
                excess = f"{auto / better:.2f}" if auto and better else "-"
                print(f"| {rows} | {dims} | " + " | ".join(cells) + f" | {ratio} | {excess} |", flush=True)
                if "windowed" in medians:
                    _, found = conr_loss(
                        **{**batch, "features": batch["features"][:, :1].detach()},
                        **SETTINGS,
                        algorithm="windowed",
                        return_statistics=True,
                    )
                    matter = int(found.positives + found.negatives)
                    rate, seconds = matrix_rate(dims), medians["windowed"]
                    tiles = sum(
                        (t.last - t.first) * (3 * (t.end - t.start) + max(t.end - max(t.start, t.last), 0))
                        for side in plan.sides
                        for t in side.tiles
                    )
                    operations = 8 * dims * plan.pairs, 8 * dims * matter, 2 * dims * tiles
                    plain_peak, plain_growth = memory.get("plain", math.nan), growth["plain"]
                    row = [
                        *(rows, dims, show_bytes(plain_peak), show_bytes(memory["windowed"])),
                        plain_growth.exponent() if "plain" in medians else "",
                        growth["windowed"].exponent(),
                        *(f"{100 * count / rows**2:.1f} %" for count in (matter, plan.pairs)),
                        f"{matter / seconds / 1e6:.1f}",
                        f"{rate / 1e9:.0f}",
                        *(f"{100 * count / seconds / rate:.0f} %" for count in operations),
                    ]
                    details.append("| " + " | ".join(map(str, row)) + " |")
        print(
            "\nWindowed: memory beyond the inputs, growth of time with M since the row above, pairs; and the share of"
        )
        print("the matrix-product rate (GFLOP/s, measured here) by 8 D operations a pair, and by those carried out.\n")
        print("| M | D | plain peak | windowed peak | plain M^ | windowed M^ | pairs that matter | in slices ", end="")
        print("| million/s | rate | 8 D in slices | 8 D that matter | carried out |")
        print("|" + "---|" * 13)
        print("\n".join(details), flush=True)


if __name__ == "__main__":
    main()
