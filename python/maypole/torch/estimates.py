"""How long calls would take, by the cost model of the library."""

import ctypes

from .._library import check, library

__all__ = ["begin_estimate", "end_estimate"]

_MAGIC = 0x74685283


class _SimInfo(ctypes.Structure):
    """``ncclSimInfo_t``."""

    _fields_ = [("size", ctypes.c_size_t), ("magic", ctypes.c_uint), ("version", ctypes.c_uint),
                ("estimated_time", ctypes.c_float)]


def begin_estimate() -> None:
    """Lets the calls of this thread be kept and not run, until ``end_estimate``."""
    check(library().ncclGroupStart())


def end_estimate() -> float:
    """Drops the calls since ``begin_estimate``; returns the microseconds that they would take."""
    version = ctypes.c_int()
    check(library().ncclGetVersion(ctypes.byref(version)))
    info = _SimInfo(ctypes.sizeof(_SimInfo), _MAGIC, version.value, 0.0)
    check(library().ncclGroupSimulateEnd(ctypes.byref(info)))
    return float(info.estimated_time)
