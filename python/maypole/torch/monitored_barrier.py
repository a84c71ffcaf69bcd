"""The barrier whose error names the ranks that did not come. It runs over the store."""

import time
from datetime import timedelta
from typing import Any

__all__ = ["monitored_barrier"]


def monitored_barrier(
    store: Any, key: str, rank: int, size: int, seconds: float, wait_all_ranks: bool
) -> None:
    """Waits until all ranks have called it with the same ``key``, which no other barrier has."""
    if rank != 0:
        _pass(store, key, rank, seconds)
        return
    if seconds <= 0:
        _refuse(store, key, "Rank 0 timed out in monitoredBarrier after 0 ms")
    deadline, missing = time.monotonic() + seconds, []
    for other in range(1, size):
        left = max(deadline - time.monotonic(), 0.001)
        try:
            store.wait([f"{key}/{other}"], timedelta(seconds=left))
        except Exception:
            missing.append(other)
            if not wait_all_ranks:
                break
    if missing:
        names = ", ".join(map(str, missing))
        word = "Ranks" if wait_all_ranks else "Rank"
        text = f"{word} {names} failed to pass monitoredBarrier in {seconds * 1000:g} ms"
        _refuse(store, key, text)
    store.set(f"{key}/end", "fine")


def _refuse(store: Any, key: str, text: str) -> None:
    store.set(f"{key}/end", text)
    raise RuntimeError(text)


def _pass(store: Any, key: str, rank: int, seconds: float) -> None:
    store.set(f"{key}/{rank}", "here")
    blame = (f"Rank {rank} successfully reached monitoredBarrier, but received errors while "
             "waiting for send/recv from rank 0")
    try:
        # A store takes a timeout of 0 for its own default.
        store.wait([f"{key}/end"], timedelta(seconds=max(seconds, 0.001)))
        end = bytes(store.get(f"{key}/end")).decode()
    except Exception as error:
        raise RuntimeError(
            f"{blame} within {seconds:g} s. Please check rank 0 logs for faulty rank. Original "
            f"exception: {error}") from error
    if end != "fine":
        raise RuntimeError(
            f"{blame}. Please check rank 0 logs for faulty rank. Rank 0 said: {end}")
