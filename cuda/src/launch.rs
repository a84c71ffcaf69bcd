//! What a launch of the interpreter binds to a program: the kernel's argument and the tables it points to.
//!
//! The twins of the structures in `kernels/program.cuh`, which asserts the same sizes. All addresses are the device's.

/// One end of a link. The ring of slots and `filled` lie with the receiver, `drained` with the sender, so that both poll their own
/// memory; `position` belongs to this end alone. All three count messages since the link was made and are zero then, so the next launch
/// goes on where this one ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEnd {
    /// First slot of the ring; aligned to the element type.
    pub slots: u64,
    /// Counter: messages that the sender has put into slots.
    pub filled: u64,
    /// Counter: messages that the receiver has done with.
    pub drained: u64,
    /// Counter: messages that this end has sent or received.
    pub position: u64,
    /// From one slot to the next; at least a tile.
    pub slot_bytes: u64,
    /// Slots of the ring: the link's credits.
    pub depth: u64,
}

impl LinkEnd {
    /// The entry as it stands in a link table.
    pub const fn words(&self) -> [u64; 6] {
        [self.slots, self.filled, self.drained, self.position, self.slot_bytes, self.depth]
    }
}

/// Bytes that a launch needs per lane, zero before the first launch; each launch leaves them zero.
pub const LANE_STATE_BYTES: usize = 24;

/// The kernel's argument.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The words of [`encode`](crate::encode::encode).
    pub program: u64,
    /// Table of [`LinkEnd`], in the order of the binding's `sending`.
    pub sending: u64,
    /// Table of [`LinkEnd`], in the order of the binding's `receiving`.
    pub receiving: u64,
    /// Send buffer.
    pub input: u64,
    /// Receive buffer.
    pub output: u64,
    /// One tile for each scratch chunk.
    pub scratch: u64,
    /// [`LANE_STATE_BYTES`] for each lane.
    pub lanes: u64,
    /// Counter: blocks that are through; zero before and after a launch.
    pub departed: u64,
    /// Word: not zero makes a launch that waits give up. Links and lanes are of no use afterwards.
    pub abort: u64,
    /// What the operation needs to know: the bits of a factor, or the number of ranks.
    pub parameter: u64,
}

const _: () = assert!(size_of::<LinkEnd>() == 48 && size_of::<Launch>() == 80);
