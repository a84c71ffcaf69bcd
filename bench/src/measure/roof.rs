//! `--roof`: the least time that the machine needs. All ranks at once read every byte that they
//! send and write every byte that they receive, once, in the same buffers, with the fastest loop
//! that is found. A collective must do at least that; it must also move the bytes between the
//! ranks, add them up, and wait.

use std::hint::black_box;
use std::time::{Duration, Instant};

use maypole::internal::reduce::{FoldKernel, FoldOperands, Isa};
use maypole::{DType, RedOp};

use super::rank::RankBench;
use crate::call_timing::slowest_seconds_per_call;
use crate::operation::work::RankWork;
use crate::status::Failure;

/// The least length of one measurement.
const MEASUREMENT: Duration = Duration::from_millis(2);
/// How often each measurement is repeated; the fastest counts.
const ROUNDS: usize = 3;

/// A way to copy.
#[derive(Clone, Copy)]
enum CopyLoop {
    /// The C library's memcpy.
    Library,
    /// The reduction kernel for one input, with streaming or ordinary stores.
    Kernel { streamed: bool },
}

impl RankBench<'_> {
    /// The least seconds for the work, in the slowest rank.
    pub(super) fn roof(&mut self, work: &RankWork) -> Result<f64, Failure> {
        let element = work.dtype.size();
        let (read, written) = (work.send_elements() * element, work.recv_elements() * element);
        let kernel = FoldKernel::select(DType::Uint8, RedOp::Max.into(), 1, Isa::detect());
        self.send.prepare(read);
        self.recv.prepare(written);
        let (from, to) = (self.send.pointer(), self.recv.pointer());
        let mut best = f64::INFINITY;
        for copy in [
            CopyLoop::Library,
            CopyLoop::Kernel { streamed: false },
            CopyLoop::Kernel { streamed: true },
        ] {
            // SAFETY: the two buffers do not overlap, and `prepare` made them long enough.
            let once = || unsafe { touch(copy, &kernel, from, read, to, written) };
            let start = Instant::now();
            once();
            let wanted = MEASUREMENT.as_secs_f64() / start.elapsed().as_secs_f64().max(1e-8);
            // All ranks repeat equally often, so that all run at the same time throughout.
            let repetitions = self.thread.maximum(wanted.ceil().max(1.0))? as usize;
            for _ in 0..ROUNDS {
                let slowest = slowest_seconds_per_call(self.thread, repetitions, || {
                    once();
                    Ok(())
                })?;
                best = best.min(slowest);
            }
        }
        Ok(best)
    }
}

/// Reads `read` bytes at `from` and writes `written` bytes at `to`, each once.
///
/// # Safety
/// `from` must be readable for `read` bytes and `to` writable for `written` bytes, and the two must
/// not overlap.
unsafe fn touch(
    copy: CopyLoop,
    kernel: &FoldKernel,
    from: *const u8,
    read: usize,
    to: *mut u8,
    written: usize,
) {
    let both = read.min(written);
    match copy {
        // SAFETY: `both` is at most `read` and `written`; the caller vouches for these.
        CopyLoop::Library => unsafe { std::ptr::copy_nonoverlapping(black_box(from), to, both) },
        CopyLoop::Kernel { streamed } => {
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
            // SAFETY: `both` is at most `read` and `written`; the caller vouches for these.
            unsafe { kernel.run(&pass) };
        }
    }
    if read > both {
        // SAFETY: the rest lies within the `read` bytes that the caller vouches for.
        let rest = unsafe { std::slice::from_raw_parts(from.add(both), read - both) };
        black_box(sum(rest));
    }
    if written > both {
        // SAFETY: the rest lies within the `written` bytes that the caller vouches for.
        unsafe { std::ptr::write_bytes(to.add(both), 1, written - both) };
    }
    black_box(to);
}

/// Reads all bytes, as words of 8 bytes. Eight sums at once keep as many loads in flight as a core
/// can have.
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
    fn every_loop_reads_and_writes_all_bytes() {
        let kernel = FoldKernel::select(DType::Uint8, RedOp::Max.into(), 1, Isa::detect());
        let from: Vec<u8> = (0..1000).map(|i| (i % 251) as u8 + 2).collect();
        for copy in [
            CopyLoop::Library,
            CopyLoop::Kernel { streamed: false },
            CopyLoop::Kernel { streamed: true },
        ] {
            for (read, written) in [(1000, 1000), (1000, 300), (300, 1000), (0, 500), (500, 0)] {
                let mut to = vec![0; 1000];
                // SAFETY: both buffers have 1000 bytes, and they are two allocations.
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
