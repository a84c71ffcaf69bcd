//! Dialing: which streams the service thread dials, when it tries again, and when it gives up.

use std::time::{Duration, Instant};

use super::{DialRequest, RETRY_PAUSE, TcpService};
use crate::Rank;
use crate::error::{FailedDial, LinkError};
use crate::tcp::connect::{DialTarget, HandshakeStage, TcpHandshake};
use crate::tcp::pair::{RECONNECT_TIMEOUT, TcpPair};
use crate::tcp::poller::EventFlags;

/// Number of attempts to dial a peer that ends the connection within the handshake: it may have too
/// many connections that have not proven themselves.
const MAX_REFUSALS: usize = 5;

/// How long the higher rank waits for the lower one to dial before it dials too: a firewall may let
/// connections through in one direction only.
const DIAL_BACK_TIME: Duration =
    if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(3) };

impl TcpService {
    pub(super) fn start_dialing(&mut self, request: DialRequest) {
        let DialRequest { peer, addresses, streams, deadline } = request;
        let target = DialTarget {
            peer,
            stream: 0,
            streams,
            addresses,
            attempts: 0,
            not_before: Instant::now(),
            give_up: deadline,
            first: true,
            refused: true,
            // The lower rank dials.
            probe: self.credentials.rank > peer,
            back: false,
        };
        let mut streams = self.pair(peer, streams).missing_streams();
        let mut first = DialTarget { probe: false, back: target.probe, ..target.clone() };
        if first.back {
            // The peer may also be late, and then gets no more connections than it can hold.
            first.not_before += DIAL_BACK_TIME;
            streams.truncate(1);
        }
        self.to_dial.extend(streams.into_iter().map(|s| DialTarget { stream: s, ..first.clone() }));
        self.targets.insert(peer, target);
    }

    /// Dials the other streams of a peer, to which this rank has made one because the peer has not.
    pub(super) fn dial_rest_back(&mut self, pair: &TcpPair) {
        self.dialed_back.insert(pair.peer);
        let Some(target) = self.targets.get(&pair.peer).filter(|target| target.probe) else {
            return;
        };
        let (probe, back, not_before) = (false, true, Instant::now());
        for stream in pair.missing_streams() {
            self.to_dial.push(DialTarget { stream, probe, back, not_before, ..target.clone() });
        }
    }

    /// Queues the missing streams of pairs that were complete.
    pub(super) fn queue_missing_streams(&mut self, now: Instant) {
        self.incomplete.retain(|pair| !pair.missing_streams().is_empty());
        for pair in &self.incomplete {
            let needs = pair.repair_needs(now);
            let Some(target) = self.targets.get(&pair.peer) else { continue };
            let probe = target.probe && !self.dialed_back.contains(&pair.peer);
            for stream in needs.missing {
                if probe && (needs.until.is_none() || stream > 0) {
                    break;
                }
                let is_same = |t: &DialTarget| (t.peer, t.stream) == (pair.peer, stream);
                let mut dialing = self.handshakes.values();
                let dialed = dialing.any(|handshake| handshake.stage.target().is_some_and(is_same));
                if !dialed && !self.to_dial.iter().any(is_same) {
                    let give_up = now + RECONNECT_TIMEOUT;
                    let target =
                        DialTarget { stream, not_before: now, give_up, probe, ..target.clone() };
                    self.to_dial.push(DialTarget { first: false, ..target });
                }
            }
        }
    }

    pub(super) fn dial_due_targets(&mut self, now: Instant) {
        let (due, later) =
            std::mem::take(&mut self.to_dial).into_iter().partition(|t| now >= t.not_before);
        self.to_dial = later;
        for target in due {
            let pair = self.pairs.get(&target.peer);
            if pair.is_some_and(|pair| pair.missing_streams().contains(&target.stream)) {
                self.dial(target, now);
            }
        }
    }

    fn dial(&mut self, target: DialTarget, now: Instant) {
        match TcpHandshake::dial(target) {
            Ok(handshake) => {
                let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                self.add_handshake(handshake, flags);
            }
            Err((target, error)) => {
                let error = match error.raw_os_error() {
                    Some(libc::EMFILE | libc::ENFILE) => LinkError::system("socket", error),
                    _ => LinkError::unreachable(target.peer, target.address(), error),
                };
                self.handle_failure(HandshakeStage::Connecting(target), Some(error), now);
            }
        }
    }

    /// A handshake failed: tries again or reports the error.
    pub(super) fn handle_failure(
        &mut self,
        stage: HandshakeStage,
        error: Option<LinkError>,
        now: Instant,
    ) {
        let mut target = match stage {
            HandshakeStage::AwaitFirst
            | HandshakeStage::AwaitConfirmation(_)
            | HandshakeStage::Over => {
                // Only a proven peer's connection fails with an error.
                if let Some(error @ LinkError::Corrupt { peer, .. }) = error {
                    log::warn!("rank {}: {error}", self.credentials.rank);
                    self.peers.set_failure(peer, error);
                }
                return;
            }
            HandshakeStage::Connecting(target) | HandshakeStage::AwaitAnswer(target, _) => target,
        };
        let pair = self.pairs.get(&target.peer);
        if target.first && pair.is_some_and(|it| !it.missing_streams().contains(&target.stream)) {
            // The peer has made the stream.
            return;
        }
        let Some(error) = error else {
            // A probe was answered, so the peer lives. Probe again later if it does not dial.
            target.refused = false;
            target.not_before = now + RECONNECT_TIMEOUT / 10;
            return self.to_dial.push(target);
        };
        if let LinkError::Unreachable { peer, dial } = error
            && target.first
            && !target.probe
        {
            self.note_failed_dial(peer, dial);
        }
        target.attempts += 1;
        let failed_dial = match error {
            LinkError::Unreachable { dial, .. } => Some(dial.errno),
            _ => None,
        };
        let nobody_listens = failed_dial == Some(libc::ECONNREFUSED);
        target.refused &= nobody_listens;
        let all_addresses_tried = target.attempts.is_multiple_of(target.addresses.len());
        if target.back && !matches!(error, LinkError::Corrupt { .. }) {
            // The peer knows better whether it is hopeless.
            let pause = DIAL_BACK_TIME * (1 << target.attempts.min(5));
            target.not_before = if all_addresses_tried { now + pause } else { now };
            if now < target.give_up {
                self.to_dial.push(target);
            }
            return;
        }
        let hopeless = match error {
            LinkError::Corrupt { .. } => true,
            LinkError::Refused { .. } => target.attempts >= MAX_REFUSALS,
            // The peer may be stopped.
            LinkError::Timeout { .. } => false,
            // A firewall may drop what is sent to the peer, but the network may also be slow.
            LinkError::Unreachable { .. } if failed_dial == Some(libc::ETIMEDOUT) => false,
            // A rank listens at its address before it publishes it, and until it ends.
            _ => target.attempts >= target.addresses.len() && target.first,
        };
        if target.refused
            && all_addresses_tried
            && !target.first
            && let Some(pair) = self.pairs.get(&target.peer)
        {
            pair.give_up();
        }
        if now >= target.give_up || hopeless {
            self.give_up_dialing(target, error, now);
            return;
        }
        target.not_before = if all_addresses_tried { now + RETRY_PAUSE } else { now };
        self.to_dial.push(target);
    }

    /// Keeps a failed attempt for the error of a rank that waits for the connection, and says once
    /// for each address which one this rank cannot reach: the wait may be long.
    fn note_failed_dial(&mut self, peer: Rank, dial: FailedDial) {
        self.peers.set_failed_dial(peer, dial);
        if self.told.insert((peer, dial.address)) {
            let rank = self.credentials.rank;
            log::warn!(
                "rank {rank} cannot reach rank {peer} at {dial}; it goes on trying: see routes and \
                 firewalls between the two, and NCCL_SOCKET_IFNAME"
            );
        }
    }

    fn give_up_dialing(&mut self, mut target: DialTarget, error: LinkError, now: Instant) {
        if target.probe {
            // The pair's own time limit decides.
        } else if target.first {
            self.to_dial.retain(|other| other.peer != target.peer);
            self.peers.set_failure(target.peer, error);
        } else {
            log::warn!("rank {}: a stream cannot be made again: {error}", self.credentials.rank);
            // Once more after a while, as long as other streams carry the traffic.
            target.not_before = now + RECONNECT_TIMEOUT;
            target.give_up = target.not_before + RECONNECT_TIMEOUT;
            self.to_dial.push(target);
        }
    }
}
