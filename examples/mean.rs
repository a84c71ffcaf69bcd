//! The mean of a vector over ranks: the step that data-parallel training takes for its gradients.
//!
//! Four ranks as threads; as processes the only difference is that the bytes of the unique id travel by some other means.

use maypole::{Communicator, Error, RedOp, UniqueId};

const RANKS: u32 = 4;
const LEN: usize = 1 << 20;

fn main() -> Result<(), Error> {
    let id = UniqueId::create()?;
    let ranks: Vec<_> =
        (0..RANKS).map(|rank| std::thread::spawn(move || work(&id, rank))).collect();
    for rank in ranks {
        rank.join().expect("a rank panicked")?;
    }
    Ok(())
}

fn work(id: &UniqueId, rank: u32) -> Result<(), Error> {
    let mut comm = Communicator::new(id, rank, RANKS)?;
    let mut gradient: Vec<f32> = (0..LEN).map(|i| (i as u32 % 8 + rank) as f32).collect();
    comm.all_reduce_in_place(&mut gradient, RedOp::Avg)?;
    let offset = (RANKS - 1) as f32 / 2.0;
    assert!(gradient.iter().enumerate().all(|(i, g)| *g == (i % 8) as f32 + offset));
    println!("rank {rank}: mean of {LEN} floats over {RANKS} ranks, element 0 is {}", gradient[0]);
    Ok(())
}
