"""Sends and receives with tags, in any order, and receives from any rank.

Each ordered pair of ranks that uses them has a communicator of two ranks, which the sender
announces in the store. A message is a header with its tag and length, followed by its bytes. One
thread per peer and direction sends or receives, so that no message waits for one of another peer.
"""

import ctypes
import struct
import threading
import time
from typing import Any

import torch

from .._library import UniqueId, check, library
from .queries import remember_source
from .work import PendingWork

__all__ = ["PointToPoint"]

_HEADER = struct.Struct("<qQ")
_BYTE = 1


class _Receive:
    """A receive that was posted."""

    def __init__(self, tensor: torch.Tensor, source: int | None, tag: int, work: PendingWork):
        self.tensor, self.source, self.tag, self.work = tensor, source, tag, work

    def accepts(self, source: int, tag: int) -> bool:
        return self.source in (None, source) and self.tag == tag


class PointToPoint:
    """The sends and receives of one rank of a process group."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self._changed = threading.Condition()
        self._outgoing: dict[int, list[Any]] = {}
        self._posted: list[_Receive] = []
        self._early: dict[int, list[tuple[int, torch.Tensor]]] = {}
        self._broken: dict[int, Exception] = {}
        self._sources: set[int] = set()
        self._handles: set[int] = set()
        self._accepts = False
        self._is_closed = False

    def send(self, tensor: torch.Tensor, to: int, tag: int, work: PendingWork) -> None:
        """Sends the tensor and completes the work."""
        self._check_peer(to)
        with self._changed:
            queue = self._outgoing.get(to)
            if queue is None:
                queue = self._outgoing[to] = []
                self._start(self._send_all, to, queue)
            queue.append((tensor.contiguous(), tag, work))
            self._changed.notify_all()

    def receive(
        self, tensor: torch.Tensor, source: int | None, tag: int, work: PendingWork
    ) -> None:
        """Receives into the tensor, from any rank if ``source`` is None; completes the work."""
        if source is not None:
            self._check_peer(source)
        receive = _Receive(tensor, source, tag, work)
        with self._changed:
            for peer, messages in self._early.items():
                for place, (early_tag, data) in enumerate(messages):
                    if receive.accepts(peer, early_tag):
                        del messages[place]
                        self._deliver(receive, peer, data)
                        return
            if source in self._broken:
                work.complete(self._broken[source])
                return
            self._posted.append(receive)
            if not self._accepts:
                self._accepts = True
                self._start(self._accept_all)
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all sends and receives."""
        error = RuntimeError("the process group was shut down or aborted")
        with self._changed:
            self._is_closed = True
            handles = list(self._handles)
            self._handles.clear()
            posted, self._posted = self._posted, []
            for queue in self._outgoing.values():
                posted.extend(_Receive(t, None, tag, work) for t, tag, work in queue)
                queue.clear()
            self._changed.notify_all()
        for handle in handles:
            library().ncclCommAbort(handle)
        for receive in posted:
            receive.work.complete(error)

    def _check_peer(self, peer: int) -> None:
        if peer == self._rank or not 0 <= peer < self._size:
            raise ValueError(f"rank {self._rank} cannot exchange messages with rank {peer}")

    def _start(self, function: Any, *arguments: Any) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _join(self, rank: int, id: UniqueId) -> int:
        handle = ctypes.c_void_p()
        check(library().ncclCommInitRank(ctypes.byref(handle), 2, id, rank))
        assert handle.value is not None
        with self._changed:
            if not self._is_closed:
                self._handles.add(handle.value)
                return handle.value
        library().ncclCommAbort(handle)
        raise RuntimeError("the process group was shut down")

    def _send_all(self, to: int, queue: list[Any]) -> None:
        error: Exception | None = None
        handle = 0
        try:
            id = UniqueId()
            check(library().ncclGetUniqueId(ctypes.byref(id)))
            self._store.set(f"p2p/{self._rank}>{to}", id.to_bytes())
            number = self._store.add(f"p2p/senders/{to}", 1)
            self._store.set(f"p2p/sender/{to}/{number}", str(self._rank))
            handle = self._join(0, id)
        except Exception as raised:
            error = raised
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._is_closed)
                if self._is_closed:
                    return
                tensor, tag, work = queue.pop(0)
            if error is None:
                try:
                    length = tensor.numel() * tensor.element_size()
                    header = ctypes.create_string_buffer(_HEADER.pack(tag, length), _HEADER.size)
                    check(library().ncclSend(
                        ctypes.addressof(header), _HEADER.size, _BYTE, 1, handle, None))
                    if length:
                        check(library().ncclSend(
                            tensor.data_ptr(), length, _BYTE, 1, handle, None))
                except Exception as raised:
                    error = raised
            work.complete(error)

    def _accept_all(self) -> None:
        """Starts a thread for each rank that announces that it sends to this one."""
        number, pause = 1, 0.001
        while not self._is_closed:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or any(
                    p.source is None or p.source not in self._sources for p in self._posted))
                if self._is_closed or len(self._sources) == self._size - 1:
                    return
            key = f"p2p/sender/{self._rank}/{number}"
            try:
                if self._store.check([key]):
                    source = int(self._store.get(key))
                    id = UniqueId.parse(bytes(self._store.get(f"p2p/{source}>{self._rank}")))
                    with self._changed:
                        self._sources.add(source)
                    self._start(self._receive_all, source, id)
                    number, pause = number + 1, 0.001
                    continue
            except Exception as error:
                for source in range(self._size):
                    if source not in self._sources:
                        self._break(source, error)
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.02)

    def _receive_all(self, source: int, id: UniqueId) -> None:
        header = ctypes.create_string_buffer(_HEADER.size)
        try:
            handle = self._join(1, id)
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self._is_wanted(source))
                    if self._is_closed:
                        return
                check(library().ncclRecv(
                    ctypes.addressof(header), _HEADER.size, _BYTE, 0, handle, None))
                self._receive_body(source, handle, *_HEADER.unpack(header.raw))
        except Exception as error:
            self._break(source, error)

    def _is_wanted(self, source: int) -> bool:
        return any(posted.source in (None, source) for posted in self._posted)

    def _receive_body(self, source: int, handle: int, tag: int, length: int) -> None:
        with self._changed:
            # A message that nobody wants is received when one behind it is wanted.
            self._changed.wait_for(lambda: self._is_closed or self._is_wanted(source))
            matching = [p for p in self._posted if p.accepts(source, tag)][:1]
            for receive in matching:
                self._posted.remove(receive)
        direct = None
        if matching and matching[0].tensor.is_contiguous():
            tensor = matching[0].tensor
            direct = tensor if tensor.numel() * tensor.element_size() == length else None
        data = torch.empty(length, dtype=torch.uint8) if direct is None else direct
        try:
            if length:
                check(library().ncclRecv(data.data_ptr(), length, _BYTE, 0, handle, None))
        except Exception as error:
            for receive in matching:
                receive.work.complete(error)
            raise
        if direct is not None:
            _complete(matching[0], source, None)
        elif matching:
            self._deliver(matching[0], source, data)
        else:
            with self._changed:
                # A receive may have been posted for it meanwhile.
                late = next((p for p in self._posted if p.accepts(source, tag)), None)
                if late is None:
                    self._early.setdefault(source, []).append((tag, data))
                else:
                    self._posted.remove(late)
                    self._deliver(late, source, data)

    def _deliver(self, receive: _Receive, source: int, data: torch.Tensor) -> None:
        tensor, error = receive.tensor, None
        if data.numel() == tensor.numel() * tensor.element_size():
            tensor.copy_(data.view(tensor.dtype).view(tensor.shape))
        else:
            error = RuntimeError(
                f"rank {source} sent {data.numel()} bytes with tag {receive.tag} to rank "
                f"{self._rank}, whose tensor has {tensor.numel() * tensor.element_size()}"
            )
        _complete(receive, source, error)

    def _break(self, source: int, error: Exception) -> None:
        with self._changed:
            self._broken[source] = error
            lost = [p for p in self._posted if p.source == source or (
                p.source is None and len(self._broken) == self._size - 1)]
            self._posted = [p for p in self._posted if p not in lost]
        for receive in lost:
            receive.work.complete(error)


def _complete(receive: _Receive, source: int, error: Exception | None) -> None:
    if receive.source is None:
        remember_source(receive.tensor, source)
    receive.work.source = source
    receive.work.complete(error)
