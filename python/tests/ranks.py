"""Runs a function as the ranks of a process group, for the tests."""

import faulthandler
import multiprocessing
import os
import tempfile
import traceback
from typing import Any, Callable

import torch
import torch.distributed as dist

import maypole.torch

__all__ = ["run"]

# Long enough for any machine: it ends what hangs.
WATCHDOG_SECONDS = 250


def run(
    body: Callable[..., Any], size: int, backend: str = "maypole", killed: int | None = None
) -> list[Any]:
    """Calls ``body(rank, size)`` in forked processes, each with a process group.

    Returns what the calls return. ``killed`` is a rank that ends itself by a signal and returns
    nothing.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_rank, args=(rank, size, folder, backend, body))
                     for rank in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = []
        for rank, process in enumerate(processes):
            if rank == killed:
                assert process.exitcode is not None and process.exitcode < 0, process.exitcode
                results.append(None)
                continue
            path = f"{folder}/{rank}"
            kind, value = (torch.load(path, weights_only=False) if os.path.exists(path) else
                           ("error", f"it ended with {process.exitcode}"))
            if kind == "error":
                raise AssertionError(f"rank {rank} of {size} with {backend}: {value}")
            results.append(value)
        return results


def _rank(rank: int, size: int, folder: str, backend: str, body: Callable[..., Any]) -> None:
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
    torch.set_num_threads(1)
    try:
        maypole.torch.register()
        dist.init_process_group(
            backend, init_method=f"file://{folder}/store", rank=rank, world_size=size)
        result = ("value", body(rank, size))
        dist.destroy_process_group()
    except BaseException:
        result = ("error", traceback.format_exc())
    torch.save(result, f"{folder}/{rank}.part")
    os.rename(f"{folder}/{rank}.part", f"{folder}/{rank}")
    # Without the exit functions, which would wait for threads of an aborted group.
    os._exit(0)
