//! A process without file descriptors left is told so, whichever call needs one. Alone in its process, whose limit it
//! changes.

use std::time::{Duration, Instant};

use maypole_transport::LinkError;
use maypole_transport::endpoint::{Endpoint, EndpointConfig};
use maypole_transport::inbox::InboxLayout;

fn make(rank: u32) -> Result<Endpoint, LinkError> {
    let layout = InboxLayout { nranks: 2, channels: 1, slot_bytes: 4096, depth: 2 };
    Endpoint::new_without_local(EndpointConfig { rank, nranks: 2, secret: [9; 32], layout })
}

/// Allows descriptors below `limit`.
fn allow(limit: u64) {
    // SAFETY: the limit is alive; raising it again stays below the hard one.
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
fn running_out_is_told_and_heals() {
    let free = next_descriptor();
    // An endpoint needs four.
    for few in 0..4 {
        allow(free + few);
        let error = make(0).unwrap_err();
        assert!(matches!(error, LinkError::System { errno: libc::EMFILE, .. }), "{error}");
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        allow(1024);
        assert_eq!(next_descriptor(), free, "a failure left descriptors open");
    }
    let (low, high) = (make(0).unwrap(), make(1).unwrap());
    let free = next_descriptor();
    // None to dial with; then one to dial with but none to accept with.
    allow(free);
    let soon = || Instant::now() + Duration::from_millis(300);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(
        matches!(error, LinkError::System { call: "socket", errno: libc::EMFILE, .. }),
        "{error}"
    );
    allow(free + 1);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::Timeout { peer: 1, .. }), "{error}");
    // The one that cannot accept knows why.
    let error = high.connect(0, &low.address(), soon()).unwrap_err();
    assert!(matches!(error, LinkError::System { errno: libc::EMFILE, .. }), "{error}");
    // Room for both sockets and not for the inbox.
    allow(free + 2);
    let error = low.connect(1, &high.address(), soon()).unwrap_err();
    assert!(
        matches!(error, LinkError::System { call: "recvmsg", errno: libc::EMFILE, .. }),
        "{error}"
    );
    allow(1024);
    let soon = || Instant::now() + Duration::from_secs(20);
    low.connect(1, &high.address(), soon()).unwrap();
    high.connect(0, &low.address(), soon()).unwrap();
}
