//! Ranks whose programs chose other floating-point environments.

use maypole_algorithms::{Collective, DType, RedOp};
use maypole_reduce::environment::registers;

use super::as_ranks;
use super::case::element;
use crate::call::Call;
use crate::comm::Communicator;
use crate::config::Config;
use crate::error::Error;

/// Rounding toward zero; subnormal inputs and results count as zero.
#[cfg(target_arch = "x86_64")]
pub(super) const UNUSUAL: registers::Control = registers::DEFAULT | 0x8000 | 0x6000 | 0x40;
#[cfg(target_arch = "aarch64")]
pub(super) const UNUSUAL: registers::Control = 1 << 24 | 3 << 22;

/// An all-reduce of `count` elements, some of them subnormal. Returns its result and the control
/// register after it.
pub(super) fn all_reduce(
    comm: &mut Communicator,
    dtype: DType,
    op: RedOp,
    count: usize,
) -> (Result<Vec<u8>, Error>, registers::Control) {
    let (size, rank) = (dtype.size(), comm.rank());
    let send: Vec<u8> = (0..count)
        .flat_map(|index| {
            let bits = element(dtype, 5, rank, index);
            // The lowest bits of the fraction alone are a subnormal number.
            let bits = if index % 3 == 2 { bits & 3 } else { bits };
            bits.to_le_bytes().into_iter().take(size)
        })
        .collect();
    let mut recv = vec![0; count * size];
    let call = Call {
        collective: Collective::AllReduce,
        send: send.as_ptr(),
        recv: recv.as_mut_ptr(),
        count,
        dtype,
        reduction: op.into(),
    };
    // SAFETY: both buffers hold `count` elements.
    let result = unsafe { comm.run(&call) };
    (result.map(|()| recv), registers::read())
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_rank_in_another_environment_gets_the_same_bits_and_keeps_its_environment() {
    let floats = DType::ALL.into_iter().filter(|dtype| dtype.is_float());
    let kinds: Vec<(DType, RedOp)> =
        floats.flat_map(|d| [(d, RedOp::Sum), (d, RedOp::Prod), (d, RedOp::Avg)]).collect();
    let results = as_ranks(4, &Config::default(), move |comm| {
        let expected = if comm.rank() == 2 { UNUSUAL } else { registers::DEFAULT };
        registers::write(expected);
        let mut results = Vec::new();
        for (dtype, op) in &kinds {
            for count in [1, 14, 1000, 30_000] {
                let (result, after) = all_reduce(comm, *dtype, *op, count);
                results.push((*dtype, *op, count, result.expect("a result")));
                if comm.rank() == 2 {
                    assert_eq!(after, UNUSUAL, "{dtype} {op} of {count}");
                }
            }
        }
        // A call that fails: the ranks disagree on the count.
        let count = if comm.rank() == 0 { 300 } else { 301 };
        let (result, after) = all_reduce(comm, DType::Float32, RedOp::Sum, count);
        result.expect_err("the counts differ");
        if comm.rank() == 2 {
            assert_eq!(after, UNUSUAL);
        }
        registers::write(registers::DEFAULT);
        results
    });
    for (rank, found) in results.iter().enumerate() {
        for (one, other) in found.iter().zip(&results[0]) {
            let (dtype, op, count, ..) = *one;
            assert!(one == other, "{dtype} {op} of {count} elements differs on rank {rank}");
        }
    }
}
