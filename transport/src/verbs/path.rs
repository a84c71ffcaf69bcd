//! A path between two ranks: a port at each end, and the queue pairs between them.

use std::time::{Duration, Instant};

use maypole_verbs::{LocalMemory, RemoteMemory};

use super::connect::PathHandshake;
use super::message::PathAttempt;
use super::work::{PathLoad, SendQueue};

/// The time until a path that was lost is tried for the first time. It doubles with each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a path is good for.
#[derive(Debug)]
pub(super) enum PathPhase {
    /// It is being made. The queue pairs may already get messages, because the peer may know
    /// earlier that it is made.
    Connecting(Box<PathHandshake>),
    /// Messages travel over it.
    Active,
    /// Its queue pairs are ended. What has arrived is fetched, so that the peer can be told.
    Ending,
    /// The peer was told. It must still tell.
    Ended,
    /// It is not there. The lower rank tries to make it again from then on.
    Down {
        /// When.
        retry_at: Instant,
    },
}

/// A path.
#[derive(Debug)]
pub(super) struct Path {
    /// The number of this rank's port among those that it uses.
    pub(super) domain: usize,
    /// The number of the peer's.
    pub(super) their_domain: usize,
    /// The number of the last attempt to make it.
    pub(super) attempt: u32,
    pub(super) phase: PathPhase,
    pub(super) queues: Vec<SendQueue>,
    /// Eight bytes of the peer to which anything may be written, and eight bytes of this rank.
    pub(super) scratch: Option<(RemoteMemory, LocalMemory)>,
    /// The addresses and devices at both ends, for messages to people.
    pub(super) text: String,
    /// The peer has told everything about the path that ended.
    pub(super) peer_ended: bool,
    /// Why it is not there.
    pub(super) why: String,
    /// How long the next pause before an attempt is.
    pause: Duration,
    /// The first attempt has ended, in whatever way.
    pub(super) resolved: bool,
    /// Messages that it was given.
    pub(super) messages: u64,
    /// How often it was lost.
    pub(super) losses: u64,
}

impl Path {
    pub(super) fn new(domain: usize, their_domain: usize) -> Self {
        Self {
            domain,
            their_domain,
            attempt: 0,
            phase: PathPhase::Down { retry_at: Instant::now() },
            queues: Vec::new(),
            scratch: None,
            text: String::new(),
            peer_ended: false,
            why: String::new(),
            pause: FIRST_PAUSE,
            resolved: false,
            messages: 0,
            losses: 0,
        }
    }

    pub(super) fn attempt(&self, index: usize) -> PathAttempt {
        PathAttempt { path: index as u8, number: self.attempt }
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(self.phase, PathPhase::Active)
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.phase, PathPhase::Down { .. })
    }

    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.phase, PathPhase::Connecting(_))
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, PathPhase::Ending)
    }

    /// Whether a message that arrives on its queue pairs counts.
    pub(super) fn takes_messages(&self) -> bool {
        use PathPhase::{Active, Connecting, Ending};
        matches!(self.phase, Connecting(_) | Active | Ending)
    }

    pub(super) fn handshake(&mut self) -> Option<&mut PathHandshake> {
        match &mut self.phase {
            PathPhase::Connecting(handshake) => Some(handshake),
            _ => None,
        }
    }

    /// Messages may travel over it.
    pub(super) fn activate(&mut self) {
        self.phase = PathPhase::Active;
        self.pause = FIRST_PAUSE;
        self.resolved = true;
    }

    /// It is not there until a later attempt makes it.
    pub(super) fn go_down(&mut self, why: String) {
        self.phase = PathPhase::Down { retry_at: Instant::now() + self.pause };
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        self.queues.clear();
        self.why = why;
        self.peer_ended = false;
        self.resolved = true;
    }

    /// It is tried again at once, because something has changed.
    pub(super) fn retry_now(&mut self) {
        if self.is_down() {
            self.phase = PathPhase::Down { retry_at: Instant::now() };
        }
    }

    /// What is under way on it, if the queue of this channel can take a message.
    pub(super) fn load(&self, channel: u16, requests: u64) -> Option<PathLoad> {
        let queue = self.queues.get(self.queue_index(channel)?)?;
        (self.is_active() && queue.room() >= requests).then(|| PathLoad {
            bytes_under_way: self.queues.iter().map(|queue| queue.bytes_under_way).sum(),
            messages: self.messages,
        })
    }

    /// The queue pair that a channel uses.
    pub(super) fn queue_index(&self, channel: u16) -> Option<usize> {
        usize::from(channel).checked_rem(self.queues.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_tried_again_without_end_and_at_most_a_minute_later() {
        let mut path = Path::new(0, 0);
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let before = Instant::now();
            path.go_down("no answer".to_owned());
            let PathPhase::Down { retry_at } = path.phase else { panic!("{path:?}") };
            assert!(retry_at >= before + last, "the pauses do not get shorter");
            last = path.pause.min(LONGEST_PAUSE / 2);
        }
        assert_eq!(path.pause, LONGEST_PAUSE);
        path.activate();
        assert_eq!(path.pause, FIRST_PAUSE);
    }
}
