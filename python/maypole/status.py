"""What the communicators of this process do now, as ``maypole ps`` shows it for all processes."""

import os
import socket
import struct
from typing import NamedTuple

__all__ = ["CommunicatorStatus", "communicators"]

_VERSION = 2
_NO_RANK = 0xFFFFFFFF
_NO_TIME = 0xFFFFFFFFFFFFFFFF


class CommunicatorStatus(NamedTuple):
    """One communicator, as the rank of this process knows it."""

    rank: int
    nranks: int
    #: Whether the rank waits in a call. A call that has never had to wait is not known.
    in_call: bool
    #: The present or last call, in words.
    call: str
    #: The rank that it waits for.
    waits_for: int | None
    #: The seconds since the first long wait of the call.
    waited: float | None
    #: Why the communicator has ended.
    ended: str | None


def communicators() -> list[CommunicatorStatus]:
    """The communicators of this process; none if it has none, or if it cannot be asked."""
    try:
        for name in _names():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
                # A thread of this process answers at once, unless the machine is very busy.
                stream.settimeout(60.0)
                stream.connect("\0" + name)
                owner = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                # Another container may have a process with the same number.
                if struct.unpack("3i", owner)[0] == os.getpid():
                    return _decode(b"".join(iter(lambda: stream.recv(65536), b"")))
    except (OSError, struct.error):
        pass
    return []


def _names() -> list[str]:
    with open("/proc/net/unix") as table:
        paths = [line.split()[-1] for line in table]
    return [path[1:] for path in paths if path.startswith(f"@maypole/{os.getpid()}/")]


def _decode(data: bytes) -> list[CommunicatorStatus]:
    version, count, _ = struct.unpack_from("<BII", data)
    if version != _VERSION:
        return []
    place, found = 9, []

    def take(form: str) -> tuple[int, ...]:
        nonlocal place
        values = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize("<" + form)
        return values

    def text() -> str:
        nonlocal place
        (length,) = take("H")
        place += length
        return data[place - length:place].decode(errors="replace")

    for _ in range(count):
        _, rank, nranks, _, in_call = take("QIIQB")
        call = text()
        waits_for, waited = take("IQ")
        ended = text() or None
        # What the RAS service shows beside this: result, counts, the dead rank, the ranks here.
        take("BB8QII")
        text()
        take(f"{2 * take('I')[0]}I")
        found.append(CommunicatorStatus(
            rank, nranks, bool(in_call), call, None if waits_for == _NO_RANK else waits_for,
            None if waited == _NO_TIME else waited / 1000, ended))
    return found
