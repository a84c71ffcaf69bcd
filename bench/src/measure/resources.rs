//! What a process uses: processor time and memory, from the kernel.

use std::time::Duration;

/// Processor time of this process so far, all threads.
pub(super) fn process_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Processor time of the calling thread so far.
pub(super) fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours. Both clocks exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Forgets the largest memory that this process had, so that [`peak_memory`] is about what follows.
pub(super) fn reset_peak() {
    // Without permission the peak stays that of the whole life of the process, which is still a peak.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes: the largest resident memory of this process since [`reset_peak`].
pub(super) fn peak_memory() -> u64 {
    line("/proc/self/status", "VmHWM:")
}

/// Bytes of this process; what several processes share is counted in parts.
pub(super) fn memory() -> u64 {
    line("/proc/self/smaps_rollup", "Pss:")
}

/// Bytes of memory that this machine could give.
pub(super) fn available_memory() -> u64 {
    line("/proc/meminfo", "MemAvailable:")
}

/// The kilobytes that a line of a file of the kernel's tells, as bytes; 0 if it does not.
fn line(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        let block = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(peak_memory() > 32 << 20);
        assert!(memory() > 32 << 20);
        assert!(available_memory() > 0);
        drop(block);
        assert_eq!(line("/proc/self/status", "Nonsense:"), 0);
    }

    #[test]
    fn work_takes_processor_time() {
        let before = (thread_time(), process_time());
        let mut word = 1u64;
        while thread_time() == before.0 {
            word = std::hint::black_box(word.wrapping_mul(3));
        }
        assert!(process_time() > before.1);
    }
}
