//! What a launch of the interpreter binds to programs: the kernel's argument and the tables it points to.
//!
//! The twins of the structures in `kernels/program.cuh`, which asserts the same sizes. All addresses are the device's, those of
//! pinned words too.

use maypole_algorithms::{DType, RedOp};

/// The kernel's name. It takes one [`KernelLaunch`].
pub const KERNEL_NAME: &std::ffi::CStr = c"maypole_interpret";

/// Threads per block on a GPU, and the most there may be. Any multiple of 32 will do; the simulated device is fastest with 32.
pub const THREADS: u32 = 512;

/// One end of a link. The rings and `filled` lie with the receiver, `drained` with the sender, so that both poll their own
/// memory; `position` belongs to this end alone. All memory is zero when the link is made, and what counts messages counts since
/// then, so the next launch goes on where this one ends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEnd {
    /// First slot of the ring of slots; aligned to 16 bytes.
    pub slots: u64,
    /// A word for each slot: `bytes << 32 | tag` of the message in it. Written before `filled`.
    pub heads: u64,
    /// The ring of lines: `depth * ll_words` words of 8 bytes, aligned to 16; 0 if the link has none. Message `n` takes
    /// `ll_words` from word `n % depth * ll_words` on; each word is 32 bits of data and, above them, the low 32 bits of
    /// `n + 1`. The data are the tag, the number of bytes, and the message.
    pub ll: u64,
    /// Counter: the sender has put all messages before this one into their slots. Messages in lines are counted with the next
    /// one in a slot.
    pub filled: u64,
    /// Counter: messages that the receiver has done with.
    pub drained: u64,
    /// Counter: messages that this end has sent or received.
    pub position: u64,
    /// From one slot to the next; at least a tile, and a multiple of 16.
    pub slot_bytes: u64,
    /// Messages under way: the link's credits.
    pub depth: u64,
    /// Words of a message in lines; even. It holds `4 * (ll_words - 2)` bytes.
    pub ll_words: u64,
}

impl LinkEnd {
    /// The entry as it stands in a link table.
    pub const fn words(&self) -> [u64; 9] {
        let Self { slots, heads, ll, filled, drained, position, .. } = *self;
        let Self { slot_bytes, depth, ll_words, .. } = *self;
        [slots, heads, ll, filled, drained, position, slot_bytes, depth, ll_words]
    }
}

/// Bytes that a rank needs per lane, zero before the first launch; each work leaves them zero, unless it was aborted.
pub const LANE_STATE_BYTES: usize = 32;

/// Bytes at [`KernelWork::departed`], zero before the first launch of the rank.
pub const DEPARTED_BYTES: usize = 32;

/// One rank's part of one call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelWork {
    /// The words of [`encode`](crate::encode::encode) or [`encode_transfers`](crate::encode::encode_transfers).
    pub program: u64,
    /// Table of [`LinkEnd`], in the order of the binding's `sending`.
    pub sending: u64,
    /// Table of [`LinkEnd`], in the order of the binding's `receiving`.
    pub receiving: u64,
    /// Send buffer; 0 for transfers, whose extents are addresses.
    pub input: u64,
    /// Receive buffer; 0 for transfers.
    pub output: u64,
    /// One tile for each scratch chunk, each beginning `tile * element` bytes after the one before. Aligned to 16 bytes.
    pub scratch: u64,
    /// For each scratch chunk a u32: how many elements it holds. Needs no initial value.
    pub scratch_lengths: u64,
    /// [`LANE_STATE_BYTES`] for each lane of the program.
    pub lanes: u64,
    /// [`DEPARTED_BYTES`] of the rank's own, the same for all its works.
    pub departed: u64,
    /// Pinned word, all 64 bits: not zero makes works that wait give up, and trouble sets it to 1. Links and lanes are of no use
    /// afterwards.
    pub abort: u64,
    /// Pinned word: 0, or one of the first problems: `kind << 56 | link << 32 | tag found`, see [`KernelError`].
    pub error: u64,
    /// Pinned word: the rank's works that are over, aborted ones too. The device counts at `departed`, and only writes here.
    pub finished: u64,
    /// What the operation needs to know: what contributions are multiplied by, an element in the low bytes (premulsum, and the
    /// average of floats: 1/nranks rounded to the type), or the number of ranks (average of integers). See [`ADDRESS`].
    pub parameter: u64,
    /// See [`operation`] and [`ADDRESS`].
    pub operation: u32,
    /// Xored with that of each segment: what this work's messages carry.
    pub tag: u32,
    /// The first block that runs this work.
    pub first_block: u32,
    /// How many do, at least one; any number runs any number of lanes. Works of one rank have the same blocks in all of a launch.
    pub blocks: u32,
    /// [`SLOTS`] or [`LL`].
    pub protocol: u32,
    /// Bytes of an element.
    pub element: u32,
}

/// A protocol: all messages in slots.
pub const SLOTS: u32 = 0;
/// A protocol: messages in lines on the links that have them; each must fit.
pub const LL: u32 = 1;

/// Bit of [`KernelWork::operation`]: `parameter` is the address, in memory of the device, of the element that contributions are multiplied by.
pub const ADDRESS: u32 = 1 << 31;

/// [`KernelWork::operation`] for an operation on a type.
pub const fn operation(dtype: DType, op: RedOp) -> u32 {
    dtype as u32 * 8 + op as u32
}

/// Works in a launch.
pub const MAX_WORKS: usize = 30;

/// The kernel's argument. Block `b` runs, in their order, the works with `first_block <= b < first_block + blocks`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLaunch {
    /// How many of `work` there are.
    pub works: u32,
    /// Nothing.
    pub padding: u32,
    /// The works.
    pub work: [KernelWork; MAX_WORKS],
}

impl KernelLaunch {
    /// A launch of `works`, at most [`MAX_WORKS`].
    ///
    /// # Panics
    /// If there are more.
    pub fn new(works: &[KernelWork]) -> Self {
        let mut launch = Self {
            works: works.len() as u32,
            padding: 0,
            work: [KernelWork::default(); MAX_WORKS],
        };
        launch.work[..works.len()].copy_from_slice(works);
        launch
    }

    /// Blocks of the grid: all that a work names.
    pub fn blocks(&self) -> u32 {
        let works = &self.work[..self.works as usize];
        works.iter().map(|work| work.first_block + work.blocks).max().unwrap_or(0)
    }
}

/// What the word at [`KernelWork::error`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// A message with a tag that is not the one of this step: the two ranks do not do the same thing.
    Tag {
        /// Which of the receiving links.
        link: u32,
        /// What the message carries.
        found: u32,
    },
    /// A message with the right tag and a wrong length.
    Length {
        /// Which of the receiving links.
        link: u32,
        /// What the message carries.
        found: u32,
    },
    /// Words that are not a program, or chunks of one step that differ in length: a bug of the plan.
    Program,
}

impl KernelError {
    /// What `word` says; None for 0.
    pub const fn from_word(word: u64) -> Option<Self> {
        let (link, found) = ((word >> 32) as u32 & 0xff_ffff, word as u32);
        match word >> 56 {
            0 => None,
            1 => Some(Self::Tag { link, found }),
            2 => Some(Self::Length { link, found }),
            _ => Some(Self::Program),
        }
    }
}

const _: () = assert!(size_of::<LinkEnd>() == 72 && size_of::<KernelWork>() == 128);
const _: () = assert!(size_of::<KernelLaunch>() == 3848);
