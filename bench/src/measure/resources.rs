//! Processor time and memory that a process uses, as the kernel reports them.

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
    // SAFETY: `time` is writable. Both clocks exist on every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resets the peak memory of this process, so that [`peak_memory`] is the peak from now on.
pub(super) fn reset_peak() {
    // Without permission the peak remains that of the whole life of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The largest resident memory of this process since [`reset_peak`], in bytes.
pub(super) fn peak_memory() -> u64 {
    kilobytes_in("/proc/self/status", "VmHWM:")
}

/// The memory of this process in bytes. Memory that several processes share is divided among them.
pub(super) fn memory() -> u64 {
    kilobytes_in("/proc/self/smaps_rollup", "Pss:")
}

/// The memory that this machine has available, in bytes.
pub(super) fn available_memory() -> u64 {
    kilobytes_in("/proc/meminfo", "MemAvailable:")
}

/// A value in a file of the kernel that is given in kilobytes, in bytes; 0 if it is not there.
fn kilobytes_in(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_reports_memory() {
        let block = std::hint::black_box(vec![1u8; 32 << 20]);
        assert!(peak_memory() > 32 << 20);
        assert!(memory() > 32 << 20);
        assert!(available_memory() > 0);
        drop(block);
        assert_eq!(kilobytes_in("/proc/self/status", "Nonsense:"), 0);
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
