//! The number of descriptors that this process may have.

use maypole_transport::process::LazyValue;

/// The soft limit is not raised beyond this: programs that this process starts inherit it, and some
/// close every descriptor below it.
const ENOUGH: u64 = 1 << 16;

/// How many descriptors this process may have. The first call raises the soft limit to the hard
/// one, as NCCL does: the usual soft limit of 1024 is too low for many ranks.
pub(crate) fn descriptor_limit() -> u64 {
    static LIMIT: LazyValue<u64> = LazyValue::new(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is alive and of the type that the call writes.
        if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
            return 1024;
        }
        let (soft, wanted) = (limit.rlim_cur, limit.rlim_max.min(ENOUGH));
        if soft >= wanted {
            return soft;
        }
        limit.rlim_cur = wanted;
        // SAFETY: `limit` is alive and of the type that the call reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return soft;
        }
        log::info!(target: "INIT", "the limit of descriptors is raised from {soft} to {wanted}");
        wanted
    });
    *LIMIT
}
