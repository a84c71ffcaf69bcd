"""Addresses, lengths and element types of Python objects that contain arrays."""

import ctypes
import math
from typing import Any, NamedTuple

__all__ = ["Array", "readable", "writable"]

# ncclDataType_t by the type string of the array interface without its byte order.
_TYPES = {"i1": 0, "u1": 1, "b1": 1, "i4": 2, "u4": 3, "i8": 4, "u8": 5, "f2": 6, "f4": 7, "f8": 8}
# The type strings of the format characters of the buffer protocol.
_FORMATS = {
    "b": "i1", "B": "u1", "c": "u1", "?": "b1", "i": "i4", "I": "u4", "l": "i8", "L": "u8",
    "q": "i8", "Q": "u8", "e": "f2", "f": "f4", "d": "f8",
}


class Array(NamedTuple):
    """A contiguous array. ``owner`` keeps its memory alive."""

    address: int
    count: int
    datatype: int
    owner: Any


def readable(value: Any) -> Array:
    """The array of an object that a call reads."""
    return _array(value, write=False)


def writable(value: Any) -> Array:
    """The array of an object that a call writes."""
    return _array(value, write=True)


def _array(value: Any, write: bool) -> Array:
    interface = getattr(value, "__array_interface__", None)
    if interface is not None:
        return _of_interface(value, interface, write)
    view = memoryview(value)
    if write and view.readonly:
        raise ValueError("the object is read-only and cannot receive a result")
    if not view.c_contiguous:
        raise ValueError("the array is not contiguous; copy it first")
    kind = _FORMATS.get(view.format.lstrip("@=<") if view.format else "B")
    if kind is None or int(kind[1:]) != view.itemsize:
        raise TypeError(f"elements of the format {view.format!r} cannot be sent")
    count = view.nbytes // view.itemsize
    return Array(_address(view), count, _TYPES[kind], view)


def _of_interface(value: Any, interface: dict[str, Any], write: bool) -> Array:
    kind = interface["typestr"]
    if kind[0] == ">" or kind[1:] not in _TYPES:
        raise TypeError(f"elements of the type {kind!r} cannot be sent")
    address, readonly = interface["data"]
    if write and readonly:
        raise ValueError("the array is read-only and cannot receive a result")
    itemsize, shape = int(kind[2:]), interface["shape"]
    strides = interface.get("strides")
    if strides is not None and strides != _c_strides(shape, itemsize):
        raise ValueError("the array is not contiguous; copy it first")
    return Array(address, math.prod(shape), _TYPES[kind[1:]], value)


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides: list[int] = []
    for length in reversed(shape):
        strides.insert(0, itemsize)
        itemsize *= length
    return tuple(strides)


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``."""

    _fields_ = [
        ("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int), ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p), ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p), ("internal", ctypes.c_void_p),
    ]


def _address(view: memoryview) -> int:
    if view.nbytes == 0:
        return 0
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        return buffer.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
