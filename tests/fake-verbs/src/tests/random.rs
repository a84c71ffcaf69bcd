//! Random programs: whatever the order of execution, the memory of both ends is in the end what the
//! operations give in the order in which they were posted.

use super::*;

/// Bytes that the operations of a program use, so that many of them overlap.
const RANGE: u64 = 4096;
/// Where the data of reads goes.
const READS: usize = 8192;

/// A generator of random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Posts one operation, and does the same with the model of the memories.
fn operate(random: &mut Random, a: &End, b: &End, models: &mut [Vec<u8>; 2], id: u64) {
    let length = random.below(300) as usize;
    let from = random.below(RANGE - 300) as usize;
    let to = random.below(RANGE - 300) as usize;
    let at = |offset: usize| b.card().address + offset as u64;
    let [ours, theirs] = models;
    let mut work;
    match random.below(6) {
        0 => {
            work = rdma(IBV_WR_RDMA_READ, id, b.card());
            work.wr.rdma.remote_addr = at(from);
            ours[READS + to..][..length].copy_from_slice(&theirs[from..][..length]);
            assert_eq!(a.post(&mut work, &mut [a.part(READS + to, length as u32)]), 0);
            return;
        }
        1 => {
            work = request(IBV_WR_SEND, id);
            assert_eq!(b.receive(id, &mut [b.part(to, length as u32)]), 0);
        }
        2 => {
            work = rdma(IBV_WR_RDMA_WRITE_WITH_IMM, id, b.card());
            assert_eq!(b.receive(id, &mut []), 0);
        }
        _ => work = rdma(IBV_WR_RDMA_WRITE, id, b.card()),
    }
    if work.opcode != IBV_WR_SEND {
        work.wr.rdma.remote_addr = at(to);
    }
    theirs[to..][..length].copy_from_slice(&ours[from..][..length]);
    let half = length / 2;
    let parts = [a.part(from, half as u32), a.part(from + half, (length - half) as u32)];
    assert_eq!(a.post(&mut work, &mut parts.clone()), 0);
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let (mut a, b) = (End::new(0, SHAPE), End::new(1, SHAPE));
    b.connect(a.card());
    a.to_init();
    // Without a timer, retries never end.
    let mut attributes = End::connection(b.card());
    attributes.timeout = 0;
    a.to_ready(&mut attributes);
    for byte in &mut a.memory[..RANGE as usize] {
        *byte = random.below(256) as u8;
    }
    let mut models = [a.memory.to_vec(), b.memory.to_vec()];
    let mut id = 0;
    for _ in 0..60 {
        let count = 1 + random.below(12);
        for _ in 0..count {
            operate(&mut random, &a, &b, &mut models, id);
            id += 1;
        }
        for done in id - count..id {
            let completion = a.completion();
            assert_eq!((completion.wr_id, completion.status), (done, IBV_WC_SUCCESS), "{seed}");
        }
        while let Some(received) = b.poll() {
            assert_eq!(received.status, IBV_WC_SUCCESS, "{seed}");
        }
    }
    assert!(models[0] == *a.memory && models[1] == *b.memory, "memory differs, seed {seed}");
}

#[test]
fn programs_give_the_memory_of_their_order() {
    isolated("tests::random::programs_give_the_memory_of_their_order", TWO, || {
        for seed in 0..4 {
            control("order posted");
            run(seed);
            control(&format!("order placement {seed}; loss fake1/1 20000"));
            run(seed);
            control("loss fake1/1 0");
        }
    });
}
