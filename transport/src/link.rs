//! The contract of a link: one direction of one channel between two ranks, a first-in-first-out line of messages.
//!
//! Nothing here blocks. Back-pressure is a value (`None`), not an error; whoever waits parks on the rank's
//! [`Doorbell`](crate::doorbell::Doorbell), which everything that can end a wait rings. Every message has a
//! sequence number (from 1) and is acknowledged by its release; both are part of the contract from the start because
//! a link that loses a path must know which messages to repeat.
//!
//! A link has two protocols, each with its own sequence: *lines* for messages of up to
//! [`lines::LL_CAPACITY`](crate::ll::LL_CAPACITY) bytes, where data and flag travel in the same cache line, and *slots* for
//! all else. Which one a message uses is agreed by both ends beforehand (the plan says so).

use crate::error::LinkError;
use crate::ll::{LlReceiver, LlSender};

/// Position of a message on its link, from 1.
pub type Sequence = u64;

/// The sending end. Used by one thread at a time.
pub struct Outgoing {
    /// The slot protocol.
    pub slots: Box<dyn SendSlots>,
    /// The line protocol, where the link has memory that both ends can poll.
    pub ll: Option<LlSender>,
}

/// The receiving end. Used by one thread at a time.
pub struct Incoming {
    /// The slot protocol.
    pub slots: Box<dyn ReceiveSlots>,
    /// The line protocol, where the link has memory that both ends can poll.
    pub ll: Option<LlReceiver>,
}

/// Memory of a slot, to be filled by the sender.
#[derive(Clone, Copy, Debug)]
pub struct SlotMut {
    /// First byte; aligned to 64.
    pub data: *mut u8,
    /// Bytes that fit.
    pub capacity: usize,
}

/// A message that has arrived and is not yet released.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedMessage {
    /// First byte. It may be the peer's own memory.
    pub data: *const u8,
    /// Length in bytes.
    pub len: usize,
    /// What the sender put beside it: a hash of sequence, call and plan.
    pub tag: u32,
    /// Its position on the link.
    pub sequence: Sequence,
    /// It lies in memory of another process, which has failed if the communicator is aborted, and may write it then. So whoever has
    /// read it looks at [`ReceiveSlots::receive`] once more, after a fence, before the result counts.
    pub in_other_process: bool,
}

/// Which memory a link can [`lend`](SendSlots::lend).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lendable {
    /// None: all is copied.
    Nothing,
    /// That of segments (the `segment` module), once the peer has mapped them.
    Segments,
    /// All memory of this process, which is the peer's too.
    Anything,
}

/// Sending end of the slot protocol.
pub trait SendSlots: Send {
    /// Most bytes of one message.
    fn capacity(&self) -> usize;

    /// Most messages that may be sent and not yet released.
    fn credits(&self) -> u32;

    /// The next free slot, or None as long as the receiver has released none (back-pressure). Idempotent until
    /// [`send`](Self::send).
    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError>;

    /// Publishes the first `len` bytes of the reserved slot and rings the receiver's doorbell.
    ///
    /// # Panics
    /// If no slot is reserved or `len` exceeds its capacity: a bug of the caller.
    fn send(&mut self, len: usize, tag: u32) -> Sequence;

    /// Which memory the receiver can read in place. It never changes.
    fn lendable(&self) -> Lendable {
        Lendable::Nothing
    }

    /// Whether these bytes can be [lent](Self::lend). Memory that the peer still has to map is offered to it by
    /// asking; so the answer may become true, but not false as long as the memory is there.
    fn can_lend(&mut self, data: *const u8, len: usize) -> bool {
        let _ = (data, len);
        self.lendable() == Lendable::Anything
    }

    /// Publishes the caller's own memory as a message, without a copy. None is back-pressure, as in `reserve`.
    ///
    /// # Safety
    /// The `len` bytes at `data` stay valid and unchanged until [`released`](Self::released) reaches the returned sequence. Where the
    /// link lends [`Segments`](Lendable::Segments), they may change after an abort that the peer will see; the peer's result does not
    /// count then.
    ///
    /// # Panics
    /// If the link does [not](Self::can_lend) lend these bytes.
    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        let _ = (data, len, tag);
        panic!("this link cannot lend memory");
    }

    /// All messages up to and with this one are released by the receiver.
    fn released(&mut self) -> Sequence;
}

/// Receiving end of the slot protocol.
pub trait ReceiveSlots: Send {
    /// The first message that is not released, or None if it has not arrived. Idempotent until
    /// [`release`](Self::release).
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError>;

    /// Gives the memory of the first message back to its sender, whose doorbell rings.
    ///
    /// # Panics
    /// If no message was received: a bug of the caller.
    fn release(&mut self);
}
