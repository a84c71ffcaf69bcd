//! One call on guarded memory, compared bit for bit with a scalar evaluation of its proved tree.

#[path = "../../../tests/support/element_bits.rs"]
mod element_bits;

use std::ops::{Deref, DerefMut};

use maypole_algorithms::semantics::Algebra;
use maypole_algorithms::{Collective, DType, RedOp, Schedule};
use maypole_reduce::{Reduction, scalar};

use super::Random;
use crate::call::{Call, Task};
use crate::comm::Communicator;
use crate::geometry::Geometry;
use crate::memory::SharedBuffer;
use crate::plan::{PlanKey, proofs};
use crate::tune::{Choice, Protocol};
pub(super) use element_bits::element;

pub(super) struct Numbers {
    pub(super) dtype: DType,
    pub(super) op: RedOp,
    pub(super) nranks: u32,
}

impl Algebra for Numbers {
    type Value = u64;

    fn contribute(&mut self, value: u64) -> u64 {
        value
    }

    fn combine(&mut self, left: u64, right: u64) -> u64 {
        scalar::combine(self.dtype, self.op, left, right)
    }

    fn finish(&mut self, value: u64) -> u64 {
        scalar::finish(self.dtype, self.op, self.nranks, value)
    }
}

/// One random call, the same on all ranks but for each rank's own scalar.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) collective: Collective,
    pub(super) dtype: DType,
    pub(super) op: RedOp,
    pub(super) count: usize,
    pub(super) in_place: bool,
    /// The number of bytes by which the buffers are not aligned.
    pub(super) skew: usize,
    /// The buffers lie in a `SharedBuffer`, so that other processes may read them in place.
    pub(super) shared: bool,
    pub(super) seed: u64,
}

pub(super) const GUARD: usize = 192;

pub(super) const FILL: u8 = 0xa5;

impl Case {
    pub(super) fn random(random: &mut Random, collective: Collective) -> Self {
        let sizes = [0, 1, 2, 3, 7, 13, 64, 100, 447, 449, 1000, 1793, 5000, 20_011];
        let in_place = random.below(2) == 1;
        Self {
            collective,
            dtype: random.pick(&DType::ALL),
            op: random.pick(&RedOp::ALL),
            count: random.pick(&sizes),
            in_place,
            skew: random.pick(&[0, 0, 1, 3, 8, 33]),
            shared: random.below(2) == 1,
            seed: random.next(),
        }
    }

    /// The call on `rank`, without its buffers.
    pub(super) fn call(&self, rank: u32) -> Call {
        Call {
            collective: self.collective,
            send: std::ptr::null(),
            recv: std::ptr::null_mut(),
            count: self.count,
            dtype: self.dtype,
            reduction: self.reduction(rank),
        }
    }

    pub(super) fn reduction(&self, rank: u32) -> Reduction {
        let scalar = element(self.dtype, !self.seed, rank, 0);
        if self.op == RedOp::PreMulSum {
            Reduction { scalar, ..self.op.into() }
        } else {
            self.op.into()
        }
    }

    /// Runs the call. The plan that the communicator has or makes for it must be of `schedule`.
    pub(super) fn run(&self, comm: &mut Communicator, schedule: &Schedule) -> Result<(), String> {
        let (rank, nranks, size) = (comm.rank(), comm.nranks(), self.dtype.size());
        let blocks = |chunks: u32| chunks as usize * self.count * size;
        let send_len = blocks(self.collective.input_chunks(nranks, 1));
        let recv_len = blocks(self.collective.output_chunks(nranks, 1));
        let mut input = Vec::with_capacity(send_len);
        for i in 0..send_len / size {
            input.extend(&element(self.dtype, self.seed, rank, i).to_le_bytes()[..size]);
        }
        let mut send = Guarded::new(send_len, self.skew, self.shared);
        let mut recv = Guarded::new(recv_len, self.skew ^ 4, self.shared);
        let large = send_len.max(recv_len);
        let mut both = Guarded::new(large, self.skew, self.shared);
        let block = rank as usize * self.count * size;
        let (send_at, recv_at) = match self.collective {
            Collective::AllGather => (block, 0),
            Collective::ReduceScatter => (0, block),
            Collective::Gather { root } if root == rank => (block, 0),
            Collective::Scatter { root } if root == rank => (0, block),
            _ => (0, 0),
        };
        let mut before = Vec::new();
        let (from, to) = if self.in_place {
            both.bytes()[send_at..send_at + send_len].copy_from_slice(&input);
            before = both.bytes().to_vec();
            let base = both.bytes().as_mut_ptr();
            // SAFETY: both places lie within the buffer.
            unsafe { (base.add(send_at).cast_const(), base.add(recv_at)) }
        } else {
            send.bytes().copy_from_slice(&input);
            (send.bytes().as_ptr(), recv.bytes().as_mut_ptr())
        };
        let call = Call { send: from, recv: to, ..self.call(rank) };
        // From now on peers have mapped the memory, if it is shared.
        for memory in [&send.memory, &recv.memory, &both.memory] {
            let registered = comm.register(memory.as_ptr(), memory.len());
            assert_eq!(registered.map_err(|e| e.to_string())?, self.shared);
        }
        // SAFETY: the buffers are as long as the collective asks for.
        unsafe { comm.run(&call) }.map_err(|e| e.to_string())?;
        if self.count == 0 {
            return Ok(());
        }
        let receives = match self.collective {
            Collective::Reduce { root } | Collective::Gather { root } => root == rank,
            _ => true,
        };
        let result = if self.in_place {
            // Bytes that are not part of the result must not change.
            let after = both.bytes();
            let results = if receives { recv_at..recv_at + recv_len } else { 0..0 };
            let stays = |at: &usize| !results.contains(at) && before[*at] != after[*at];
            if let Some(at) = (0..large).find(stays) {
                return Err(format!("byte {at} of the buffer, which is no result, was changed"));
            }
            after[recv_at..recv_at + recv_len].to_vec()
        } else {
            recv.bytes().to_vec()
        };
        if !self.in_place && send.bytes() != input {
            return Err("the send buffer was changed".to_owned());
        }
        if !self.in_place && !receives && result.iter().any(|b| *b != FILL) {
            return Err("the receive buffer of a rank that gets nothing was changed".to_owned());
        }
        if ![&send, &recv, &both].iter().all(|b| b.is_intact()) {
            return Err("memory beside a buffer was written".to_owned());
        }
        self.check(rank, schedule, &call, &result)
    }

    /// Compares bit for bit with a scalar evaluation of the proved tree of each element's chunk.
    pub(super) fn check(
        &self,
        rank: u32,
        schedule: &Schedule,
        call: &Call,
        result: &[u8],
    ) -> Result<(), String> {
        let (nranks, size) = (schedule.nranks, self.dtype.size());
        let proved = proofs::proved(schedule.clone()).map_err(|e| e.to_string())?;
        let geometry = Geometry::new(schedule, &Task::from(call), usize::MAX);
        let mut numbers = Numbers { dtype: self.dtype, op: self.op, nranks };
        for chunk in 0..schedule.output_chunks() {
            // A rank that gets nothing has no tree.
            let Some(tree) = proved.tree(rank, chunk) else { continue };
            let out = geometry.output(rank, chunk);
            for i in 0..out.len {
                let expected = tree.evaluate(&mut numbers, |from, input| {
                    let at = geometry.input(from, input).start + i;
                    let value = element(self.dtype, self.seed, from, at);
                    if !self.collective.reduces() {
                        return value;
                    }
                    scalar::contribute(self.dtype, self.reduction(from), nranks, value)
                });
                let at = (out.start + i) * size;
                let mut bits = [0; 8];
                bits[..size].copy_from_slice(&result[at..at + size]);
                let got = u64::from_le_bytes(bits);
                if got != expected {
                    return Err(format!(
                        "element {}: {got:#x} instead of {expected:#x}",
                        out.start + i
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Bytes between two guards that must not change.
pub(super) struct Guarded {
    memory: CaseMemory,
    start: usize,
    len: usize,
}

impl Guarded {
    pub(super) fn new(len: usize, skew: usize, shared: bool) -> Self {
        let bytes = len + 2 * GUARD + 64;
        let mut memory = if shared {
            CaseMemory::Shared(SharedBuffer::new(bytes).expect("memory"))
        } else {
            CaseMemory::Ordinary(vec![0; bytes])
        };
        memory.fill(FILL);
        let start = GUARD + skew + memory.as_ptr().align_offset(64) % 64;
        Self { memory, start: start.min(2 * GUARD), len }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    pub(super) fn is_intact(&self) -> bool {
        let (before, rest) = self.memory.split_at(self.start);
        before.iter().chain(&rest[self.len..]).all(|b| *b == FILL)
    }
}

enum CaseMemory {
    Ordinary(Vec<u8>),
    Shared(SharedBuffer),
}

impl Deref for CaseMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Ordinary(memory) => memory,
            Self::Shared(memory) => memory,
        }
    }
}

impl DerefMut for CaseMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Ordinary(memory) => memory,
            Self::Shared(memory) => memory,
        }
    }
}

/// Plans `schedule` for calls like the case, whatever the tuner would choose.
pub(super) fn plan(
    comm: &mut Communicator,
    schedule: Schedule,
    case: &Case,
    protocol: Protocol,
    tile: usize,
) {
    try_plan(comm, schedule, case, protocol, tile).expect("a plan");
}

/// The same, if the links can be opened.
pub(super) fn try_plan(
    comm: &mut Communicator,
    schedule: Schedule,
    case: &Case,
    protocol: Protocol,
    tile: usize,
) -> Result<(), String> {
    let (algorithm, detail) = (schedule.name, schedule.detail.clone());
    let choice = Choice { algorithm, detail, protocol, tile, predicted: 0.0, others: Vec::new() };
    let call = case.call(comm.rank());
    let plan = comm.plan(schedule, &choice, &Task::from(&call)).map_err(|e| e.to_string())?;
    comm.plans.insert(PlanKey::new(&call), plan);
    Ok(())
}
