//! Ranks that make different calls: all learn which ranks, and which calls.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use maypole::config::Config;
use maypole::{Call, Collective, Communicator, DType, Error, RedOp};

use super::{as_ranks, reporting_after, sum};
use crate::ranks::share_of;
use crate::splitmix::Random;

/// What is different in the call of one rank.
#[derive(Clone, Copy, Debug)]
enum Deviation {
    Count,
    Type,
    Operator,
    Root,
    Collective,
    /// A call that the others do not make.
    Extra,
    /// A call of no elements, which does not wait.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Plain {
    collective: Collective,
    count: usize,
    dtype: DType,
    op: RedOp,
}

impl Plain {
    fn random(random: &mut Random, nranks: u32) -> Self {
        let root = random.below(u64::from(nranks)) as u32;
        Self {
            collective: random.pick(&[
                Collective::AllReduce,
                Collective::AllGather,
                Collective::ReduceScatter,
                Collective::Broadcast { root },
            ]),
            count: random.pick(&[1, 5, 100, 3000, 70_000]),
            dtype: random.pick(&[DType::Int32, DType::Float32, DType::Uint8]),
            op: random.pick(&[RedOp::Sum, RedOp::Max]),
        }
    }

    fn deviate(self, deviation: Deviation, nranks: u32) -> Self {
        let Self { collective, count, dtype, op } = self;
        match deviation {
            Deviation::Count => Self { count: count + 1, ..self },
            Deviation::Type if dtype == DType::Uint8 => Self { dtype: DType::Int8, ..self },
            Deviation::Type => Self { dtype: DType::Uint32, ..self },
            Deviation::Operator => {
                // All-reduce has an operator.
                let op = if op == RedOp::Sum { RedOp::Max } else { RedOp::Sum };
                Self { collective: Collective::AllReduce, op, ..self }
            }
            Deviation::Root => match collective {
                Collective::Broadcast { root } => {
                    Self { collective: Collective::Broadcast { root: (root + 1) % nranks }, ..self }
                }
                _ => Self { collective: Collective::Broadcast { root: 0 }, ..self },
            },
            Deviation::Collective if collective == Collective::AllReduce => {
                Self { collective: Collective::AllGather, ..self }
            }
            Deviation::Collective => Self { collective: Collective::AllReduce, ..self },
            Deviation::Extra => self,
            Deviation::Nothing => Self { count: 0, ..self },
        }
    }

    fn run(self, comm: &mut Communicator, memory: &Memory) -> Result<(), Error> {
        let call = Call {
            collective: self.collective,
            send: memory.send.as_ptr().cast(),
            recv: memory.recv.as_ptr().cast_mut().cast(),
            count: self.count,
            dtype: self.dtype,
            reduction: self.op.into(),
        };
        // SAFETY: both buffers are larger than any call of this test on so few ranks needs, and
        // outlive the communicator.
        unsafe { comm.run(&call) }
    }
}

/// The buffers of a rank. They outlive all ranks of the test, because a peer may read lent memory
/// until it has failed too.
struct Memory {
    send: Vec<u64>,
    recv: Vec<u64>,
}

fn mismatches(cases: u64, salt: u64) {
    let mut random = Random(salt);
    for case in 0..cases {
        let nranks = 2 + random.below(4) as u32;
        let deviant = random.below(u64::from(nranks)) as u32;
        let deviation = random.pick(&[
            Deviation::Count,
            Deviation::Type,
            Deviation::Operator,
            Deviation::Root,
            Deviation::Collective,
            Deviation::Extra,
            Deviation::Nothing,
        ]);
        let plain = Plain::random(&mut random, nranks);
        // A collective with an operator, so that operators can differ.
        let plain = match deviation {
            Deviation::Operator => Plain { collective: Collective::AllReduce, ..plain },
            _ => plain,
        };
        let config = Config {
            p2p_disable: random.below(2) == 0,
            ..reporting_after(Duration::from_millis(150))
        };
        let warm = random.below(3);
        let kept: Arc<Mutex<Vec<Arc<Memory>>>> = Arc::default();
        let keep = kept.clone();
        let errors = as_ranks(nranks, &config, move |mut comm| {
            let memory = Arc::new(Memory { send: vec![0; 200_000], recv: vec![0; 200_000] });
            keep.lock().expect("a lock").push(memory.clone());
            let deviates = comm.rank() == deviant;
            for _ in 0..warm {
                sum(&mut comm, 1)?;
            }
            let mine = if deviates { plain.deviate(deviation, nranks) } else { plain };
            if deviates && matches!(deviation, Deviation::Extra) {
                let extra = Plain { count: plain.count + 3, ..plain };
                extra.run(&mut comm, &memory)?;
            }
            mine.run(&mut comm, &memory)?;
            // A rank that has not failed yet will fail in one of these calls.
            for _ in 0..100_000 {
                sum(&mut comm, 1)?;
            }
            Ok::<(), Error>(())
        });
        let story = format!("case {case}: {plain:?}, rank {deviant} of {nranks}: {deviation:?}");
        for (rank, error) in errors.iter().enumerate() {
            let Err(Error::Mismatch { ranks, what }) = error else {
                panic!("{story}: rank {rank}: {error:?}");
            };
            let both = ranks.iter().all(|r| what.contains(&format!("rank {r}")));
            assert!(ranks.contains(&deviant) && both, "{story}: rank {rank}: {what}");
            assert!(what.starts_with("in call "), "{story}: rank {rank}: {what}");
        }
    }
}

#[test]
fn ranks_that_make_different_calls_learn_which() {
    let cases = share_of(25, 8).into();
    let threads = [1, 2, 3, 4].map(|salt| std::thread::spawn(move || mismatches(cases, salt)));
    for thread in threads {
        thread.join().expect("all cases end well");
    }
}

#[test]
#[ignore = "takes minutes"]
fn ranks_that_make_different_calls_learn_which_in_many_cases() {
    mismatches(500, 99);
}
