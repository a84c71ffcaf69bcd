//! The control tree after the bootstrap: control messages between neighbours, and the events that
//! they cause.

use super::{ControlTree, TreeChild};
use crate::bootstrap::error::BootstrapError;
use crate::bootstrap::frame::ControlFrame;
use crate::bootstrap::frame_stream::{FrameStream, StreamEnd};
use crate::bootstrap::tree_shape::{self, parent};

/// What a neighbour in the control tree did, after the bootstrap.
pub(crate) enum TreeEvent {
    /// It sent a control message.
    Message(u32, Vec<u8>),
    /// It failed and says why, or it sent bytes that break the protocol.
    Failed(u32, BootstrapError),
    /// Its connection ended, and it is no neighbour any more.
    Ended(u32),
}

/// What the control plane does with the tree.
impl ControlTree {
    /// This rank.
    pub(crate) fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of ranks.
    pub(crate) fn nranks(&self) -> u32 {
        self.nranks
    }

    /// The ranks to which a connection is open.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = u32> {
        let above = self.above.is_some().then(|| parent(self.rank)).flatten();
        above.into_iter().chain(self.below.iter().map(|child| child.rank))
    }

    /// Makes the kernel notice when the host of this neighbour is gone.
    pub(crate) fn enable_keep_alive(&self, neighbour: u32) {
        let above = self.above.iter().filter(|_| parent(self.rank) == Some(neighbour));
        let below = self.below.iter().filter(|child| child.rank == neighbour);
        above.chain(below.map(|child| &child.connection)).for_each(FrameStream::enable_keep_alive);
    }

    /// Reads what has come, in the order in which it was sent. Parts of exchanges are kept for
    /// [`advance_exchange`](Self::advance_exchange).
    pub(crate) fn read_events(&mut self) -> Vec<TreeEvent> {
        let mut events: Vec<TreeEvent> =
            self.messages.drain(..).map(|(rank, bytes)| TreeEvent::Message(rank, bytes)).collect();
        if let (Some(above), Some(rank)) = (&mut self.above, parent(self.rank)) {
            let (down, sequence) = (&mut self.down, self.sequence);
            let keep = read_events_of(above, rank, &mut events, |frame| match frame {
                ControlFrame::Down { sequence: theirs, items }
                    if theirs == sequence && down.is_none() =>
                {
                    *down = Some(items);
                    true
                }
                _ => false,
            });
            if !keep {
                self.above = None;
            }
        }
        self.below.retain_mut(|TreeChild { rank, connection, up }| {
            read_events_of(connection, *rank, &mut events, |frame| match frame {
                ControlFrame::Up { sequence, items } if up.is_none() => {
                    *up = Some((sequence, items));
                    true
                }
                _ => false,
            })
        });
        events
    }

    /// Sends a control message to a neighbour. Does nothing if the rank is no neighbour any more.
    pub(crate) fn send_message(&mut self, neighbour: u32, message: &[u8]) {
        if let Some(connection) = self.connection(neighbour) {
            connection.send(&ControlFrame::Message(message.to_vec()));
        }
    }

    /// The neighbour on the path to `rank`. None if there is no such path.
    pub(crate) fn next_hop(&self, rank: u32) -> Option<u32> {
        tree_shape::next_hop(self.rank, rank, self.nranks)
    }

    /// The ranks that a message to `rank` passes, without this rank and `rank`.
    pub(crate) fn ranks_between(&self, rank: u32) -> Vec<u32> {
        tree_shape::ranks_between(self.rank, rank)
    }

    /// Closes the connection to a neighbour.
    pub(crate) fn remove_neighbour(&mut self, neighbour: u32) {
        if parent(self.rank) == Some(neighbour) {
            self.above = None;
        }
        self.below.retain(|child| child.rank != neighbour);
    }

    /// Closes all connections; what was sent still arrives.
    pub(crate) fn close(&mut self) {
        let above = self.above.take();
        for mut connection in self.below.drain(..).map(|child| child.connection).chain(above) {
            connection.flush();
            connection.shut_down_sending();
            // Closing a socket that has unread data would discard what was sent.
            connection.discard();
        }
    }

    fn connection(&mut self, neighbour: u32) -> Option<&mut FrameStream> {
        if parent(self.rank) == Some(neighbour) {
            return self.above.as_mut();
        }
        self.below
            .iter_mut()
            .find(|child| child.rank == neighbour)
            .map(|child| &mut child.connection)
    }
}

/// Reads the frames of a neighbour. `take_part` takes those of exchanges, and returns false for a
/// frame that is not expected. False if the connection is to be removed.
fn read_events_of(
    connection: &mut FrameStream,
    rank: u32,
    events: &mut Vec<TreeEvent>,
    mut take_part: impl FnMut(ControlFrame) -> bool,
) -> bool {
    connection.fill();
    connection.flush();
    loop {
        let expected = match connection.next() {
            Ok(None) => return true,
            Ok(Some(ControlFrame::Message(bytes))) => {
                events.push(TreeEvent::Message(rank, bytes));
                true
            }
            Ok(Some(ControlFrame::Verdict(error))) => {
                events.push(TreeEvent::Failed(rank, error));
                true
            }
            Ok(Some(ControlFrame::Status { .. })) => true,
            Ok(Some(frame)) => take_part(frame),
            Err(StreamEnd::Malformed) => false,
            Err(StreamEnd::Closed) => {
                events.push(TreeEvent::Ended(rank));
                return false;
            }
        };
        if !expected {
            let why = String::from("it sent bytes that break the protocol");
            events.push(TreeEvent::Failed(rank, BootstrapError::PeerFailed { rank, why }));
            return false;
        }
    }
}
