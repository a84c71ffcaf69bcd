//! Reduction operators with a factor of each rank's own (`ncclRedOpCreatePreMulSum`).

use std::ffi::c_int;

use maypole::ResultCode;
use maypole::{DType, RedOp, Reduction};

use crate::boundary::invalid_argument;

/// `ncclNumOps`: from this code on, operators are created by clients.
const BUILT_IN: c_int = 5;
/// How many bits of an operator code are its number on its communicator.
const NUMBER_BITS: u32 = 15;

/// The operator of a call. Its factor may have to be read when the call runs, and not before.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ReductionOperator {
    /// The factor, if there is one, is known.
    Known(Reduction),
    /// The factor is the element at this address (`ncclScalarDevice`).
    FactorAt(*const u8),
}

// SAFETY: the client promised that the address is readable until the call has run, on any thread.
unsafe impl Send for ReductionOperator {}

impl ReductionOperator {
    /// The reduction of a call that runs now on host memory.
    #[inline]
    pub(crate) fn resolve(self, dtype: DType) -> Reduction {
        match self {
            Self::Known(reduction) => reduction,
            // SAFETY: the client promised that the address holds an element until the call has run.
            Self::FactorAt(address) => premultiply(unsafe { read_factor(address, dtype) }),
        }
    }

    /// The reduction of a call on a device, which reads a factor in memory itself.
    pub(crate) fn for_device(self) -> Reduction {
        match self {
            Self::Known(reduction) => reduction,
            Self::FactorAt(address) => {
                Reduction { resident: true, ..premultiply(address.addr() as u64) }
            }
        }
    }
}

/// The operators that clients created on a communicator.
pub(crate) struct OperatorTable {
    /// Part of their codes, so that an operator of another communicator is refused.
    communicator: u32,
    created: Vec<Option<(DType, ReductionOperator)>>,
}

impl OperatorTable {
    /// No operators yet, on the communicator of that number.
    pub(crate) fn new(communicator: u32) -> Self {
        Self { communicator, created: Vec::new() }
    }

    /// What the operator code means for elements of `dtype`.
    #[inline]
    pub(crate) fn find(&self, code: c_int, dtype: DType) -> Result<ReductionOperator, ResultCode> {
        match RedOp::ALL.get(code as usize) {
            Some(&op) if code < BUILT_IN => Ok(ReductionOperator::Known(op.into())),
            _ => self.find_created(code, dtype),
        }
    }

    #[cold]
    fn find_created(&self, code: c_int, dtype: DType) -> Result<ReductionOperator, ResultCode> {
        match self.number(code).and_then(|number| self.created.get(number)) {
            Some(&Some((operator_type, operator))) if operator_type == dtype => Ok(operator),
            Some(Some((operator_type, _))) => Err(invalid_argument(&format!(
                "the operator was created for {operator_type}, the call is of {dtype}"
            ))),
            _ => Err(unknown(code)),
        }
    }

    /// Creates an operator and returns its code.
    pub(crate) fn create(
        &mut self,
        dtype: DType,
        operator: ReductionOperator,
    ) -> Result<c_int, ResultCode> {
        let number = self.created.iter().position(Option::is_none).unwrap_or(self.created.len());
        if number >> NUMBER_BITS != 0 {
            return Err(invalid_argument("too many operators on this communicator; destroy some"));
        }
        if number == self.created.len() {
            self.created.push(None);
        }
        self.created[number] = Some((dtype, operator));
        Ok(BUILT_IN + (self.communicator << NUMBER_BITS | number as u32) as c_int)
    }

    /// Destroys the operator of that code.
    pub(crate) fn destroy(&mut self, code: c_int) -> Result<(), ResultCode> {
        let operator = self.number(code).and_then(|number| self.created.get_mut(number));
        match operator.and_then(Option::take) {
            Some(_) => Ok(()),
            None => Err(unknown(code)),
        }
    }

    /// The number in a code of this communicator.
    fn number(&self, code: c_int) -> Option<usize> {
        let code = u32::try_from(code.checked_sub(BUILT_IN)?).ok()?;
        let number = code & ((1 << NUMBER_BITS) - 1);
        (code >> NUMBER_BITS == self.communicator).then_some(number as usize)
    }
}

fn unknown(code: c_int) -> ResultCode {
    invalid_argument(&format!("{code} is not a reduction operator of this communicator"))
}

/// The sum of elements that were multiplied by a factor, whose bits are the low ones of `scalar`.
pub(crate) fn premultiply(scalar: u64) -> Reduction {
    Reduction { scalar, ..RedOp::PreMulSum.into() }
}

/// The element of `dtype` at an address, in the low bytes.
///
/// # Safety
/// `address` is readable for an element.
pub(crate) unsafe fn read_factor(address: *const u8, dtype: DType) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the caller promises that an element is readable; none is larger than eight bytes.
    unsafe { std::ptr::copy_nonoverlapping(address, bytes.as_mut_ptr(), dtype.size()) };
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(operator: Result<ReductionOperator, ResultCode>) -> Reduction {
        operator.unwrap().resolve(DType::Float32)
    }

    #[test]
    fn built_in_operators_are_known_and_no_others() {
        let operators = OperatorTable::new(3);
        for (code, op) in [(0, RedOp::Sum), (4, RedOp::Avg)] {
            assert_eq!(known(operators.find(code, DType::Int8)).op, op);
        }
        for code in [-1, 5, 6, c_int::MAX, c_int::MIN] {
            assert!(operators.find(code, DType::Int8).is_err(), "{code}");
        }
    }

    #[test]
    fn created_operators_belong_to_a_communicator_and_a_type() {
        let mut operators = OperatorTable::new(3);
        let code =
            operators.create(DType::Float32, ReductionOperator::Known(premultiply(7))).unwrap();
        assert!(code >= BUILT_IN);
        assert_eq!(known(operators.find(code, DType::Float32)), premultiply(7));
        assert!(operators.find(code, DType::Float64).is_err());
        assert!(OperatorTable::new(4).find(code, DType::Float32).is_err());
        operators.destroy(code).unwrap();
        assert!(operators.find(code, DType::Float32).is_err());
        assert!(operators.destroy(code).is_err() && operators.destroy(0).is_err());
    }

    #[test]
    fn a_device_factor_is_read_when_the_call_runs() {
        let mut factor = 2f32;
        let address = &raw mut factor;
        let operator = ReductionOperator::FactorAt(address.cast_const().cast());
        // SAFETY: `address` is the address of a local variable.
        unsafe { address.write(3.0) };
        assert_eq!(operator.resolve(DType::Float32), premultiply(u64::from(3f32.to_bits())));
    }
}
