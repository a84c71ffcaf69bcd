//! One collective call, as the caller states it.

use maypole_algorithms::{Collective, DType};

use crate::reduce::Reduction;

/// What a caller asks for. Pointers are to host memory; `nccl.h`'s rules for in-place use apply.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What is to be achieved.
    pub collective: Collective,
    /// The send buffer: `count` elements per block, see [`Collective`].
    pub send: *const u8,
    /// The receive buffer, likewise.
    pub recv: *mut u8,
    /// Elements per block: for all-reduce, broadcast and reduce the length of the vector; for all-gather what each rank sends, for
    /// reduce-scatter what each rank receives.
    pub count: usize,
    /// The element type.
    pub dtype: DType,
    /// How contributions are combined; ignored by collectives that do not reduce.
    pub reduction: Reduction,
}
