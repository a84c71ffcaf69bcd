//! How paths to a peer are made, and made again.

use std::time::Instant;

use maypole_verbs::QueuePair;

use super::PairState;
use crate::error::LinkError;
use crate::verbs::connect::{HandshakeStep, PathHandshake};
use crate::verbs::domain::MOST_PATHS;
use crate::verbs::error_text::rdma_error;
use crate::verbs::message::{ControlMessage, Hello, PathAttempt};
use crate::verbs::path::{Path, PathPhase};
use crate::verbs::work::SendQueue;

impl PairState {
    /// The peer uses so many ports: the paths that both know of. Returns their number, or 0 if it
    /// was known.
    pub(in crate::verbs) fn make_paths(&mut self, theirs: u8) -> usize {
        let (own, theirs) = (self.groups.len(), usize::from(theirs).clamp(1, MOST_PATHS));
        if !self.paths.is_empty() {
            return 0;
        }
        // Ports with the same number are connected, so that each network rail has its own path.
        self.paths =
            (0..own.max(theirs)).map(|index| Path::new(index % own, index % theirs)).collect();
        self.paths.len()
    }

    /// Begins an attempt to make a path, of which the first step was made, or has failed.
    pub(in crate::verbs) fn begin_attempt(
        &mut self,
        attempt: PathAttempt,
        made: Result<(PathHandshake, Vec<QueuePair>), String>,
        tell: bool,
    ) {
        let index = usize::from(attempt.path);
        let path = &mut self.paths[index];
        path.attempt = attempt.number;
        match made {
            Ok((handshake, queues)) => {
                let hello = ControlMessage::Hello(attempt, handshake.own.clone());
                path.queues = queues.into_iter().map(SendQueue::new).collect();
                path.phase = PathPhase::Connecting(Box::new(handshake));
                path.peer_ended = false;
                self.say(&hello);
            }
            Err(why) => {
                log::debug!("a path to rank {} cannot be made: {why}", self.peer);
                path.go_down(why.clone());
                if tell {
                    self.say(&ControlMessage::Failed(attempt, why));
                }
            }
        }
    }

    /// Whether the peer begins an attempt of which this rank does not know.
    pub(in crate::verbs) fn is_new_attempt(&self, attempt: PathAttempt) -> bool {
        let path = self.paths.get(usize::from(attempt.path));
        path.is_some_and(|path| path.is_down() && attempt.number > path.attempt)
    }

    /// Handles a control message of a path.
    pub(in crate::verbs) fn take_path_message(
        &mut self,
        attempt: PathAttempt,
        message: ControlMessage,
    ) {
        let index = usize::from(attempt.path);
        let path = self.paths.get_mut(index).filter(|path| path.attempt == attempt.number);
        let Some(path) = path else { return };
        match message {
            ControlMessage::Hello(_, hello) => self.connect_path(index, hello),
            ControlMessage::Ready(_) => {
                if let Some(handshake) = path.handshake() {
                    handshake.peer_is_ready = true;
                }
            }
            ControlMessage::Passed(_) => {
                if let Some(handshake) = path.handshake() {
                    handshake.peer_has_passed = true;
                }
            }
            ControlMessage::Failed(_, why) => {
                // If this rank has begun to end the path, that was the peer's answer.
                path.peer_ended = true;
                if matches!(path.phase, PathPhase::Connecting(_) | PathPhase::Ended) {
                    path.go_down(format!("rank {} gives up: {why}", self.peer));
                }
            }
            ControlMessage::Arrived { channel, released, later, .. } => {
                if let Err(why) = self.take_arrivals(attempt, channel, released, &later) {
                    self.corrupt(why);
                }
            }
            ControlMessage::Stopped(_, why) => {
                self.lose(index, &format!("rank {} has ended it: {why}", self.peer));
                let path = &mut self.paths[index];
                path.peer_ended = true;
                if matches!(path.phase, PathPhase::Ended) {
                    path.go_down(path.why.clone());
                }
            }
            _ => {}
        }
        self.advance(index);
    }

    fn connect_path(&mut self, index: usize, hello: Hello) {
        let path = &mut self.paths[index];
        let attempt = path.attempt(index);
        let domain = &self.shared.domains[path.domain];
        let PathPhase::Connecting(handshake) = &mut path.phase else { return };
        match handshake.connect(hello, path.queues.iter().map(|queue| &queue.queue)) {
            Ok((text, scratch)) => {
                path.text = text;
                path.scratch = Some((scratch, domain.scratch(self.peer).1));
                self.say(&ControlMessage::Ready(attempt));
            }
            Err(why) => {
                path.go_down(why.clone());
                self.say(&ControlMessage::Failed(attempt, why));
            }
        }
    }

    /// Goes on with a path that is being made.
    pub(in crate::verbs) fn advance(&mut self, index: usize) {
        loop {
            let path = &mut self.paths[index];
            let (attempt, scratch) = (path.attempt(index), path.scratch);
            let Some(handshake) = path.handshake() else { return };
            match handshake.advance(scratch) {
                Ok(HandshakeStep::Wait) => return,
                Ok(HandshakeStep::Passed) => self.say(&ControlMessage::Passed(attempt)),
                Ok(HandshakeStep::Made) => {
                    path.activate();
                    if attempt.number > 1 {
                        let (rank, peer, text) = (self.shared.rank, self.peer, &path.text);
                        log::warn!("rank {rank}: the RDMA path to rank {peer} is back ({text})");
                    }
                    self.shared.ask_attention();
                    return;
                }
                Err(why) => {
                    log::debug!("a path to rank {} is not made: {why}", self.peer);
                    path.go_down(why.clone());
                    self.say(&ControlMessage::Failed(attempt, why));
                    return;
                }
            }
        }
    }

    /// Whether the links can be used now, for the first time; or why they cannot.
    pub(in crate::verbs) fn outcome(&mut self) -> Option<Result<(), LinkError>> {
        let is_resolved = !self.paths.is_empty() && self.paths.iter().all(|path| path.resolved);
        if self.connected || !is_resolved {
            return None;
        }
        if self.paths.iter().any(|path| !path.is_down()) {
            self.connected = true;
            for path in self.paths.iter().filter(|path| path.is_down()) {
                log::warn!(
                    "rank {}: a path to rank {} is not used: {}",
                    self.rank(),
                    self.peer,
                    path.why
                );
            }
            return Some(Ok(()));
        }
        let mut reasons: Vec<&str> = self.paths.iter().map(|path| path.why.as_str()).collect();
        reasons.dedup();
        Some(Err(rdma_error(self.peer, reasons.join("; "))))
    }

    /// The paths that this rank may try to make again now, and the time for the next one.
    pub(in crate::verbs) fn retries(&self, now: Instant) -> (Vec<PathAttempt>, Option<Instant>) {
        let may = self.connected && self.is_lower() && self.failure.is_none() && !self.closed;
        if !may || self.control.gone().is_some() {
            return (Vec::new(), None);
        }
        let (mut due, mut next) = (Vec::new(), None);
        for (index, path) in self.paths.iter().enumerate() {
            let PathPhase::Down { retry_at } = path.phase else { continue };
            if retry_at <= now {
                due.push(PathAttempt { path: index as u8, number: path.attempt + 1 });
            } else {
                next = Some(next.map_or(retry_at, |next: Instant| next.min(retry_at)));
            }
        }
        (due, next)
    }

    /// A port of this rank has changed: paths over it are lost, or are tried again at once.
    pub(in crate::verbs) fn port_changed(&mut self, domain: usize, lost: Option<&str>) {
        for index in 0..self.paths.len() {
            if self.paths[index].domain != domain {
                continue;
            }
            match lost {
                Some(why) => self.lose(index, why),
                None if self.is_lower() => self.paths[index].retry_now(),
                None if self.paths[index].is_down() => {
                    self.say(&ControlMessage::Retry(index as u8));
                }
                None => {}
            }
        }
    }
}
