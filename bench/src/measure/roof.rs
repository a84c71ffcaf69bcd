//! --roof: what the machine could do at best. All ranks at once read every byte that they send and write every byte that they
//! receive, once, from and to the same buffers, with the fastest loop that is found. A collective must do at least that, and in
//! addition bring the bytes from rank to rank, add them up, and wait.

use std::hint::black_box;
use std::time::{Duration, Instant};

use maypole::internal::reduce::{FoldKernel, FoldOperands, Isa};
use maypole::{DType, RedOp};

use super::rank::Bench;
use crate::operation::work::Work;
use crate::status::Failure;

/// How long one measurement is, at least.
const LONG: Duration = Duration::from_millis(2);
/// How often it is repeated; the best counts.
const ROUNDS: usize = 3;

/// A loop that copies.
#[derive(Clone, Copy)]
enum Copy {
    /// The C library's.
    Library,
    /// The reduction kernels' for one input, past the caches or through them.
    Kernel { streamed: bool },
}

impl Bench<'_> {
    /// Seconds that the work takes at least; the slowest rank counts.
    pub(super) fn roof(&mut self, work: &Work) -> Result<f64, Failure> {
        let element = work.dtype.size();
        let (read, written) = (work.send_elements() * element, work.recv_elements() * element);
        let kernel = FoldKernel::select(DType::Uint8, RedOp::Max.into(), 1, Isa::detect());
        self.send.prepare(read);
        self.recv.prepare(written);
        let (from, to) = (self.send.pointer(), self.recv.pointer());
        let mut best = f64::INFINITY;
        for copy in
            [Copy::Library, Copy::Kernel { streamed: false }, Copy::Kernel { streamed: true }]
        {
            // SAFETY: the buffers were just prepared for as many bytes, and are two.
            let once = || unsafe { touch(copy, &kernel, from, read, to, written) };
            let start = Instant::now();
            once();
            let wanted = LONG.as_secs_f64() / start.elapsed().as_secs_f64().max(1e-8);
            // All ranks repeat as often, so that all of them are there from the beginning to the end.
            let all = self.member.numbers(&[wanted.ceil().max(1.0)])?;
            let repetitions = all.iter().map(|n| n[0]).fold(1.0, f64::max) as u64;
            for _ in 0..ROUNDS {
                self.member.barrier()?;
                let start = Instant::now();
                (0..repetitions).for_each(|_| once());
                let seconds = start.elapsed().as_secs_f64() / repetitions as f64;
                let slowest =
                    self.member.numbers(&[seconds])?.iter().map(|n| n[0]).fold(0.0, f64::max);
                best = best.min(slowest);
            }
        }
        Ok(best)
    }
}

/// Reads `read` bytes and writes `written`, each once.
///
/// # Safety
/// They are valid for that, and do not overlap.
unsafe fn touch(
    copy: Copy,
    kernel: &FoldKernel,
    from: *const u8,
    read: usize,
    to: *mut u8,
    written: usize,
) {
    let both = read.min(written);
    match copy {
        // SAFETY: the caller's promise.
        Copy::Library => unsafe { std::ptr::copy_nonoverlapping(black_box(from), to, both) },
        Copy::Kernel { streamed } => {
            let (inputs, outputs) = ([black_box(from)], [to]);
            let streamed = u8::from(streamed);
            let pass = FoldOperands {
                inputs: &inputs,
                own: 0,
                outputs: &outputs,
                non_temporal: streamed,
                count: both,
                finish: false,
            };
            // SAFETY: the caller's promise.
            unsafe { kernel.run(&pass) };
        }
    }
    if read > both {
        // SAFETY: the caller's promise.
        let rest = unsafe { std::slice::from_raw_parts(from.add(both), read - both) };
        black_box(sum(rest));
    }
    if written > both {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(to.add(both), 1, written - both) };
    }
    black_box(to);
}

/// Reads all bytes, in words: four sums at once keep as many loads under way as a core can have.
fn sum(bytes: &[u8]) -> u64 {
    let mut sums = [0u64; 8];
    let (blocks, rest) = bytes.as_chunks::<64>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for (sum, &word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(u64::from_le_bytes(word));
        }
    }
    let rest = rest.iter().map(|&byte| u64::from(byte));
    sums.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_reads_and_writes_all() {
        let kernel = FoldKernel::select(DType::Uint8, RedOp::Max.into(), 1, Isa::detect());
        let from: Vec<u8> = (0..1000).map(|i| (i % 251) as u8 + 2).collect();
        for copy in
            [Copy::Library, Copy::Kernel { streamed: false }, Copy::Kernel { streamed: true }]
        {
            for (read, written) in [(1000, 1000), (1000, 300), (300, 1000), (0, 500), (500, 0)] {
                let mut to = vec![0; 1000];
                // SAFETY: both have 1000 bytes.
                unsafe { touch(copy, &kernel, from.as_ptr(), read, to.as_mut_ptr(), written) };
                let both = read.min(written);
                assert_eq!(to[..both], from[..both]);
                assert!(to[both..written].iter().all(|&byte| byte == 1));
                assert!(to[written..].iter().all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn the_sum_is_of_all_bytes() {
        let mut bytes = vec![0; 1000];
        for at in [0, 63, 64, 959, 960, 999] {
            bytes.fill(0);
            bytes[at] = 1;
            assert_ne!(sum(&bytes), 0, "{at}");
        }
    }
}
