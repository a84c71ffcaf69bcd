//! Which handshakes of a listener go on: how many may be in progress, how long one may take, and
//! which of them goes first when there are too many. A stranger takes one of a bounded number of
//! places for a bounded time, and goes before a rank that has sent a valid first message.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// How long one handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long no connection is accepted after the process had no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names a handshake of a listener.
pub type HandshakeId = u64;

/// The handshakes in progress at a listener.
#[derive(Debug)]
pub struct AcceptCore {
    /// From the oldest on, which ends first.
    pending: VecDeque<PendingHandshake>,
    most: usize,
    next: HandshakeId,
    paused_until: Option<Time>,
}

#[derive(Debug)]
struct PendingHandshake {
    id: HandshakeId,
    deadline: Time,
    /// It has sent a valid first message.
    is_proven: bool,
}

impl AcceptCore {
    /// A listener with at most this many handshakes at once.
    pub fn new(most: usize) -> Self {
        Self { pending: VecDeque::new(), most: most.max(1), next: 0, paused_until: None }
    }

    /// A connection was accepted. Returns its handshake, and the one that must be dropped for it.
    pub fn begin(&mut self, now: Time) -> (HandshakeId, Option<HandshakeId>) {
        let dropped = (self.pending.len() >= self.most).then(|| self.drop_one()).flatten();
        let id = self.next;
        self.next += 1;
        // The clock may have gone back; the order of the deadlines stays.
        let latest = self.pending.back().map_or(Time::START, |last| last.deadline);
        let deadline = (now + HANDSHAKE_TIMEOUT).max(latest);
        self.pending.push_back(PendingHandshake { id, deadline, is_proven: false });
        (id, dropped)
    }

    /// A handshake has sent a valid first message.
    pub fn proven(&mut self, id: HandshakeId) {
        let mut pending = self.pending.iter_mut();
        if let Some(handshake) = pending.find(|handshake| handshake.id == id) {
            handshake.is_proven = true;
        }
    }

    /// A handshake has succeeded or failed.
    pub fn ended(&mut self, id: HandshakeId) {
        self.pending.retain(|handshake| handshake.id != id);
    }

    /// The process has no descriptor left to accept a connection. Returns the handshake that must
    /// be dropped for one, or None if no connection is accepted for some time.
    pub fn out_of_descriptors(&mut self, now: Time) -> Option<HandshakeId> {
        let dropped = self.drop_one();
        if dropped.is_none() {
            self.paused_until = Some(now + ACCEPT_PAUSE);
        }
        dropped
    }

    /// The handshakes that have taken too long at this time, before which all that came was read.
    pub fn tick(&mut self, now: Time) -> Vec<HandshakeId> {
        self.paused_until = self.paused_until.filter(|until| *until > now);
        let late = self.pending.iter().take_while(|handshake| handshake.deadline <= now).count();
        self.pending.drain(..late).map(|handshake| handshake.id).collect()
    }

    /// When [`tick`](Self::tick) is due.
    pub fn wake(&self) -> Option<Time> {
        let oldest = self.pending.front().map(|handshake| handshake.deadline);
        oldest.into_iter().chain(self.paused_until).min()
    }

    /// Whether no connection is accepted at present.
    pub fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// Takes out the handshake that is most likely that of a stranger: the oldest of those without
    /// a valid first message, or the oldest.
    fn drop_one(&mut self) -> Option<HandshakeId> {
        let stranger = self.pending.iter().position(|handshake| !handshake.is_proven);
        self.pending.remove(stranger.unwrap_or(0)).map(|handshake| handshake.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn the_oldest_stranger_goes_first_when_there_are_too_many() {
        let mut core = AcceptCore::new(3);
        let ids: Vec<HandshakeId> = (0..3).map(|time| core.begin(at(time)).0).collect();
        core.proven(ids[0]);
        assert_eq!(core.begin(at(3)).1, Some(ids[1]));
        assert_eq!(core.begin(at(3)).1, Some(ids[2]));
        // An ended handshake leaves its place.
        core.ended(ids[0]);
        assert_eq!(core.begin(at(3)).1, None);
        let all = core.pending.iter().map(|handshake| handshake.id).collect::<Vec<_>>();
        all.iter().for_each(|id| core.proven(*id));
        assert_eq!(core.begin(at(3)).1, Some(all[0]));
    }

    #[test]
    fn a_handshake_ends_at_its_deadline_and_not_before() {
        let mut core = AcceptCore::new(8);
        assert_eq!(core.wake(), None);
        let (first, _) = core.begin(at(1));
        let (second, _) = core.begin(at(4));
        assert_eq!(core.wake(), Some(at(11)));
        assert_eq!(core.tick(at(10)), []);
        assert_eq!(core.tick(at(11)), [first]);
        // The clock goes back; a later handshake does not end before an earlier one.
        let (third, _) = core.begin(at(0));
        assert_eq!(core.tick(at(13)), []);
        assert_eq!(core.tick(at(3600)), [second, third]);
        assert_eq!(core.wake(), None);
    }

    #[test]
    fn without_descriptors_strangers_go_and_then_the_listener_pauses() {
        let mut core = AcceptCore::new(8);
        let (stranger, _) = core.begin(at(1));
        assert_eq!(core.out_of_descriptors(at(1)), Some(stranger));
        assert!(!core.is_paused());
        assert_eq!(core.out_of_descriptors(at(1)), None);
        assert!(core.is_paused() && core.wake() == Some(at(1) + ACCEPT_PAUSE));
        assert_eq!(core.tick(at(1)), []);
        assert!(core.is_paused());
        assert_eq!(core.tick(at(2)), []);
        assert!(!core.is_paused() && core.wake().is_none());
    }
}
