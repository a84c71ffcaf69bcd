"""Times Maypole beside Gloo: collectives of PyTorch on CPU tensors, and training steps.

    python collectives.py [--ranks N] [--seconds S] [--only NAME ...] [--sizes BYTES ...]

Both backends are groups of the same processes and take turns. A row has the median over the
rounds of the mean time of a call in microseconds, on rank 0, and the ratio of the two.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any, Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ROUNDS = 7
SIZES = [8, 8 << 10, 128 << 10, 2 << 20, 32 << 20]


def calls(size: int, group: Any, ranks: int) -> dict[str, Callable[[], Any]]:
    """Each collective on its own tensors; ``size`` is the larger of the two buffers in bytes."""
    count = max(size // 4, 1)
    block = max(count // ranks, 1)
    full, part = torch.ones(block * ranks), torch.ones(block)
    whole = torch.zeros(count)
    other = torch.empty(block * ranks)
    return {
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "broadcast": lambda: dist.broadcast(whole, 0, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(full, part, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, full, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, full, group=group),
    }


def training(parameters: int, kind: str, group: Any) -> Callable[[], Any]:
    """A step of a model with about this many parameters."""
    torch.manual_seed(0)
    width, layers = (256, 16) if parameters <= 1 << 20 else (1024, 100)
    body = [torch.nn.Linear(width, width, bias=False) for _ in range(layers)]
    model: Any = torch.nn.Sequential(*body)
    if kind == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model, process_group=group)
    else:
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        mesh = DeviceMesh.from_group(group, "cpu")
        for layer in body:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    data = torch.randn(1, width)

    def step() -> None:
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()

    return step


def seconds_per_call(call: Callable[[], Any], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def compare(name: str, pair: dict[str, Callable[[], Any]], seconds: float, control: Any) -> None:
    """Prints the row of one call, which ``pair`` has by the name of the backend."""
    for call in pair.values():
        call()
        call()
    dist.barrier(control)
    # Each gets half of the time, so that the ranks' different starts count alike in both. Rank 0
    # says how many calls fit.
    share = seconds / (2 * ROUNDS)
    counts = torch.tensor([max(int(share / seconds_per_call(c, 3)), 2) for c in pair.values()])
    dist.broadcast(counts, 0, group=control)
    turns = list(zip(pair.items(), counts.tolist(), strict=True))
    times: dict[str, list[float]] = {backend: [] for backend in pair}
    for turn in range(ROUNDS):
        for (backend, call), count in turns if turn % 2 else reversed(turns):
            dist.barrier(control)
            times[backend].append(seconds_per_call(call, count))
    if dist.get_rank() == 0:
        gloo, ours = (statistics.median(times[b]) * 1e6 for b in ("gloo", "maypole"))
        print(f"| {name:24} | {gloo:12.1f} | {ours:12.1f} | {gloo / ours:6.2f} |", flush=True)


def rank(number: int, options: Any, folder: str) -> None:
    torch.set_num_threads(1)
    import maypole.torch

    maypole.torch.register()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number,
                            world_size=options.ranks)
    groups = {"gloo": dist.new_group(backend="gloo"), "maypole": dist.new_group(backend="maypole")}
    control = dist.new_group(backend="gloo")
    if number == 0:
        print(f"| {options.ranks} ranks, us a call       |         Gloo |      Maypole |  ratio |")
        print("| --- | ---: | ---: | ---: |")
    for name in ("all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all"):
        for size in options.sizes if wanted(name, options) else []:
            pair = {b: calls(size, g, options.ranks)[name] for b, g in groups.items()}
            compare(f"{name} {size} B", pair, options.seconds, control)
    if wanted("barrier", options):
        compare("barrier", {b: (lambda g=g: dist.barrier(g)) for b, g in groups.items()},
                options.seconds, control)
    for kind, parameters in (("ddp", 1 << 20), ("fsdp2", 1 << 20), ("ddp", 100 << 20),
                             ("fsdp2", 100 << 20)):
        name = f"{kind}_{parameters >> 20}M"
        if wanted(name, options):
            pair = {b: training(parameters, kind, g) for b, g in groups.items()}
            compare(f"{kind} step, {parameters >> 20} M", pair, options.seconds, control)
            del pair
    dist.destroy_process_group()


def wanted(name: str, options: Any) -> bool:
    return not options.only or name in options.only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for a row")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank, (options, folder), nprocs=options.ranks)


if __name__ == "__main__":
    main()
