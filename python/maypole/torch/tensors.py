"""The memory of tensors, as the calls of the library need it."""

import ctypes
import weakref
from typing import Any, Callable

import torch

from .._library import check, library

__all__ = ["allocate", "copier", "nbytes", "pack", "result_memory", "size_array", "unpack"]


def allocate(size: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor in memory that the other processes of the host read in place."""
    if size == 0:
        return torch.empty(0, dtype=dtype)
    length = size * dtype.itemsize
    pointer = ctypes.c_void_p()
    check(library().ncclMemAlloc(ctypes.byref(pointer), length))
    assert pointer.value is not None
    memory = (ctypes.c_ubyte * length).from_address(pointer.value)
    # The tensor keeps the array, which frees the memory when nothing uses it any more.
    freed = weakref.finalize(memory, library().ncclMemFree, pointer.value)
    freed.atexit = False
    return torch.frombuffer(memory, dtype=dtype)


def nbytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def size_array(counts: list[int]) -> Any:
    return (ctypes.c_size_t * len(counts))(*counts)


def copier(tensor: Any, source: Any) -> Callable[[], None]:
    return lambda: tensor.copy_(source)


def result_memory(output: Any) -> tuple[Any, Callable[[], None] | None]:
    """Contiguous memory for a result, and what copies it to the tensor."""
    if output.is_contiguous():
        return output, None
    target = torch.empty(output.shape, dtype=output.dtype)
    return target, copier(output, target)


def pack(tensors: list[Any]) -> torch.Tensor:
    if not tensors:
        return torch.empty(0, dtype=torch.uint8)
    return torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in tensors])


def unpack(flat: torch.Tensor, tensors: list[Any]) -> None:
    begin = 0
    for tensor in tensors:
        end = begin + nbytes(tensor)
        # A part may begin at an address that its type does not allow.
        part = flat[begin:end] if begin % tensor.element_size() == 0 else flat[begin:end].clone()
        tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
        begin = end
