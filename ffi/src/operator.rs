//! Operators with a factor of each rank's own: `ncclRedOpCreatePreMulSum`.

use std::ffi::{c_int, c_void};

use maypole::ResultCode;
use maypole::{DType, RedOp, Reduction};

use crate::boundary::{NcclResult, answer, invalid};
use crate::collective::data_type;
use crate::cuda;
use crate::export::abi;
use crate::identity::put;
use crate::registry::{self, Handle};

/// `ncclNumOps`: operator codes from here on are made by clients.
const BUILT_IN: c_int = 5;
/// Bits of an operator code for its number on its communicator.
const NUMBER_BITS: u32 = 15;

/// How a call reduces. The factor may be read only when the call runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// This is all.
    Known(Reduction),
    /// The factor is an element behind this address.
    FactorAt(*const u8),
}

// SAFETY: the client promises that the address stays readable until the call has run, on whatever thread that is.
unsafe impl Send for Operation {}

impl Operation {
    /// The reduction of a call that runs now.
    #[inline]
    pub(crate) fn resolve(self, dtype: DType) -> Reduction {
        match self {
            Self::Known(reduction) => reduction,
            // SAFETY: the client promised `ncclScalarDevice`'s address to hold an element until the call has run.
            Self::FactorAt(at) => premultiply(unsafe { read(at, dtype) }),
        }
    }
}

impl Operation {
    /// The reduction of a call for a device, which reads the factor where that is in memory.
    pub(crate) fn on_device(self) -> Reduction {
        match self {
            Self::Known(reduction) => reduction,
            Self::FactorAt(at) => Reduction { resident: true, ..premultiply(at.addr() as u64) },
        }
    }
}

/// The operators made on a communicator.
pub(crate) struct Operators {
    /// Part of their codes: an operator of another communicator is not known here.
    communicator: u32,
    made: Vec<Option<(DType, Operation)>>,
}

impl Operators {
    /// None yet, on the communicator of that number.
    pub(crate) fn new(communicator: u32) -> Self {
        Self { communicator, made: Vec::new() }
    }

    /// What the operator code means for elements of `dtype`.
    #[inline]
    pub(crate) fn find(&self, code: c_int, dtype: DType) -> Result<Operation, ResultCode> {
        match RedOp::ALL.get(code as usize) {
            Some(&op) if code < BUILT_IN => Ok(Operation::Known(op.into())),
            _ => self.find_made(code, dtype),
        }
    }

    #[cold]
    fn find_made(&self, code: c_int, dtype: DType) -> Result<Operation, ResultCode> {
        match self.number(code).and_then(|number| self.made.get(number)) {
            Some(&Some((of, operation))) if of == dtype => Ok(operation),
            Some(Some((of, _))) => {
                Err(invalid(&format!("the operator was made for {of}, the call is of {dtype}")))
            }
            _ => Err(unknown(code)),
        }
    }

    fn make(&mut self, dtype: DType, operation: Operation) -> Result<c_int, ResultCode> {
        let number = self.made.iter().position(Option::is_none).unwrap_or(self.made.len());
        if number >> NUMBER_BITS != 0 {
            return Err(invalid("too many operators on this communicator; destroy some"));
        }
        if number == self.made.len() {
            self.made.push(None);
        }
        self.made[number] = Some((dtype, operation));
        Ok(BUILT_IN + (self.communicator << NUMBER_BITS | number as u32) as c_int)
    }

    fn destroy(&mut self, code: c_int) -> Result<(), ResultCode> {
        let operator = self.number(code).and_then(|number| self.made.get_mut(number));
        match operator.and_then(Option::take) {
            Some(_) => Ok(()),
            None => Err(unknown(code)),
        }
    }

    fn number(&self, code: c_int) -> Option<usize> {
        let made = code.checked_sub(BUILT_IN)?.try_into().ok().map(|made: u32| made)?;
        (made >> NUMBER_BITS == self.communicator)
            .then_some((made & ((1 << NUMBER_BITS) - 1)) as usize)
    }
}

fn unknown(code: c_int) -> ResultCode {
    invalid(&format!("{code} is not a reduction operator of this communicator"))
}

fn premultiply(scalar: u64) -> Reduction {
    Reduction { scalar, ..RedOp::PreMulSum.into() }
}

/// The element of `dtype` at `at`, in the low bytes.
///
/// # Safety
/// `at` is readable for an element.
unsafe fn read(at: *const u8, dtype: DType) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the caller's promise; no element is larger than eight bytes.
    unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), dtype.size()) };
    u64::from_le_bytes(bytes)
}

abi! {
    /// `ncclRedOpCreatePreMulSum`: `scalar` is read now, or, with `ncclScalarDevice`, when the calls that use the operator run.
    fn ncclRedOpCreatePreMulSum(
        op: *mut c_int,
        scalar: *mut c_void,
        dtype: c_int,
        residence: c_int,
        comm: Handle,
    ) -> NcclResult {
        answer(|| {
            put("ncclRedOpCreatePreMulSum", op, || {
                let dtype = data_type(dtype)?;
                let mut entered = registry::enter(comm)?;
                if scalar.is_null() {
                    return Err(invalid("ncclRedOpCreatePreMulSum: the scalar is NULL"));
                }
                let scalar = scalar.cast_const().cast();
                let operation = match residence {
                    0 => {
                        cuda::check_factor(entered.device, scalar)?;
                        Operation::FactorAt(scalar)
                    }
                    // SAFETY: the caller's promise.
                    1 => Operation::Known(premultiply(unsafe { read(scalar, dtype) })),
                    _ => return Err(invalid("ncclRedOpCreatePreMulSum: no such residence")),
                };
                entered.operators.make(dtype, operation)
            })
        })
    }

    /// `ncclRedOpDestroy`
    fn ncclRedOpDestroy(op: c_int, comm: Handle) -> NcclResult {
        answer(|| registry::enter(comm)?.operators.destroy(op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(operation: Result<Operation, ResultCode>) -> Reduction {
        operation.unwrap().resolve(DType::Float32)
    }

    #[test]
    fn built_in_operators_are_known_and_no_others() {
        let operators = Operators::new(3);
        for (code, op) in [(0, RedOp::Sum), (4, RedOp::Avg)] {
            assert_eq!(known(operators.find(code, DType::Int8)).op, op);
        }
        for code in [-1, 5, 6, c_int::MAX, c_int::MIN] {
            assert!(operators.find(code, DType::Int8).is_err(), "{code}");
        }
    }

    #[test]
    fn made_operators_belong_to_a_communicator_and_a_type() {
        let mut operators = Operators::new(3);
        let code = operators.make(DType::Float32, Operation::Known(premultiply(7))).unwrap();
        assert!(code >= BUILT_IN);
        assert_eq!(known(operators.find(code, DType::Float32)), premultiply(7));
        assert!(operators.find(code, DType::Float64).is_err());
        assert!(Operators::new(4).find(code, DType::Float32).is_err());
        operators.destroy(code).unwrap();
        assert!(operators.find(code, DType::Float32).is_err());
        assert!(operators.destroy(code).is_err() && operators.destroy(0).is_err());
    }

    #[test]
    fn a_device_factor_is_read_when_the_call_runs() {
        let mut factor = 2f32;
        let at = &raw mut factor;
        let operation = Operation::FactorAt(at.cast_const().cast());
        // SAFETY: `at` is the address of a local variable.
        unsafe { at.write(3.0) };
        assert_eq!(operation.resolve(DType::Float32), premultiply(u64::from(3f32.to_bits())));
    }
}
