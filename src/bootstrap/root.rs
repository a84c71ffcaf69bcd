//! The bootstrap root: learns where each rank listens, and informs each rank where its parent
//! listens. Rank infos and everything after them go through the control tree. A rank leaves the
//! root as soon as it is connected to its parent, so the root has connections only to ranks that
//! wait for others. It ends when all ranks have left.
//!
//! The root is one thread in the process that made the unique id. It never waits for a single
//! connection.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_transport::noise::{Binding, Key, Purpose};

use super::abort::AbortSignal;
use super::accept::HandshakeAcceptor;
use super::error::BootstrapError;
use super::frame::{ControlFrame, RankRegistration};
use super::frame_stream::{FrameStream, SecureStream, StreamEnd, close_gracefully};
use super::listener_address::ListenerAddresses;
use super::options::Options;
use super::poll;
use super::rank_set::RankSet;
use super::root_share::RootShare;
use super::traffic::ControlTraffic;
use crate::config::Config;
use crate::process;

/// How long the root stays when no rank is connected to it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long a rank whose handshake succeeded may take to register.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time after which missing ranks are named. It is doubled each time, so it must not be
/// zero.
const SHORTEST_NOTICE: Duration = Duration::from_millis(10);
/// How much longer than the deadline the root waits when all ranks have come, for them to find out
/// which rank delays the others.
const VERDICT_TIME: Duration = Duration::from_secs(10);
/// How long the root waits at its end for its last frames to be read.
const LAST_FRAMES_TIME: Duration = Duration::from_secs(2);

/// The traffic of the roots of this process that have ended, by a proof of their secrets.
#[cfg(test)]
pub(super) static ENDED: std::sync::Mutex<Vec<([u8; 32], ControlTraffic)>> =
    std::sync::Mutex::new(Vec::new());

/// Starts the root of a unique id on these listeners. It ends early when `stop` is raised.
///
/// # Errors
/// [`BootstrapError::System`] if no thread can be made.
pub(super) fn start(
    secret: Key,
    listeners: Vec<TcpListener>,
    options: &Options,
    stop: Option<AbortSignal>,
) -> Result<JoinHandle<()>, BootstrapError> {
    #[cfg(test)]
    let proof = *secret.derive("ended", &[]).bytes();
    let root = RootServer {
        acceptor: HandshakeAcceptor::new(listeners, secret, Purpose::Root, 0),
        stop,
        unregistered: Vec::new(),
        ranks: BTreeMap::new(),
        nranks: None,
        share: None,
        started: None,
        deadline: None,
        verdict: None,
        next_notice: options.notice.max(SHORTEST_NOTICE),
        idle_since: Instant::now(),
        traffic: ControlTraffic::default(),
    };
    let run = move || {
        let _traffic = root.serve();
        #[cfg(test)]
        ENDED.lock().expect("nobody panics with it").push((proof, _traffic));
    };
    process::spawn_thread("maypole-root", None, run)
        .map_err(|error| BootstrapError::system("pthread_create", &error))
}

/// The state of the root.
struct RootServer {
    acceptor: HandshakeAcceptor,
    /// Ends the root without a message to the ranks.
    stop: Option<AbortSignal>,
    /// Connections whose handshake succeeded and that have not registered.
    unregistered: Vec<UnregisteredRank>,
    /// The ranks that have registered.
    ranks: BTreeMap<u32, RegisteredRank>,
    /// The number of ranks, as the first rank says.
    nranks: Option<u32>,
    /// The share of this root, as the first rank says, and how many ranks register here.
    share: Option<(RootShare, usize)>,
    /// When the first rank came.
    started: Option<Instant>,
    /// The earliest deadline of all ranks.
    deadline: Option<Instant>,
    /// The error of a rank that gave up. Ranks that come later get it too.
    verdict: Option<Verdict>,
    /// The time since the start after which missing ranks are named next.
    next_notice: Duration,
    /// When a rank was last connected.
    idle_since: Instant,
    /// The traffic with ranks that have left.
    traffic: ControlTraffic,
}

/// A rank whose handshake succeeded and that has not registered.
struct UnregisteredRank {
    binding: Binding,
    connection: FrameStream,
    deadline: Instant,
}

/// A registered rank.
struct RegisteredRank {
    host: String,
    pid: u32,
    listener: ListenerAddresses,
    /// The connection; None after the rank has left.
    connection: Option<FrameStream>,
}

impl RegisteredRank {
    /// The entry of a rank that has failed.
    fn failed() -> Self {
        let listener = ListenerAddresses { host_tag: 0, addresses: Vec::new() };
        Self { host: String::new(), pid: 0, listener, connection: None }
    }
}

impl RootServer {
    /// Runs until no rank needs the root any more. Returns its traffic.
    fn serve(mut self) -> ControlTraffic {
        loop {
            let mut fds = Vec::new();
            self.acceptor.poll_fds(&mut fds);
            fds.extend(self.unregistered.iter().map(|rank| rank.connection.poll_fd()));
            fds.extend(
                self.ranks.values().filter_map(|it| Some(it.connection.as_ref()?.poll_fd())),
            );
            let polled = fds.len();
            fds.extend(self.stop.iter().map(AbortSignal::poll_fd));
            poll::wait(&mut fds, self.wake());
            if self.stop.as_ref().is_some_and(AbortSignal::is_raised) {
                return self.traffic;
            }

            // Registered ranks first: those that have left may free rank numbers for the others.
            let acceptor_fds = polled - self.unregistered.len() - self.connected();
            self.read_ranks(&fds[acceptor_fds + self.unregistered.len()..]);
            self.read_unregistered(&fds[acceptor_fds..acceptor_fds + self.unregistered.len()]);
            let (passed, _) = self.acceptor.advance(&fds);
            self.add_connections(passed);

            if self.is_served() {
                match self.verdict {
                    None => log::info!(
                        "all {} ranks of this root have joined in {:.2} s; it ends after {} \
                         connections, \
                         {} messages sent and {} received",
                        self.ranks.len(),
                        self.waited().as_secs_f64(),
                        self.traffic.connections,
                        self.traffic.sent,
                        self.traffic.received
                    ),
                    Some(_) => log::info!("all ranks know of the failure; the root ends"),
                }
                return self.traffic;
            }
            if self.is_over() {
                return self.traffic;
            }
            self.notify();
        }
    }

    /// When the root gives up. If all ranks have come, but one is not connected to its parent or
    /// does not send its rank info, the ranks know better which one, so they get time to report it.
    fn give_up_at(&self) -> Option<Instant> {
        let grace = if self.is_complete() { VERDICT_TIME } else { Duration::ZERO };
        self.deadline.map(|deadline| deadline + grace)
    }

    fn connected(&self) -> usize {
        self.ranks.values().filter(|entry| entry.connection.is_some()).count()
    }

    fn wake(&self) -> Instant {
        let notice = self.started.filter(|_| self.verdict.is_none());
        let notice = notice.map(|started| started + self.next_notice);
        let unregistered = self.unregistered.iter().map(|rank| rank.deadline).min();
        [notice, unregistered, self.give_up_at(), self.acceptor.wake()]
            .into_iter()
            .flatten()
            .fold(self.idle_since + IDLE_TIMEOUT, Instant::min)
    }

    /// Adds connections whose handshake succeeded.
    fn add_connections(&mut self, passed: Vec<(Binding, SecureStream)>) {
        for (binding, stream) in passed {
            let connection = FrameStream::new(stream, 0);
            let deadline = Instant::now() + REGISTER_TIMEOUT;
            self.unregistered.push(UnregisteredRank { binding, connection, deadline });
        }
        // Their registrations have often come already.
        self.read_unregistered(&[]);
    }

    /// Reads from ranks that have not registered: those that are ready according to `fds`, and
    /// those without an entry.
    fn read_unregistered(&mut self, fds: &[libc::pollfd]) {
        let now = Instant::now();
        for (at, mut unregistered) in std::mem::take(&mut self.unregistered).into_iter().enumerate()
        {
            if fds.get(at).is_none_or(|fd| fd.revents != 0) {
                unregistered.connection.fill();
            }
            match unregistered.connection.next() {
                Ok(Some(ControlFrame::Register(registration))) => {
                    self.register(unregistered.binding, registration, unregistered.connection);
                }
                // The rank failed before it registered. If another process has registered as this
                // rank, the job goes on without this one.
                Ok(Some(ControlFrame::Verdict(verdict))) => {
                    let Binding { from: rank, nranks, .. } = unregistered.binding;
                    let same_nranks = *self.nranks.get_or_insert(nranks) == nranks;
                    if same_nranks && !self.ranks.contains_key(&rank) {
                        self.ranks.insert(rank, RegisteredRank::failed());
                        self.fail_all(rank, verdict);
                    }
                }
                Ok(None) if now < unregistered.deadline => self.unregistered.push(unregistered),
                _ => log::info!("rank {} did not register", unregistered.binding.from),
            }
        }
    }

    /// Registers a rank, or refuses it.
    fn register(
        &mut self,
        binding: Binding,
        registration: RankRegistration,
        mut connection: FrameStream,
    ) {
        let (rank, now) = (binding.from, Instant::now());
        let nranks = *self.nranks.get_or_insert(binding.nranks);
        let own_share = || {
            let share = registration.share;
            (share, share.expected(nranks))
        };
        let (share, _) = *self.share.get_or_insert_with(own_share);
        let first = self.ranks.get(&rank);
        let objection = if nranks != binding.nranks {
            Some(BootstrapError::DifferentRankCount { rank, ours: binding.nranks, theirs: nranks })
        } else if share != registration.share {
            Some(Verdict::Disagreement {
                what: String::from("the unique ids, their number or their order"),
                ranks: RankSet::new([rank]),
            })
        } else {
            first.map(|first| Verdict::DuplicateRank {
                rank,
                host: first.host.clone(),
                pid: first.pid,
            })
        };
        if let Some(objection) = objection {
            log::warn!(
                "refused process {} on {}: {}",
                registration.pid,
                registration.host,
                BootstrapError::of(objection.clone(), rank)
            );
            connection.send(&ControlFrame::Verdict(objection));
            connection.shut_down_sending();
            return;
        }
        self.started.get_or_insert(now);
        if let Some(verdict) = &self.verdict {
            connection.send(&ControlFrame::Verdict(verdict.clone()));
            connection.shut_down_sending();
            self.ranks.insert(
                rank,
                RegisteredRank { connection: Some(connection), ..RegisteredRank::failed() },
            );
            return;
        }
        let deadline = now + registration.timeout;
        self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));

        let served = |rank: &u32| share.serves(*rank, nranks);
        let above = parent(rank).filter(|_| served(&rank));
        if let Some(above) = above.and_then(|above| self.ranks.get(&above)) {
            connection.send(&ControlFrame::Parent(above.listener.clone()));
        }
        let parent_here = ControlFrame::Parent(registration.listener.clone());
        for child in children(rank, nranks).filter(served) {
            if let Some(connection) =
                self.ranks.get_mut(&child).and_then(|it| it.connection.as_mut())
            {
                connection.send(&parent_here);
            }
        }
        let RankRegistration { host, pid, listener, .. } = registration;
        log::debug!("rank {rank} of {nranks} registered: process {pid} on {host}");
        self.ranks
            .insert(rank, RegisteredRank { host, pid, listener, connection: Some(connection) });
        // Frames that came together with the registration do not make the socket ready again.
        self.read_rank(rank);
    }

    fn read_ranks(&mut self, fds: &[libc::pollfd]) {
        let connected = self.ranks.iter().filter(|(_, entry)| entry.connection.is_some());
        let ready: Vec<u32> = connected
            .zip(fds)
            .filter(|(_, fd)| fd.revents != 0)
            .map(|((&rank, _), _)| rank)
            .collect();
        for rank in ready {
            self.read_rank(rank);
        }
        if self.connected() + self.unregistered.len() > 0 {
            self.idle_since = Instant::now();
        }
        // Only rank 0 is left, to collect rank infos. A new connection would be for another
        // communicator.
        if self.is_complete() && self.connected() <= 1 {
            self.acceptor.close();
        }
    }

    /// Sends the error of a rank that gave up to all ranks, which then wait no longer.
    fn fail_all(&mut self, rank: u32, verdict: Verdict) {
        if self.verdict.is_some() {
            return;
        }
        log::info!("rank {rank} gave up: {}", BootstrapError::of(verdict.clone(), rank));
        self.send_to_all(&ControlFrame::Verdict(verdict.clone()));
        self.ranks
            .values_mut()
            .filter_map(|it| it.connection.as_mut())
            .for_each(FrameStream::shut_down_sending);
        self.verdict = Some(verdict);
        // Ranks that come later get the error too, until the time at which the root would have
        // given up.
        let now = Instant::now();
        self.started.get_or_insert(now);
        self.deadline.get_or_insert(now + Config::get().init_timeout);
    }

    fn read_rank(&mut self, rank: u32) {
        let Some(entry) = self.ranks.get_mut(&rank) else { return };
        let Some(connection) = &mut entry.connection else { return };
        connection.fill();
        connection.flush();
        match connection.next() {
            Ok(Some(ControlFrame::LeaveRoot)) => {
                self.traffic.add(connection);
                entry.connection = None;
            }
            Ok(Some(ControlFrame::Verdict(verdict))) => {
                entry.connection = None;
                self.fail_all(rank, verdict);
            }
            Ok(None) => {}
            // The rank has got the error.
            Err(StreamEnd::Closed) if self.verdict.is_some() => entry.connection = None,
            // The rank may come again; its children will then learn where it listens.
            Err(StreamEnd::Closed) => {
                log::info!("rank {rank} went away before it was connected to its parent");
                self.ranks.remove(&rank);
            }
            Ok(Some(_)) | Err(StreamEnd::Malformed) => {
                log::warn!("dropped rank {rank}, which broke the protocol of the root");
                self.ranks.remove(&rank);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.share.is_some_and(|(_, expected)| self.ranks.len() == expected)
    }

    fn is_served(&self) -> bool {
        self.connected() == 0 && (self.is_complete() || self.have_all_failed())
    }

    /// Whether every rank gave up before any of them had registered.
    fn have_all_failed(&self) -> bool {
        let failed = self.verdict.is_some() && self.share.is_none();
        failed && self.nranks.is_some_and(|nranks| self.ranks.len() == nranks as usize)
    }

    /// Whether the time is over. All connected ranks have then been informed.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        if self.give_up_at().is_some_and(|end| end <= now) {
            if !self.is_complete() && self.verdict.is_none() {
                let verdict = Verdict::MissingRanks {
                    ranks: self.missing(),
                    nranks: self.nranks.unwrap_or(0),
                    waited: self.waited(),
                };
                log::warn!("{}", BootstrapError::of(verdict.clone(), 0));
                self.send_to_all(&ControlFrame::Verdict(verdict));
            }
            self.close_connections();
            return true;
        }
        if now >= self.idle_since + IDLE_TIMEOUT {
            log::info!("no rank came for {} s; the root ends", IDLE_TIMEOUT.as_secs());
            return true;
        }
        false
    }

    /// Names the missing ranks when it is time.
    fn notify(&mut self) {
        if self.verdict.is_some() || self.started.is_none() || self.waited() < self.next_notice {
            return;
        }
        let (missing, waited) = (self.missing(), self.waited());
        while self.next_notice <= waited {
            self.next_notice *= 2;
        }
        if !missing.is_empty() {
            log::warn!(
                "after {:.0} s {} of {} ranks have not joined: {missing}",
                waited.as_secs_f64(),
                missing.len(),
                self.nranks.unwrap_or(0)
            );
            self.send_to_all(&ControlFrame::Missing { ranks: missing, waited });
        }
    }

    fn send_to_all(&mut self, frame: &ControlFrame) {
        for connection in self.ranks.values_mut().filter_map(|it| it.connection.as_mut()) {
            connection.send(frame);
        }
    }

    /// Closes the connections after the last frames were sent.
    fn close_connections(&mut self) {
        let until = Instant::now() + LAST_FRAMES_TIME;
        let mut left: Vec<FrameStream> =
            self.ranks.values_mut().filter_map(|entry| entry.connection.take()).collect();
        close_gracefully(left.iter_mut(), until);
    }

    /// The missing ranks among those that register at this root; of others only other roots know.
    fn missing(&self) -> RankSet {
        let (Some((share, _)), Some(nranks)) = (self.share, self.nranks) else {
            return RankSet::new([]);
        };
        let mut missing = RankSet::new([]);
        for range in share.visitors(nranks) {
            let present = self.ranks.range(range.clone()).map(|(rank, _)| *rank);
            missing.add_missing(present, range);
        }
        missing
    }

    fn waited(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }
}
