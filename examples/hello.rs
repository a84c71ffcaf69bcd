//! Says hello from every process that a launcher started:
//!
//! ```sh
//! cargo build --release --example hello
//! mpirun -n 4 target/release/examples/hello
//! torchrun --no-python --nproc-per-node 4 target/release/examples/hello
//! ```

use maypole::{Communicator, Error, RedOp};

fn main() -> Result<(), Error> {
    let mut comm = Communicator::from_env()?;
    let (rank, nranks) = (comm.rank(), comm.nranks());
    let mut sum = [0];
    comm.all_reduce(&[rank], &mut sum, RedOp::Sum)?;
    println!("rank {rank} of {nranks}: the sum of all ranks is {}", sum[0]);
    Ok(())
}
