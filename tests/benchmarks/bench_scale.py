"""
What several processes send and hold in a step, measured on this machine beside what recipes/accelerate/costs.py says:

    MALLOC_MMAP_THRESHOLD_=65536 python tests/benchmarks/bench_scale.py [--processes 1 2 4] [--model NAME]

Sent bytes are those that the kernel counts on the loopback device, on which nothing else should be busy; memory is the
peak of a process's resident pages beyond those before training. The variable lets the C library give memory back as
soon as it is freed, as a GPU's allocator does in effect.
"""

import argparse
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import timm
import torch
import torch.distributed as dist
from transformers import TrainerCallback

sys.path.append(str(Path(__file__).parents[2] / "recipes" / "accelerate"))

import costs

from conr_hf import ConRConfig, ConRTrainer, load_regressor
from conr_hf.utils.distributed import gather_rows

STEPS = 4  # measured, after one that sets everything up


def sent_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


class Measured(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if dist.is_initialized():
            dist.barrier()
        if state.global_step == 1:
            self.sent = sent_bytes()
        if state.global_step == 1 + STEPS:
            self.sent = (sent_bytes() - self.sent) / STEPS / args.world_size


class Rows(torch.utils.data.Dataset):
    """Images of noise."""

    column_names = ("pixel_values", "label")

    def __init__(self, count, views, size):
        self.pixels = torch.randn(count, views, *size, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, row):
        return {"pixel_values": self.pixels[row], "label": float(row)}


def step(name: str, samples: int, folder: str, part: int | None) -> tuple[float, float]:
    """Bytes that a process sends in a step, and its peak memory beyond that before training."""
    model, processor = load_regressor(f"timm/{name}", pretrained=False)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = ConRConfig(
        folder,
        per_device_train_batch_size=samples,
        max_steps=1 + STEPS,
        num_views=2,
        conr_weight=0.05,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1000,
        ddp_find_unused_parameters=False,
        forward_batch_size=part,
    )
    data = Rows(samples * processes, 2, timm.get_pretrained_cfg(name).input_size)
    measured = Measured()
    trainer = ConRTrainer(model, args, train_dataset=data, processing_class=processor, callbacks=[measured])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    trainer.train()
    return measured.sent, resident("VmHWM") - before


def gather(rows: int, width: int, processes: int) -> tuple[float, float]:
    """Bytes that a process sends to gather rows, and their gradients."""
    features, labels = torch.randn(rows, width, requires_grad=True), torch.zeros(rows)
    sent = []
    for _ in range(2):  # the first connects
        dist.barrier()
        before = sent_bytes()
        gathered, *_ = gather_rows([features, labels, labels], [rows] * processes)
        dist.barrier()
        forward = sent_bytes()
        gathered.sum().backward()
        dist.barrier()
        sent = [(forward - before) / processes, (sent_bytes() - forward) / processes]
    return sent[0], sent[1]


def in_processes(count: int, work, *given):
    """What the first of `count` forked processes finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                os.dup2(os.open(Path(folder, f"output.{rank}"), os.O_CREAT | os.O_WRONLY), 1)
                os.dup2(1, 2)
                try:
                    if count > 1:
                        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
                        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                    if work is gather:
                        dist.init_process_group("gloo")
                    found = work(*given)
                    if rank == 0:
                        torch.save(found, Path(folder, "found.pt"))
                    ended = 0
                except BaseException:
                    traceback.print_exc()
                    ended = 1
                sys.stderr.flush()
                os._exit(ended)
            children.append(child)
        ended = [os.waitpid(child, 0)[1] for child in children]
        if any(ended):
            raise SystemExit(Path(folder, "output.0").read_text()[-3000:])
        return torch.load(Path(folder, "found.pt"))


def line(*cells) -> None:
    print("| " + " | ".join(cell if isinstance(cell, str) else costs.show(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--forward_batch_size", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    several = [count for count in given.processes if count > 1]

    print("Rows of 1024 numbers, 2048 of each process\n")
    print("| processes | what | sent | by the model |\n" + "|---" * 4 + "|")
    alone = costs.Model(0, 1024, 0)
    for count in several:
        forward, backward = in_processes(count, gather, 2048, 1024, count)
        both = costs.sent_for_contrast(alone, count, 2048)
        columns = 4 * 1026 * 2048 * (count - 1)
        line(str(count), "gather", forward, columns)
        line(str(count), "gradients of one regulariser", backward, (both - columns) / costs.REGULARISERS)

    model = costs.measure(given.model, bf16=False)
    print(f"\n{given.model}, a step\n")
    print("| processes | samples | what | measured | by the model |\n" + "|---" * 5 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for count in given.processes:
            for samples in given.samples:
                sent, memory = in_processes(count, step, given.model, samples, folder, None)
                if count > 1:
                    expected = costs.sent_for_gradients(model, count)
                    expected += costs.sent_for_contrast(model, count, 2 * samples)
                    line(str(count), str(samples), "sent", sent, expected)
                # The weights are there before training.
                state = costs.state_bytes(model, count) - 4 * model.parameters
                line(str(count), str(samples), "memory", memory, state + costs.activation_bytes(model, samples, 2))
        _, memory = in_processes(1, step, given.model, given.samples[-1], folder, given.forward_batch_size)
        part = given.forward_batch_size
        expected = costs.state_bytes(model, 1) - 4 * model.parameters + costs.activation_bytes(model, part, 2)
        line("1", f"{given.samples[-1]} by {part}", "memory", memory, expected)


if __name__ == "__main__":
    main()
