"""Starts ranks as processes of this host."""

import multiprocessing
import multiprocessing.connection
from typing import Any, Callable

from .communicator import Communicator, unique_id

__all__ = ["run"]


def run(function: Callable[..., Any], nranks: int, *arguments: Any) -> list[Any]:
    """Calls ``function(communicator, *arguments)`` in ``nranks`` new processes.

    Returns what the calls return, in the order of the ranks. If one fails, the others are ended
    and its error is raised. The function must be importable by name, and the program needs
    ``if __name__ == "__main__":``, as with ``multiprocessing``.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for rank in range(nranks):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_rank, args=(theirs, rank, nranks, function, arguments), daemon=True
            )
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        # Rank 0 makes the id, because the process that makes it is the bootstrap root.
        id = _read(pipes[0], 0)
        for pipe in pipes[1:]:
            pipe.send(id)
        results: list[Any] = [None] * nranks
        waiting = dict(zip(pipes, range(nranks)))
        while waiting:
            for pipe in multiprocessing.connection.wait(list(waiting)):
                rank = waiting.pop(pipe)
                results[rank] = _read(pipe, rank)
        for process in processes:
            process.join()
        return results
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _read(pipe: Any, rank: int) -> Any:
    try:
        error, value = pipe.recv()
    except EOFError:
        raise RuntimeError(f"the process of rank {rank} ended without a result") from None
    if error is not None:
        raise RuntimeError(f"rank {rank}: {error}")
    return value


def _rank(pipe: Any, rank: int, nranks: int, function: Any, arguments: tuple[Any, ...]) -> None:
    try:
        if rank == 0:
            id = unique_id()
            pipe.send((None, id))
        else:
            id = pipe.recv()
        with Communicator(rank, nranks, id) as communicator:
            result = function(communicator, *arguments)
        pipe.send((None, result))
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {error}", None))
