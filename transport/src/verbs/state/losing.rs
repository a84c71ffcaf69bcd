//! What becomes of the messages of a path that is lost.

use super::PairState;
use crate::verbs::message::{ControlMessage, PathAttempt};
use crate::verbs::path::PathPhase;
use crate::verbs::ring::MessagePlace;

impl PairState {
    /// Ends the queue pairs of a path at this end. What has arrived is then fetched, and the peer
    /// is told.
    pub(in crate::verbs) fn lose(&mut self, index: usize, why: &str) {
        let Some(path) = self.paths.get_mut(index) else { return };
        if !matches!(path.phase, PathPhase::Active | PathPhase::Connecting(_)) {
            return;
        }
        for queue in &path.queues {
            // A queue pair that cannot be changed has failed too.
            let _ = queue.queue.fail();
        }
        path.phase = PathPhase::Ending;
        path.losses += 1;
        why.clone_into(&mut path.why);
        let text = path.text.clone();
        self.tcp.in_use = true;
        self.shared.ask_attention();
        self.shared.upgrade.wake();
        if self.closed || self.failure.is_some() || self.control.gone().is_some() {
            return;
        }
        let others = self.paths.iter().filter(|path| path.is_active()).count();
        let others = match others {
            0 => "TCP".to_owned(),
            1 => "another path".to_owned(),
            _ => format!("{others} other paths"),
        };
        log::warn!(
            "rank {}: an RDMA path to rank {} is lost ({text}): {why}. Its messages go over \
             {others}, and it is tried again in the background; NCCL_IB_DISABLE=1 uses TCP alone",
            self.rank(),
            self.peer,
        );
    }

    /// What follows once all completions are handled: tells the peer of what has arrived on paths
    /// that are lost, and sends what waits. Returns whether there may be new completions.
    pub(in crate::verbs) fn settle(&mut self) -> bool {
        let mut ended = false;
        for index in 0..self.paths.len() {
            if self.paths[index].is_ending() {
                ended = true;
                self.tell_arrivals(index);
            }
        }
        self.send_waiting();
        ended
    }

    fn tell_arrivals(&mut self, index: usize) {
        let attempt = self.paths[index].attempt(index);
        for channel in 0..self.channels.len() {
            let Some(receiving) = &mut self.channels[channel].receiving else { continue };
            let (released, later) = receiving.arrivals();
            receiving.acked_to_peer = released;
            self.say(&ControlMessage::Arrived {
                attempt,
                channel: channel as u16,
                released,
                later,
            });
        }
        let path = &mut self.paths[index];
        path.phase = PathPhase::Ended;
        let why = path.why.clone();
        if path.peer_ended {
            path.go_down(why.clone());
        }
        self.say(&ControlMessage::Stopped(attempt, why));
        self.shared.upgrade.wake();
    }

    /// Handles what the peer says of the arrivals on a channel before a path was ended. What was
    /// sent over the path and has not arrived is sent again.
    pub(super) fn take_arrivals(
        &mut self,
        attempt: PathAttempt,
        channel: u16,
        released: u64,
        later: &[u16],
    ) -> Result<(), &'static str> {
        let index = usize::from(attempt.path);
        self.lose(index, "the peer has ended it");
        let channel_entry = self.channels.get_mut(usize::from(channel));
        let Some(sending) = channel_entry.and_then(|entry| entry.sending.as_mut()) else {
            return Ok(());
        };
        sending.acknowledge(released).ok_or("it released a message that was not sent")?;
        let unreleased: Vec<_> = sending.unreleased().collect();
        for (sequence, message) in unreleased {
            let MessagePlace::Path { path, attempt: number, .. } = message.place else { continue };
            if path != index || number != attempt.number {
                continue;
            }
            let offset = sequence - released;
            if later.iter().any(|arrived| u64::from(*arrived) == offset) {
                sending.set_place(sequence, MessagePlace::Arrived);
            } else {
                sending.set_place(sequence, MessagePlace::Waiting);
                self.waiting.push_back((channel, sequence));
                self.repeated += 1;
            }
        }
        self.shared.ask_attention();
        Ok(())
    }
}
