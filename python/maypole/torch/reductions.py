"""How reductions of PyTorch are done: by an operator of the library, or after a gather."""

import ctypes
from typing import Any, Callable, NamedTuple

import torch
from torch.distributed import ReduceOp

from .._library import check, library

__all__ = ["Reduction", "fold", "known_reduction", "reduction"]

_KINDS = ReduceOp.RedOpType

# ncclDataType_t of the types that the library can reduce.
_DATATYPES = {
    torch.int8: 0, torch.uint8: 1, torch.int32: 2, torch.uint32: 3, torch.int64: 4,
    torch.uint64: 5, torch.float16: 6, torch.float32: 7, torch.float64: 8, torch.bfloat16: 9,
    torch.float8_e4m3fn: 10, torch.float8_e5m2: 11,
}
_OPERATORS = {_KINDS.SUM: 0, _KINDS.PRODUCT: 1, _KINDS.MAX: 2, _KINDS.MIN: 3, _KINDS.AVG: 4}
# A bool is a byte of 0 or 1. A sum of bools is true if one is.
_BOOL = {_KINDS.SUM: 2, _KINDS.MAX: 2, _KINDS.BOR: 2, _KINDS.MIN: 3, _KINDS.BAND: 3,
         _KINDS.PRODUCT: 3}
_COMPLEX = {torch.complex64: 7, torch.complex128: 8}
_LINEAR = (_KINDS.SUM, _KINDS.AVG, _KINDS.PREMUL_SUM)
_SCALARS = {torch.float16: torch.float16, torch.bfloat16: torch.bfloat16,
            torch.complex64: torch.float32, torch.complex128: torch.float64}
_FOLDS: dict[Any, Callable[..., Any]] = {
    _KINDS.SUM: torch.add, _KINDS.AVG: torch.add, _KINDS.PRODUCT: torch.mul,
    _KINDS.MAX: torch.maximum, _KINDS.MIN: torch.minimum, _KINDS.BAND: torch.bitwise_and,
    _KINDS.BOR: torch.bitwise_or, _KINDS.BXOR: torch.bitwise_xor,
}


# The reductions of earlier calls. The keys have the operations of PyTorch and not their kinds,
# because Python hashes and compares these ten times as slowly. Operations of one kind are equal.
_known: dict[Any, "Reduction"] = {}


class Reduction(NamedTuple):
    """A reduction by the library. An element of the tensor is ``parts`` of the data type."""

    datatype: int
    operator: int
    parts: int
    is_temporary: bool


def reduction(op: Any, dtype: torch.dtype, comm: int | None) -> Reduction | None:
    """The reduction of the library for an operation of PyTorch; None if it has none."""
    how = _reduction(op, op.op, dtype, comm)
    if how is not None and not how.is_temporary:
        _known[ReduceOp(op.op), dtype] = how
    return how


def known_reduction(op: Any, dtype: torch.dtype) -> Reduction | None:
    """What ``reduction`` has returned for this kind of operation, if it has."""
    return _known.get((op, dtype))


def _reduction(op: Any, kind: Any, dtype: torch.dtype, comm: int | None) -> Reduction | None:
    if kind == _KINDS.AVG and dtype == torch.bool:
        raise ValueError("bool tensors have no average")
    if dtype == torch.bool:
        return Reduction(1, _BOOL[kind], 1, False) if kind in _BOOL else None
    parts = 2 if dtype in _COMPLEX else 1
    if parts == 2 and kind not in _LINEAR:
        return None
    datatype = _COMPLEX.get(dtype, _DATATYPES.get(dtype))
    if datatype is None:
        return None
    if kind == _KINDS.PREMUL_SUM:
        return Reduction(datatype, _premultiplied(op, dtype, datatype, comm), parts, True)
    operator = _OPERATORS.get(kind)
    return None if operator is None else Reduction(datatype, operator, parts, False)


def _premultiplied(op: Any, dtype: torch.dtype, datatype: int, comm: int | None) -> int:
    factor = op.__getstate__()[1]
    scalar = torch.as_tensor(factor).to(_SCALARS.get(dtype, dtype)).reshape(1)
    operator = ctypes.c_int()
    host_immediate = 1
    check(library().ncclRedOpCreatePreMulSum(
        ctypes.byref(operator), scalar.data_ptr(), datatype, host_immediate, comm))
    return operator.value


def fold(op: Any, parts: torch.Tensor) -> torch.Tensor:
    """Reduces ``parts`` over its first dimension, in the order of the ranks."""
    function = _FOLDS.get(op.op)
    if function is None:
        raise ValueError(f"the operation {op.op} is not supported for {parts.dtype}")
    result = parts[0].clone()
    for part in parts[1:]:
        function(result, part, out=result)
    if op.op == _KINDS.AVG:
        rounding = None if result.is_floating_point() or result.is_complex() else "trunc"
        result = torch.div(result, parts.shape[0], rounding_mode=rounding)
    return result
