//! Sums a vector over four ranks, one thread each.

use maypole::{Communicator, Error, RedOp, UniqueId};

const RANKS: u32 = 4;

fn work(id: UniqueId, rank: u32) -> Result<(), Error> {
    let mut comm = Communicator::new(&id, rank, RANKS)?;
    let mut sum = [0.0; 3];
    comm.all_reduce(&[1.0, 2.0, rank as f32], &mut sum, RedOp::Sum)?;
    println!("rank {rank}: {sum:?}");
    Ok(())
}

fn main() -> Result<(), Error> {
    let id = UniqueId::create()?; // its bytes may also travel to other processes
    let ranks = [0, 1, 2, 3].map(|rank| std::thread::spawn(move || work(id, rank)));
    ranks.into_iter().try_for_each(|rank| rank.join().expect("the rank did not panic"))
}
