//! The contract of a link: one direction of one channel between two ranks, first in, first out.
//!
//! Nothing here blocks. Back-pressure is a value (`None`), not an error. A rank that waits sleeps
//! on its [`Doorbell`](crate::doorbell::Doorbell), which everything that can end the wait rings.
//! Every message has a sequence number (from 1) and is acknowledged by its release, so that a link
//! that loses a connection knows which messages to repeat.
//!
//! A link has two protocols, each with its own sequence. *LL* carries messages of up to
//! [`LL_CAPACITY`](crate::ll::LL_CAPACITY) bytes, with data and flag in the same cache line.
//! *Slots* carry everything else. Both ends know beforehand which one a message uses (the plan says
//! so). Where a link has both, messages become visible in the order in which they were sent, also
//! if they travel by different protocols. So a receiver that waits for a message by one of them,
//! and sees a later message by the other, knows that the two ends expect different messages.

pub use crate::Sequence;
use crate::error::LinkError;
use crate::ll::{LlReceiver, LlSender};

/// The sending end of a link. Used by one thread at a time.
pub struct Outgoing {
    /// The slot protocol.
    pub slots: Box<dyn SendSlots>,
    /// The LL protocol, if the link has memory that both ends can poll.
    pub ll: Option<LlSender>,
}

/// The receiving end of a link. Used by one thread at a time.
pub struct Incoming {
    /// The slot protocol.
    pub slots: Box<dyn ReceiveSlots>,
    /// The LL protocol, if the link has memory that both ends can poll.
    pub ll: Option<LlReceiver>,
}

/// The memory of a slot, to be filled by the sender.
#[derive(Clone, Copy, Debug)]
pub struct SlotMut {
    /// The first byte; aligned to 64.
    pub data: *mut u8,
    /// Number of bytes that fit.
    pub capacity: usize,
}

/// What is wrong in the header of a message that a test sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderDamage {
    /// The message has this length, which may be more than its slot has.
    Length(usize),
    /// The message has this sequence.
    Sequence(Sequence),
    /// The message is of another kind, which follows from this number.
    Kind(u64),
}

/// A message that has arrived and is not yet released.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedMessage {
    /// The first byte. It may lie in the peer's own memory.
    pub data: *const u8,
    /// Length in bytes.
    pub len: usize,
    /// The tag that the sender sent with it: a hash of sequence, call and plan.
    pub tag: u32,
    /// Its position on the link.
    pub sequence: Sequence,
    /// The message lies in memory of another process. If the communicator is aborted, that process
    /// has failed and may already overwrite the memory. A caller that has read such a message
    /// therefore calls [`ReceiveSlots::receive`] again, after a fence, before it uses the result.
    pub in_other_process: bool,
}

/// Which memory a link can [`lend`](SendSlots::lend).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lendable {
    /// None: every message is copied.
    Nothing,
    /// Memory of segments (see the `segment` module) that the peer has mapped.
    Segments,
    /// All memory of this process, in messages of at most the [capacity](SendSlots::capacity). The
    /// link sends the bytes from where they lie, and keeps them for as long as it may have to send
    /// them again.
    ForSending,
    /// All memory of this process, because the peer is in it too.
    Anything,
}

/// Memory into which the next message may be stored when it arrives.
#[derive(Clone, Copy, Debug)]
pub struct PostedMemory {
    /// The first byte.
    pub data: *mut u8,
    /// The length in bytes that the message must have.
    pub len: usize,
    /// The tag that the message must have.
    pub tag: u32,
}

/// The sending end of the slot protocol.
pub trait SendSlots: Send {
    /// Maximum number of bytes of a message in a slot.
    fn capacity(&self) -> usize;

    /// Maximum number of messages that are sent and not yet released.
    fn credits(&self) -> u32;

    /// Chooses how much memory the next messages cycle through: at least as much as `messages`
    /// messages of full length need. So many can be under way, up to [`credits`](Self::credits);
    /// more only if they are short. Messages that were sent before may delay that until they are
    /// released. This is a hint about caches. Links that allocate slots one by
    /// one ignore it.
    fn set_cycle(&mut self, messages: u32) {
        let _ = messages;
    }

    /// The next free slot, or `None` while the receiver has released none (back-pressure).
    /// Idempotent until [`send`](Self::send).
    ///
    /// # Errors
    /// The communicator was aborted, or the peer is gone, or the link is corrupt.
    fn reserve(&mut self) -> Result<Option<SlotMut>, LinkError>;

    /// Publishes the first `len` bytes of the reserved slot and rings the receiver's doorbell.
    ///
    /// # Panics
    /// If no slot is reserved or `len` exceeds its capacity: a bug of the caller.
    fn send(&mut self, len: usize, tag: u32) -> Sequence;

    /// As [`send`](Self::send), with a header that no correct sender writes. It is for tests of
    /// receivers: they must report it, or go on as if the header were right.
    fn send_damaged(&mut self, len: usize, tag: u32, damage: HeaderDamage) -> Sequence;

    /// Which memory the receiver can read in place. The answer never changes.
    fn lendable(&self) -> Lendable {
        Lendable::Nothing
    }

    /// Whether these bytes can be [lent](Self::lend). The call offers memory to the peer that the
    /// peer must map first. The answer may therefore become true later, but does not become false
    /// while the memory exists.
    fn can_lend(&mut self, data: *const u8, len: usize) -> bool {
        let _ = (data, len);
        self.lendable() == Lendable::Anything
    }

    /// Publishes the caller's own memory as a message, without a copy. `None` is back-pressure, as
    /// in [`reserve`](Self::reserve). A link that lends [for sending](Lendable::ForSending) may put
    /// the message off until the next [`flush`](Self::flush) or [`send`](Self::send), because it
    /// is cheaper to send several at once.
    ///
    /// # Safety
    /// The `len` bytes at `data` stay valid and unchanged until [`released`](Self::released)
    /// reaches the returned sequence. If the link lends [`Segments`](Lendable::Segments), they may
    /// change after an abort that the peer will see; the peer then discards its result.
    ///
    /// # Errors
    /// As for [`reserve`](Self::reserve).
    ///
    /// # Panics
    /// If the link [cannot lend](Self::can_lend) these bytes.
    unsafe fn lend(
        &mut self,
        data: *const u8,
        len: usize,
        tag: u32,
    ) -> Result<Option<Sequence>, LinkError> {
        let _ = (data, len, tag);
        panic!("this link cannot lend memory");
    }

    /// Sends the messages that [`lend`](Self::lend) has put off.
    fn flush(&mut self) {}

    /// Ends the use of lent memory [for sending](Lendable::ForSending): the link copies what it may
    /// still have to send. A call that fails does this before it returns. Links that lend in
    /// another way do nothing.
    fn withdraw(&mut self) {}

    /// The sequence up to which the receiver has released all messages.
    fn released(&mut self) -> Sequence;
}

/// The receiving end of the slot protocol.
pub trait ReceiveSlots: Send {
    /// The first message that is not released, or `None` if it has not arrived. Idempotent until
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// The communicator was aborted, or the peer is gone, or the link is corrupt.
    fn receive(&mut self) -> Result<Option<ReceivedMessage>, LinkError>;

    /// Whether the link uses [posted](Self::post) memory. The answer never changes.
    fn takes_posts(&self) -> bool {
        false
    }

    /// Offers memory for the first message that is not released. If the message has the length and
    /// the tag of the offer, the link may store it there, and then
    /// [`ReceivedMessage::data`] says so. Another message, or one that had arrived before, lies
    /// elsewhere. Until the release nothing else of this peer may be waited for, because the link
    /// may read no further. Links that do not copy messages ignore the offer.
    ///
    /// # Safety
    /// The memory is valid for writes, and nothing else uses it, until the message is released or
    /// [`withdraw`](Self::withdraw) has returned.
    unsafe fn post(&mut self, memory: PostedMemory) {
        let _ = memory;
    }

    /// Ends the use of [posted](Self::post) memory. The content of that memory is then arbitrary,
    /// and the message may be lost. A call that fails does this before it returns.
    fn withdraw(&mut self) {}

    /// Releases the first message: its memory belongs to the sender again, whose doorbell rings.
    /// If that takes a message to the sender, it may wait for more releases, unless
    /// [`acknowledge`](Self::acknowledge) is called.
    ///
    /// # Panics
    /// If no message was received: a bug of the caller.
    fn release(&mut self);

    /// Tells the sender now of the releases that it waits for, because it has lent the memory.
    fn acknowledge(&mut self) {}

    /// As [`release`](Self::release), and acknowledges `excess` messages more than were received.
    /// It is for tests of senders, which must report it.
    fn release_damaged(&mut self, excess: u64);
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::ll::LlPoll;
    use crate::ll::loom_tests::new_ends;
    use crate::slots::loom_tests::one_slot;
    use loom::thread;

    /// A receiver that sees the later of two messages sees the earlier one too, whichever of them
    /// is the LL message.
    #[test]
    fn loom_messages_by_different_protocols_become_visible_in_order() {
        for ll_first in [false, true] {
            loom::model(move || {
                let (mut slot_sender, mut slots) = one_slot();
                let (mut ll_sender, mut ll) = new_ends();
                let handle = thread::spawn(move || {
                    let mut send_ll = || {
                        assert!(ll_sender.ready());
                        // SAFETY: a slot is free, and the array has eight bytes.
                        unsafe { ll_sender.write([1; 8].as_ptr(), 8, 7) };
                    };
                    if ll_first {
                        send_ll();
                    }
                    slot_sender.reserve().unwrap().unwrap();
                    slot_sender.send(1, 0);
                    if !ll_first {
                        send_ll();
                    }
                });
                if ll_first {
                    let later = slots.receive().unwrap().is_some();
                    assert!(!later || ll.poll(8, 7) == LlPoll::Ready);
                } else {
                    let later = ll.begun() == Some(7);
                    assert!(!later || slots.receive().unwrap().is_some());
                }
                handle.join().unwrap();
            });
        }
    }
}
