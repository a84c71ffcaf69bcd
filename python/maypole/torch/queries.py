"""Questions about a work that PyTorch does not pass on to a backend in Python.

PyTorch wraps the works of such a backend in an object that forwards ``wait`` and ``get_future``
alone: ``is_completed`` would always be false, and ``torch.distributed.recv`` without a source
would fail. ``install`` replaces three methods of ``torch.distributed.Work``, which then ask the
future of such a work. The works of backends in C++ answer as before.
"""

import functools
from typing import Any

import torch
from torch._C._distributed_c10d import OpType, Work
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["install", "remember_source"]

# The rank that sent what a tensor received by a receive from any rank.
_sources: Any = WeakIdKeyDictionary()


def remember_source(tensor: torch.Tensor, rank: int) -> None:
    """Notes which rank of the group sent the contents of the tensor."""
    _sources[tensor] = rank


def install() -> None:
    """Lets works of backends in Python answer, once for each process."""
    if hasattr(Work.is_completed, "__wrapped__"):
        return
    is_completed, result = Work.is_completed, Work.result
    source_ranks = {name: getattr(Work, name) for name in ("_source_rank", "source_rank")}

    @functools.wraps(is_completed)
    def ask_completed(work: Any) -> bool:
        return is_completed(work) or (_is_wrapped(work) and work.get_future().done())

    @functools.wraps(result)
    def ask_result(work: Any) -> Any:
        return work.get_future().wait() if _is_wrapped(work) else result(work)

    Work.is_completed, Work.result = ask_completed, ask_result
    for name, original in source_ranks.items():
        setattr(Work, name, _source_question(original))


def _source_question(original: Any) -> Any:
    @functools.wraps(original)
    def ask(work: Any) -> int:
        if _is_wrapped(work):
            for tensor in work.get_future().wait():
                if tensor in _sources:
                    return int(_sources[tensor])
        return int(original(work))

    return ask


def _is_wrapped(work: Any) -> bool:
    # Backends in C++ say what their works do.
    return type(work) is Work and work._get_op_type() == int(OpType.UNKNOWN)
