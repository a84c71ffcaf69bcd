//! Reduction operators with a factor: `ncclRedOpCreatePreMulSum` and `ncclRedOpDestroy`.

use std::ffi::{c_int, c_void};

use super::macros::abi;
use crate::arguments::data_type;
use crate::boundary::{NcclResult, guarded, invalid_argument, write_result};
use crate::cuda;
use crate::registry::{self, CommHandle, ReductionOperator, premultiply, read_factor};

/// `ncclScalarDevice`: the factor is read when the calls that use the operator run.
const READ_BY_CALLS: c_int = 0;
/// `ncclScalarHostImmediate`: the factor is read at once.
const READ_AT_ONCE: c_int = 1;

abi! {
    /// `ncclRedOpCreatePreMulSum`: a sum of elements that each rank multiplies by its own factor.
    fn ncclRedOpCreatePreMulSum(
        op: *mut c_int,
        scalar: *mut c_void,
        dtype: c_int,
        residence: c_int,
        comm: CommHandle,
    ) -> NcclResult {
        let create = || {
            let dtype = data_type(dtype)?;
            let mut comm = registry::acquire_exclusive(comm)?;
            if scalar.is_null() {
                return Err(invalid_argument("ncclRedOpCreatePreMulSum: the scalar is NULL"));
            }
            let scalar = scalar.cast_const().cast();
            let operator = match residence {
                READ_BY_CALLS => {
                    cuda::check_factor(comm.device, scalar)?;
                    ReductionOperator::FactorAt(scalar)
                }
                READ_AT_ONCE => {
                    // SAFETY: the client promised that an element is readable at `scalar`.
                    ReductionOperator::Known(premultiply(unsafe { read_factor(scalar, dtype) }))
                }
                _ => {
                    return Err(invalid_argument(&format!(
                        "ncclRedOpCreatePreMulSum: {residence} is not an ncclScalarResidence_t"
                    )));
                }
            };
            comm.operators.create(dtype, operator)
        };
        // SAFETY: the client promised that `op` is NULL or writable.
        guarded(|| unsafe { write_result("ncclRedOpCreatePreMulSum", op, create) })
    }

    /// `ncclRedOpDestroy`
    fn ncclRedOpDestroy(op: c_int, comm: CommHandle) -> NcclResult {
        guarded(|| registry::acquire_exclusive(comm)?.operators.destroy(op))
    }
}
