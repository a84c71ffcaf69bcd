//! The bootstrap of one rank: checks the arguments, starts a root where this rank must, joins, and
//! returns the control tree and the rank infos of all ranks.

use std::time::{Duration, Instant};

use maypole_control::bootstrap::joining::LEAVE_TIME;
use maypole_transport::noise::{KEY_BYTES, Key};

use super::abort::{self, AbortSignal};
use super::control_tree::ControlTree;
use super::error::BootstrapError;
use super::id::{UniqueId, UniqueIdContents};
use super::joining::{JoiningRank, report_failure};
use super::listener_address;
use super::multi_root::RootIds;
use super::options::Options;
use super::poll;
use super::root;

/// Most bytes of a rank info.
pub const MOST_INFO_BYTES: usize = 4096;

/// How long rank 0 tries to listen at an address that is given by `NCCL_COMM_ID`, until the
/// previous root there has ended.
const REBIND_TIME: Duration = Duration::from_secs(5);

/// The result of a bootstrap: a rank that knows the rank infos of all ranks.
pub struct Joined {
    /// This rank.
    pub rank: u32,
    /// The number of ranks.
    pub nranks: u32,
    /// The rank info of each rank, in the order of the ranks.
    pub infos: Vec<Vec<u8>>,
    /// The connections between ranks that the bootstrap made.
    pub control: ControlTree,
    secret: Key,
}

impl Joined {
    /// A key that only the ranks of this communicator can make. Different labels give unrelated
    /// keys, and so do two communicators of one id.
    pub fn derive(&self, label: &str) -> Key {
        self.keys().derive(label)
    }

    /// The source of further keys, which outlives this value.
    pub fn keys(&self) -> CommunicatorKeys {
        CommunicatorKeys(self.secret.clone())
    }
}

/// Makes keys from the secret of a communicator.
pub struct CommunicatorKeys(Key);

impl CommunicatorKeys {
    /// As [`Joined::derive`].
    pub fn derive(&self, label: &str) -> Key {
        self.0.derive("derive", &[label.as_bytes()])
    }

    /// The secret of a child of the communicator. `parts` say which child it is.
    pub fn child(&self, parts: &[&[u8]]) -> Key {
        self.0.derive("child", parts)
    }
}

/// Joins as `rank` of `nranks`, with a rank info of up to [`MOST_INFO_BYTES`] bytes and the
/// configured timeout. Returns when all ranks have joined.
///
/// # Errors
/// A [`BootstrapError`] that names the rank at fault. It is logged here.
pub fn join(id: &UniqueId, rank: u32, nranks: u32, info: &[u8]) -> Result<Joined, BootstrapError> {
    join_with(id, rank, nranks, info, &Options::default())
}

/// As [`join`], with these options.
///
/// # Errors
/// As for [`join`].
pub fn join_with(
    id: &UniqueId,
    rank: u32,
    nranks: u32,
    info: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    join_among(std::slice::from_ref(id), rank, nranks, info, options)
}

/// As [`join_with`], with one or several ids, the same in the same order on all ranks. Their roots
/// divide the ranks.
///
/// # Errors
/// As for [`join`]; also if there are more ids than ranks, if two are the same, or if ranks have
/// different ids.
pub fn join_among(
    ids: &[UniqueId],
    rank: u32,
    nranks: u32,
    info: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    attempt(ids, rank, nranks, info, options).inspect_err(|error| log::warn!("{error}"))
}

fn attempt(
    ids: &[UniqueId],
    rank: u32,
    nranks: u32,
    info: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    if rank >= nranks {
        return Err(BootstrapError::NoSuchRank { rank, nranks });
    }
    if info.len() > MOST_INFO_BYTES {
        return Err(BootstrapError::TooLong { rank, len: info.len(), most: MOST_INFO_BYTES });
    }
    let ids = RootIds::new(ids, nranks)?;
    let salt = Key::random().map_err(|error| BootstrapError::system("getrandom", &error))?;
    if nranks == 1 {
        release_root(&ids.roots[0]);
        return Ok(Joined {
            rank,
            nranks,
            infos: vec![info.to_vec()],
            control: ControlTree::new(0, 1, None),
            secret: communicator_secret(&ids, salt.bytes()),
        });
    }
    if rank == 0 {
        for contents in ids.roots.iter().filter(|root| root.fixed) {
            start_fixed(contents, options)?;
        }
    }
    let own = if rank == 0 { [&salt.bytes()[..], info].concat() } else { info.to_vec() };
    match JoiningRank::new(&ids, rank, nranks, &own, options) {
        Ok(joining) => {
            let (mut infos, control) = joining.run()?;
            let secret = take_salt(&mut infos).map(|salt| communicator_secret(&ids, &salt));
            let secret = secret.ok_or(BootstrapError::Protocol {
                rank,
                peer: String::from("rank 0"),
                what: "a rank info without random bytes",
            })?;
            Ok(Joined { rank, nranks, infos, control, secret })
        }
        Err(error) => {
            report_failure(&ids, &[], rank, nranks, &error);
            Err(error)
        }
    }
}

/// The secret of a communicator. An id that follows from a file makes one communicator after
/// another, whose keys must have nothing in common, so that the secret also follows from random
/// bytes of rank 0, which the other ranks get over the control tree.
fn communicator_secret(ids: &RootIds, salt: &[u8; KEY_BYTES]) -> Key {
    ids.secret.derive("communicator", &[salt])
}

/// Takes the random bytes out of the rank info of rank 0.
fn take_salt(infos: &mut [Vec<u8>]) -> Option<[u8; KEY_BYTES]> {
    let first = infos.first_mut()?;
    let salt = *first.first_chunk()?;
    first.drain(..KEY_BYTES);
    Some(salt)
}

/// Starts the root of an id whose address the user chose; this is done at rank 0.
fn start_fixed(contents: &UniqueIdContents, options: &Options) -> Result<(), BootstrapError> {
    let until = Instant::now() + REBIND_TIME;
    loop {
        match listener_address::listen_at(&contents.root.addresses) {
            Ok((listeners, _)) => {
                return root::start(contents.secret.clone(), listeners, options, None, Vec::new())
                    .map(drop);
            }
            Err(BootstrapError::System { errno: libc::EADDRINUSE, .. })
                if Instant::now() < until =>
            {
                abort::check(options.abort.as_ref(), 0)?;
                let mut fds: Vec<_> = options.abort.iter().map(AbortSignal::poll_fd).collect();
                poll::wait(&mut fds, Instant::now() + Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Ends the root of a communicator of one rank, which needs none, if the root is on this host. A
/// root that cannot be reached ends later by itself. This is short, so no abort ends it.
fn release_root(contents: &UniqueIdContents) {
    if contents.fixed || contents.root.host_tag != listener_address::host_tag() {
        return;
    }
    let options = Options { timeout: LEAVE_TIME, ..Options::default() };
    let ids = RootIds::one(contents.clone());
    let left = JoiningRank::new(&ids, 0, 1, &[], &options).and_then(JoiningRank::run);
    if let Err(error) = left {
        log::info!("a root that is not needed could not be asked to end: {error}");
    }
}
