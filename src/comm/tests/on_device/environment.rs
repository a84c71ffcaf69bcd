//! The floating-point environment of a host thread changes nothing on a device.

use maypole_algorithms::{DType, RedOp};
use maypole_reduce::environment::registers;

use super::super::as_ranks;
use super::super::environment::{UNUSUAL, all_reduce};
use super::support::{on_devices, simulator};
use crate::config::Config;

const KINDS: [(DType, RedOp); 4] = [
    (DType::Float32, RedOp::Sum),
    (DType::Float32, RedOp::Avg),
    (DType::Float16, RedOp::Sum),
    (DType::Float8E4M3, RedOp::Prod),
];

#[test]
fn a_rank_in_another_environment_has_the_bits_of_the_host() {
    let simulator = simulator();
    let on_device = on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        if rank.comm.rank() == 1 {
            registers::write(UNUSUAL);
        }
        let results = KINDS.map(|(dtype, op)| {
            let (result, after) = all_reduce(&mut rank.comm, dtype, op, 5000);
            assert!(rank.comm.rank() == 0 || after == UNUSUAL);
            result.expect("a result")
        });
        registers::write(registers::DEFAULT);
        results
    });
    let on_host = as_ranks(2, &Config::default(), |comm| {
        KINDS.map(|(dtype, op)| all_reduce(comm, dtype, op, 5000).0.expect("a result"))
    });
    assert!(on_device == on_host);
}
