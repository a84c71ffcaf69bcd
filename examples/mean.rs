//! Computes the mean of a vector over all ranks, as data-parallel training does with its gradients.
//!
//! The ranks are four threads. With `Communicator::from_env` in place of `in_threads` they are the
//! processes of a launcher.

use maypole::{Communicator, Error, RedOp};

const RANKS: u32 = 4;
const LEN: usize = 1 << 20;

fn main() -> Result<(), Error> {
    Communicator::in_threads(RANKS, work).map(drop)
}

fn work(comm: &mut Communicator) -> Result<(), Error> {
    let rank = comm.rank();
    let mut gradient: Vec<f32> = (0..LEN).map(|i| (i as u32 % 8 + rank) as f32).collect();
    comm.all_reduce_in_place(&mut gradient, RedOp::Avg)?;
    let offset = (RANKS - 1) as f32 / 2.0;
    assert!(gradient.iter().enumerate().all(|(i, g)| *g == (i % 8) as f32 + offset));
    println!("rank {rank}: mean of {LEN} floats over {RANKS} ranks, element 0 is {}", gradient[0]);
    Ok(())
}
