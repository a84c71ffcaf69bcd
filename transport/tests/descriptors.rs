//! A process that runs out of file descriptors gets an error that says so, whichever call needs
//! one.
//!
//! There is only one test, because it changes the limit of its process.

use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::endpoint::{Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;

fn endpoint(rank: u32) -> Result<Endpoint, LinkError> {
    let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };
    Endpoint::new_without_local(EndpointConfig { rank, nranks: 2, secret: [9; 32].into(), layout })
}

/// Allows only descriptors below `limit`.
fn set_limit(limit: u64) {
    // SAFETY: `now` is alive. The new limit stays below the hard limit.
    unsafe {
        let mut now: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut now), 0);
        now.rlim_cur = limit.min(now.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &now), 0);
    }
}

fn next_descriptor() -> u64 {
    let file = std::fs::File::open("/dev/null").unwrap();
    u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap()
}

#[test]
fn running_out_of_descriptors_is_reported_and_can_be_repaired() {
    let free = next_descriptor();
    // An endpoint needs four.
    for few in 0..4 {
        set_limit(free + few);
        let error = endpoint(0).unwrap_err();
        assert!(matches!(error, LinkError::System { errno: libc::EMFILE, .. }), "{error}");
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        set_limit(1024);
        assert_eq!(next_descriptor(), free, "a failure left descriptors open");
    }
    let (low, high) = (endpoint(0).unwrap(), endpoint(1).unwrap());
    let free = next_descriptor();
    // No descriptor to dial with; then one to dial with and none to accept with.
    set_limit(free);
    let soon = || Instant::now() + Duration::from_millis(300);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(
        matches!(error, LinkError::System { call: "socket", errno: libc::EMFILE, .. }),
        "{error}"
    );
    set_limit(free + 1);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::Timeout { peer: 1, .. }), "{error}");
    // The rank that cannot accept reports why.
    let error = high.connect(0, &low.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::System { errno: libc::EMFILE, .. }), "{error}");
    // Room for both sockets, but not for the inbox.
    set_limit(free + 2);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(
        matches!(error, LinkError::System { call: "recvmsg", errno: libc::EMFILE, .. }),
        "{error}"
    );
    set_limit(1024);
    let soon = || Instant::now() + Duration::from_secs(20);
    low.connect(1, &high.address(), soon()).unwrap();
    high.connect(0, &low.address(), soon()).unwrap();
}
