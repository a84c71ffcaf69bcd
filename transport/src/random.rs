//! Random bytes from the kernel, for nonces, names and tokens.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::LinkError;

/// Returns bytes that nobody can guess.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], LinkError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(got) => filled += got,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(LinkError::system("getrandom", errno)),
        }
    }
    Ok(bytes)
}
