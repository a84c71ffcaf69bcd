//! Runs a bootstrap root: one thread, in the process that made the unique id, which connects the
//! state machine of the root with its sockets.

use std::collections::{BTreeMap, VecDeque};
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_control::bootstrap::root::{ConnectionId, RootCore, RootInput, RootOutput};
use maypole_control::listener_addresses::ListenerAddresses;
use maypole_control::time::Time;
use maypole_transport::noise::{Key, Purpose};

use super::abort::AbortSignal;
use super::accept::HandshakeAcceptor;
use super::error::BootstrapError;
use super::frame_stream::{FrameStream, StreamEnd, close_gracefully};
use super::listener_address;
use super::options::Options;
use super::poll;
use super::probe::{ListenerProbe, ProbeResult};
use super::traffic::ControlTraffic;
use super::waiting_roots::WaitingEntry;
use crate::clock;
use crate::config::Config;
use crate::process;

/// Most ranks that are looked for at once.
const MOST_PROBES: usize = 16;
/// How long the root waits at its end for its last frames to be read.
const LAST_FRAMES_TIME: Duration = Duration::from_secs(2);

/// The traffic of the roots of this process that have ended, by a proof of their secrets.
#[cfg(test)]
pub(super) static ENDED: std::sync::Mutex<Vec<([u8; 32], ControlTraffic)>> =
    std::sync::Mutex::new(Vec::new());

/// Starts the root of a unique id on these listeners. It ends early when `stop` is raised. For a
/// shrink `survivors` are the rejoin listeners of all ranks, and empty otherwise.
///
/// # Errors
/// [`BootstrapError::System`] if no thread can be made.
pub(super) fn start(
    secret: Key,
    listeners: Vec<TcpListener>,
    options: &Options,
    stop: Option<AbortSignal>,
    survivors: Vec<ListenerAddresses>,
) -> Result<JoinHandle<()>, BootstrapError> {
    #[cfg(test)]
    let proof = *secret.derive("ended", &[]).bytes();
    let kind = if survivors.is_empty() { RootCore::new } else { RootCore::of_survivors };
    let root = RootServer {
        core: kind(clock::now(), options.notice, Config::get().init_timeout),
        survivors,
        to_probe: VecDeque::new(),
        probes: Vec::new(),
        acceptor: HandshakeAcceptor::new(listeners, secret, Purpose::Root, 0),
        stop,
        connections: BTreeMap::new(),
        next_connection: 0,
        ended: false,
        traffic: ControlTraffic::default(),
        waiting: WaitingEntry::new(),
    };
    let run = move || {
        let _traffic = root.serve();
        #[cfg(test)]
        ENDED.lock().expect("nobody panics with it").push((proof, _traffic));
    };
    process::spawn_thread("maypole-root", None, run)
        .map_err(|error| BootstrapError::system("pthread_create", &error))
}

/// A root and its sockets.
struct RootServer {
    core: RootCore,
    acceptor: HandshakeAcceptor,
    /// Ends the root without a message to the ranks.
    stop: Option<AbortSignal>,
    connections: BTreeMap<ConnectionId, FrameStream>,
    next_connection: ConnectionId,
    /// The rejoin listeners of the ranks of a shrink.
    survivors: Vec<ListenerAddresses>,
    /// The ranks that are to be looked for, and those that are being looked for.
    to_probe: VecDeque<u32>,
    probes: Vec<ListenerProbe>,
    ended: bool,
    /// The traffic of connections that are closed.
    traffic: ControlTraffic,
    waiting: WaitingEntry,
}

impl RootServer {
    /// Runs until no rank needs the root any more. Returns its traffic.
    fn serve(mut self) -> ControlTraffic {
        while !self.ended {
            let mut fds = Vec::new();
            self.acceptor.poll_fds(&mut fds);
            let of_acceptor = fds.len();
            fds.extend(self.connections.values().map(FrameStream::poll_fd));
            let polled = fds.len();
            fds.extend(self.stop.iter().map(AbortSignal::poll_fd));
            fds.extend(self.probes.iter().map(ListenerProbe::poll_fd));
            let probes = self.probes.iter().filter_map(ListenerProbe::wake);
            let wake = probes.fold(clock::instant_of(self.core.wake()), Instant::min);
            // What came before this time is read below, also if this process is stopped meanwhile.
            let now = clock::now();
            poll::wait(&mut fds, self.acceptor.wake().map_or(wake, |it| it.min(wake)));
            if self.stop.as_ref().is_some_and(AbortSignal::is_raised) {
                return self.traffic;
            }
            // Registered ranks first: those that have left may free rank numbers for the others.
            let ready = self.connections.keys().zip(&fds[of_acceptor..polled]);
            let ready: Vec<ConnectionId> = ready
                .filter(|(_, fd)| fd.revents != 0)
                .map(|(connection, _)| *connection)
                .collect();
            ready.into_iter().for_each(|connection| self.read(connection));
            let (passed, _) = self.acceptor.advance(&fds, now);
            for (binding, stream) in passed {
                let connection = self.next_connection;
                self.next_connection += 1;
                self.connections.insert(connection, FrameStream::new(stream, 0));
                let (rank, nranks) = (binding.from, binding.nranks);
                self.handle(RootInput::Connected { connection, rank, nranks });
                // Its registration has often come already.
                self.read(connection);
            }
            self.advance_probes();
            self.handle_at(now, RootInput::Tick);
        }
        let mut left: Vec<FrameStream> =
            std::mem::take(&mut self.connections).into_values().collect();
        close_gracefully(left.iter_mut(), Instant::now() + LAST_FRAMES_TIME);
        self.traffic
    }

    /// Looks for ranks that do not come to a shrink.
    fn advance_probes(&mut self) {
        let mut gone = Vec::new();
        let mut under_way = std::mem::take(&mut self.probes);
        loop {
            under_way.retain_mut(|probe| match probe.advance() {
                ProbeResult::NotYet => true,
                ProbeResult::Unknown => false,
                ProbeResult::Gone => {
                    gone.push(probe.rank());
                    false
                }
            });
            if under_way.len() == MOST_PROBES {
                break;
            }
            let Some(rank) = self.to_probe.pop_front() else { break };
            if let Some(listener) = self.survivors.get(rank as usize) {
                let addresses = listener_address::reachable_here(listener);
                under_way.extend(ListenerProbe::new(rank, addresses));
            }
        }
        self.probes = under_way;
        gone.into_iter().for_each(|rank| self.handle(RootInput::Gone(rank)));
    }

    /// Reads the frames of a connection.
    fn read(&mut self, connection: ConnectionId) {
        let Some(stream) = self.connections.get_mut(&connection) else { return };
        let (frames, end) = stream.take_all();
        frames.into_iter().for_each(|frame| self.handle(RootInput::Frame(connection, frame)));
        if let Some(end) = end {
            self.handle(match end {
                StreamEnd::Closed => RootInput::Closed(connection),
                StreamEnd::Malformed => RootInput::Malformed(connection),
            });
            self.close(connection);
        }
    }

    /// Passes an input to the state machine, and does what it wants.
    fn handle(&mut self, input: RootInput) {
        self.handle_at(clock::now(), input);
    }

    fn handle_at(&mut self, now: Time, input: RootInput) {
        self.core.handle(now, input);
        while let Some(output) = self.core.poll_output() {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: RootOutput) {
        match output {
            RootOutput::Send(connection, frame) => {
                if let Some(stream) = self.connections.get_mut(&connection) {
                    stream.send(&frame);
                }
            }
            RootOutput::Finish(connection) => {
                if let Some(stream) = self.connections.get_mut(&connection) {
                    stream.shut_down_sending();
                }
            }
            RootOutput::Close(connection) => self.close(connection),
            RootOutput::StopAccepting => self.acceptor.close(),
            RootOutput::Refused { pid, host, objection } => {
                let objection = BootstrapError::of(objection, 0);
                log::warn!("refused process {pid} on {host}: {objection}");
            }
            RootOutput::Missing(missing, waited) => {
                let (seconds, nranks) = (waited.as_secs_f64(), self.core.nranks());
                let elsewhere = self.waiting.update(nranks, &missing);
                let hint = match elsewhere.is_empty() {
                    true => String::new(),
                    false => format!(
                        "; with another unique id of this process, for a communicator of as many \
                         ranks, wait: {elsewhere}"
                    ),
                };
                log::warn!(
                    "after {seconds:.0} s {} of {nranks} ranks have not joined: {missing}{hint}",
                    missing.len()
                );
            }
            RootOutput::Failed(verdict) => {
                log::warn!("the attempt to join failed: {}", BootstrapError::of(verdict, 0));
            }
            // One look at all missing ranks is enough at a time.
            RootOutput::Probe(ranks) if self.to_probe.is_empty() && self.probes.is_empty() => {
                self.to_probe.extend(ranks);
                self.advance_probes();
            }
            RootOutput::Probe(_) => {}
            RootOutput::Lost(rank) => {
                log::info!("rank {rank} went away, or broke the protocol, before it was served");
            }
            RootOutput::Ended(served) => {
                self.ended = true;
                if served {
                    log::info!(
                        "all {} ranks of this root have joined in {:.2} s; it ends after {} \
                         connections, {} messages sent and {} received",
                        self.core.registered(),
                        self.core.waited().as_secs_f64(),
                        self.traffic.connections,
                        self.traffic.sent,
                        self.traffic.received
                    );
                }
            }
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        if let Some(stream) = self.connections.remove(&connection) {
            self.traffic.add(&stream);
        }
    }
}
