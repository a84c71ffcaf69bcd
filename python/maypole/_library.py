"""Loads the native library and declares its C functions.

The wheel carries the library twice: as ``libnccl.so.2``, for programs that look for NCCL, and
under the soname ``libmayp.so.2``, which this module loads. With the second name a CUDA build of
PyTorch in the same process still finds its own NCCL.
"""

import ctypes
import os
from pathlib import Path

__all__ = ["MaypoleError", "UniqueId", "check", "last_error", "library", "library_path"]


class MaypoleError(RuntimeError):
    """A call of the library failed. ``code`` is the ``ncclResult_t``."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class UniqueId(ctypes.Structure):
    """``ncclUniqueId``: the address of the bootstrap root and the secret of a communicator."""

    _fields_ = [("internal", ctypes.c_char * 128)]

    def to_bytes(self) -> bytes:
        """The 128 bytes."""
        return ctypes.string_at(ctypes.addressof(self), 128)

    @classmethod
    def parse(cls, data: bytes) -> "UniqueId":
        """The unique id that ``to_bytes`` gave on another rank."""
        if len(data) != 128:
            raise ValueError(f"a unique id has 128 bytes, not {len(data)}")
        return cls.from_buffer_copy(data)


def library_path() -> Path:
    """The file of the native library: what MAYPOLE_LIBRARY names, else that of this package."""
    named = os.environ.get("MAYPOLE_LIBRARY")
    if named:
        return Path(named)
    return Path(__file__).parent / "lib" / "libmayp.so.2"


_P, _Z, _I = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
_SIGNATURES = {
    "ncclGetUniqueId": [_P],
    "ncclCommInitRank": [_P, _I, UniqueId, _I],
    "ncclCommSplit": [_P, _I, _I, _P, _P],
    "ncclCommShrink": [_P, _P, _I, _P, _P, _I],
    "ncclCommDestroy": [_P],
    "ncclCommAbort": [_P],
    "ncclCommGetAsyncError": [_P, _P],
    "ncclAllReduce": [_P, _P, _Z, _I, _I, _P, _P],
    "ncclReduce": [_P, _P, _Z, _I, _I, _I, _P, _P],
    "ncclBroadcast": [_P, _P, _Z, _I, _I, _P, _P],
    "ncclReduceScatter": [_P, _P, _Z, _I, _I, _P, _P],
    "ncclAllGather": [_P, _P, _Z, _I, _P, _P],
    "ncclAlltoAll": [_P, _P, _Z, _I, _P, _P],
    "ncclGather": [_P, _P, _Z, _I, _I, _P, _P],
    "ncclScatter": [_P, _P, _Z, _I, _I, _P, _P],
    "ncclSend": [_P, _Z, _I, _I, _P, _P],
    "ncclRecv": [_P, _Z, _I, _I, _P, _P],
    "ncclGroupStart": [],
    "ncclGroupEnd": [],
    "ncclGroupSimulateEnd": [_P],
    "ncclGetVersion": [_P],
    "ncclMemAlloc": [_P, _Z],
    "ncclMemFree": [_P],
    "ncclRedOpCreatePreMulSum": [_P, _P, _I, _I, _P],
    "ncclRedOpDestroy": [_I, _P],
    "maypoleBarrier": [_P, _P],
    "maypoleAllGatherV": [_P, _Z, _P, _P, _P, _I, _P, _P],
    "maypoleReduceScatterV": [_P, _P, _P, _P, _Z, _I, _I, _P, _P],
    "maypoleAlltoAllV": [_P, _P, _P, _P, _P, _P, _I, _P, _P],
    "maypoleStreamCreate": [_P],
    "maypoleStreamDestroy": [_P],
    "maypoleStreamSynchronize": [_P],
    "maypoleStreamGetEventFd": [_P, _P],
}

_loaded: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The native library. Each call of its functions releases the interpreter's lock."""
    global _loaded
    if _loaded is None:
        path = library_path()
        # Python objects live in host memory; without this a machine with a GPU would make
        # communicators of device memory.
        os.environ.setdefault("MAYPOLE_DEVICE", "host")
        try:
            native = ctypes.CDLL(str(path))
        except OSError as error:
            raise ImportError(
                f"cannot load the native library {path}: {error}. Install the wheel of maypole, "
                "or let MAYPOLE_LIBRARY name a libnccl.so of `cargo build --release`"
            ) from error
        for name, arguments in _SIGNATURES.items():
            function = getattr(native, name)
            function.argtypes = arguments
            function.restype = ctypes.c_int
        native.ncclGetLastError.argtypes = [_P]
        native.ncclGetLastError.restype = ctypes.c_char_p
        native.ncclGetErrorString.argtypes = [_I]
        native.ncclGetErrorString.restype = ctypes.c_char_p
        _loaded = native
    return _loaded


def last_error(code: int) -> str:
    """What the library says about the failure ``code`` of the last call of this process."""
    text = (library().ncclGetLastError(None) or b"").decode(errors="replace").strip()
    kind = (library().ncclGetErrorString(code) or b"").decode(errors="replace").strip()
    return f"{text} ({kind})" if text else kind


def check(code: int) -> None:
    """Raises MaypoleError unless ``code`` is ncclSuccess."""
    if code:
        raise MaypoleError(last_error(code), code)
