//! Processor time and memory that a process uses, as the kernel reports them.

use std::path::{Path, PathBuf};
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

/// The memory that this machine has available for the processes of the control group, in bytes.
pub(super) fn available_memory() -> u64 {
    let of_machine = kilobytes_in("/proc/meminfo", "MemAvailable:");
    of_group(&control_group()).map_or(of_machine, |left| left.min(of_machine))
}

/// The address space that the limit of this process (`ulimit -v`, which batch systems set) leaves
/// for buffers, in bytes. A part is kept for the memory that the library needs.
pub(super) fn address_space() -> u64 {
    const LIBRARY: u64 = 256 << 20;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is alive and of the type that the call writes.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    if status != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return u64::MAX;
    }
    let used = kilobytes_in("/proc/self/status", "VmSize:");
    limit.rlim_cur.saturating_sub(used).saturating_sub(LIBRARY)
}

/// The folder of this process's control group of version 2.
fn control_group() -> PathBuf {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Path::new("/sys/fs/cgroup").join(path)
}

/// The memory that a control group and those around it leave, in bytes; None if none has a limit.
fn of_group(folder: &Path) -> Option<u64> {
    let number = |folder: &Path, name: &str| {
        std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok()
    };
    let left = |folder: &Path| {
        let most = number(folder, "memory.max")?;
        Some(most.saturating_sub(number(folder, "memory.current").unwrap_or(0)))
    };
    folder.ancestors().filter_map(left).min()
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
        assert!(available_memory() > 0 && address_space() > 0);
        drop(block);
        assert_eq!(kilobytes_in("/proc/self/status", "Nonsense:"), 0);
    }

    #[test]
    fn the_limit_of_a_control_group_and_of_those_around_it_counts() {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let write = |folder: &Path, name, text| std::fs::write(folder.join(name), text).unwrap();
        write(&inner, "memory.max", "max\n");
        assert_eq!(of_group(&inner), None);
        write(outer.path(), "memory.max", "1000\n");
        write(outer.path(), "memory.current", "400\n");
        assert_eq!(of_group(&inner), Some(600));
        write(&inner, "memory.max", "500\n");
        assert_eq!(of_group(&inner), Some(500));
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
