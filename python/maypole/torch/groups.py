"""Groups that are made from other groups."""

import ctypes
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from .calls import CallBackend

__all__ = ["GroupBackend"]

_NO_COLOR = -1
_SHRINK_ABORT = 1


class GroupBackend(CallBackend):
    """A backend whose group can be split, shrunk and merged."""

    @property
    def supports_splitting(self) -> bool:
        return True

    @property
    def supports_shrinking(self) -> bool:
        return True

    def split(self, store: Any, ranks: list[int], opts: Any) -> Any:
        """The backend of a new group of these ranks; every rank of this one calls it."""
        me = self._rank_number
        if me not in ranks:
            self._split_comm(_NO_COLOR, 0)
            # PyTorch would take None for a backend and crash.
            raise RuntimeError(
                f"rank {me} is in none of the groups of the split. The other ranks have theirs, "
                "but PyTorch cannot return from a backend in Python without a group: make a "
                "group of this rank alone")
        rank = ranks.index(me)
        return self._child(store, rank, len(ranks), opts, self._split_comm(ranks[0], rank))

    def perform_nocolor_split(self, device: Any) -> None:
        """The part in a split of a rank that is in none of the groups."""
        self._split_comm(_NO_COLOR, 0)

    def _split_comm(self, color: int, key: int) -> int | None:
        self._end_calls()
        child = ctypes.c_void_p()
        self._check(self._n.ncclCommSplit(self._comm, color, key, ctypes.byref(child), None))
        return child.value

    def shrink(self, ranks_to_exclude: list[int], shrink_flags: int = 0,
               opts_override: Any = None) -> Any:
        """The backend of a group without these ranks; the others call it."""
        if not shrink_flags & _SHRINK_ABORT:
            self._end_calls()
        out, child = sorted(ranks_to_exclude), ctypes.c_void_p()
        self._check(self._n.ncclCommShrink(
            self._comm, (ctypes.c_int * len(out))(*out), len(out), ctypes.byref(child), None,
            shrink_flags))
        self._shrinks += 1
        prefix = f"shrunk/{self._shrinks}/{'-'.join(map(str, out))}"
        rank = self._rank_number - sum(other < self._rank_number for other in out)
        return self._child(dist.PrefixStore(prefix, self._store), rank,
                           self._size_number - len(out), opts_override, child.value)

    def merge(self, store: Any, opts: Any, rank: int, size: int) -> Any:
        """The backend of a group of ranks that had no common one."""
        return self._child(store, rank, size, opts, None)

    def _child(self, store: Any, rank: int, size: int, opts: Any, comm: int | None) -> Any:
        timeout = timedelta(seconds=self._seconds) if opts is None else opts._timeout
        return type(self)(store, rank, size, timeout, comm)

    def _end_calls(self) -> None:
        if self._issued:
            self.wait_for_call(self._issued, self._seconds)

    def _check(self, code: int) -> None:
        if self._failure is not None or code:
            raise self._error(code)
