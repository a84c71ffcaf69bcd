//! The argument of the interpreter kernel, and the link tables to which it points.
//!
//! `kernels/program.cuh` declares the same structures and asserts the same sizes. All addresses are
//! device addresses, those of pinned words too.

use maypole_algorithms::{DType, RedOp};

/// The name of the kernel. It takes one [`KernelLaunch`].
pub const KERNEL_NAME: &std::ffi::CStr = c"maypole_interpret";

/// The name of the kernel that takes one [`WordWrite`].
pub const WRITE_WORD_NAME: &std::ffi::CStr = c"maypole_write_word";

/// A word that a kernel writes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WordWrite {
    /// The address, a multiple of 8.
    pub to: u64,
    /// What is written there.
    pub value: u64,
}

/// Threads per block on a GPU, and the most there may be. Any multiple of 32 works; the simulated
/// device is fastest with 32.
pub const THREADS: u32 = 512;

/// One end of a link. The rings and `filled` are in memory of the receiver, `drained` is in memory
/// of the sender, so that each side polls its own memory; `position` is used by this end only. All
/// of it is zero when the link is made. Counters count since then, so a launch continues where the
/// one before ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkEnd {
    /// The first slot of the ring; a multiple of 16.
    pub slots: u64,
    /// One word per slot: `bytes << 32 | tag` of the message in it, written before `filled`.
    pub heads: u64,
    /// The ring of LL lines: `depth * ll_words` words of 8 bytes, a multiple of 16; 0 if the link
    /// has none. Message `n` uses `ll_words` words from word `n % depth * ll_words` on. Each word
    /// is 32 bits of data and, above them, the low 32 bits of `n + 1` as the flag. The data are the
    /// tag, the number of bytes, and the message.
    pub ll: u64,
    /// Counter: the number of messages that the sender has put into slots. LL messages are counted
    /// together with the next message in a slot.
    pub filled: u64,
    /// Counter: the number of messages that the receiver has consumed.
    pub drained: u64,
    /// Counter: the number of messages that this end has sent or received.
    pub position: u64,
    /// Bytes from one slot to the next; at least a tile, and a multiple of 16.
    pub slot_bytes: u64,
    /// The number of slots and of LL lines: the credits of the link.
    pub depth: u64,
    /// Words of an LL line; even. It holds a message of `4 * (ll_words - 2)` bytes.
    pub ll_words: u64,
}

impl LinkEnd {
    /// The words of the entry in a link table.
    pub const fn words(&self) -> [u64; 9] {
        let Self { slots, heads, ll, filled, drained, position, .. } = *self;
        let Self { slot_bytes, depth, ll_words, .. } = *self;
        [slots, heads, ll, filled, drained, position, slot_bytes, depth, ll_words]
    }
}

/// Bytes that a program needs per lane. They are zero before the first launch, and each work leaves
/// them zero unless it was aborted.
pub const LANE_STATE_BYTES: usize = 32;

/// Bytes at [`KernelWork::departed`]. They are zero before the first launch of the rank.
pub const DEPARTED_BYTES: usize = 32;

/// The part of one rank in one call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelWork {
    /// The program: the words of [`encode`](crate::encode::encode) or
    /// [`encode_transfers`](crate::encode::encode_transfers).
    pub program: u64,
    /// The table of sending [`LinkEnd`]s, in the order of the binding's `sending`.
    pub sending: u64,
    /// The table of receiving [`LinkEnd`]s, in the order of the binding's `receiving`.
    pub receiving: u64,
    /// The send buffer; 0 for transfers, whose extents are addresses.
    pub input: u64,
    /// The receive buffer; 0 for transfers.
    pub output: u64,
    /// One tile for each scratch chunk, `tile * element` bytes apart; a multiple of 16.
    pub scratch: u64,
    /// For each scratch chunk a u32: the number of elements in it. Needs no initial value.
    pub scratch_lengths: u64,
    /// [`LANE_STATE_BYTES`] for each lane of the program.
    pub lanes: u64,
    /// [`DEPARTED_BYTES`] that belong to the rank, the same for all its works. Here the blocks of a
    /// work count themselves when they end, and the device counts finished works.
    pub departed: u64,
    /// A pinned word: if its 64 bits are not zero, waiting works give up. A kernel that finds an
    /// error sets it to 1. Links and lanes cannot be used after that.
    pub abort: u64,
    /// A pinned word: 0, or one of the first errors, `kind << 56 | link << 32 | found`, see
    /// [`KernelError`].
    pub error: u64,
    /// A pinned word: the number of the rank's finished works, aborted ones included. The device
    /// counts at `departed` and only writes the result here.
    pub finished: u64,
    /// The parameter of the operation: the element, in the low bytes, by which contributions are
    /// multiplied (pre-multiplied sum, and 1/nranks rounded to the type for the average of floats),
    /// or the number of ranks (average of integers). See [`ADDRESS`].
    pub parameter: u64,
    /// The operation and the type, see [`operation`] and [`ADDRESS`].
    pub operation: u32,
    /// Combined by xor with the tag of each segment: the tag of this work's messages.
    pub tag: u32,
    /// The first block that runs this work.
    pub first_block: u32,
    /// The number of blocks that run it, at least one. Any number of blocks can run any number of
    /// lanes. All works of one rank in a launch have the same blocks.
    pub blocks: u32,
    /// [`SLOTS`] or [`LL`].
    pub protocol: u32,
    /// Bytes of an element.
    pub element: u32,
}

/// The protocol in which all messages travel in slots.
pub const SLOTS: u32 = 0;
/// The protocol in which LL messages are used on the links that have LL lines; each message must
/// fit.
pub const LL: u32 = 1;

/// A bit of [`KernelWork::operation`]: `parameter` is the address, in device memory, of the element
/// by which contributions are multiplied.
pub const ADDRESS: u32 = 1 << 31;

/// The value of [`KernelWork::operation`] for an operation on a type.
pub const fn operation(dtype: DType, op: RedOp) -> u32 {
    dtype as u32 * 8 + op as u32
}

/// The most works in a launch.
pub const MAX_WORKS: usize = 30;

/// The argument of the kernel. Block `b` runs the works with
/// `first_block <= b < first_block + blocks`, in their order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLaunch {
    /// The number of used entries of `work`.
    pub works: u32,
    /// Unused.
    pub padding: u32,
    /// The works.
    pub work: [KernelWork; MAX_WORKS],
}

impl KernelLaunch {
    /// A launch of `works`, at most [`MAX_WORKS`].
    ///
    /// # Panics
    /// There are more.
    pub fn new(works: &[KernelWork]) -> Self {
        let mut launch = Self {
            works: works.len() as u32,
            padding: 0,
            work: [KernelWork::default(); MAX_WORKS],
        };
        launch.work[..works.len()].copy_from_slice(works);
        launch
    }

    /// The number of blocks of the grid: as many as the works use.
    pub fn blocks(&self) -> u32 {
        let works = &self.work[..self.works as usize];
        works.iter().map(|work| work.first_block + work.blocks).max().unwrap_or(0)
    }
}

/// An error that a kernel reports in the word at [`KernelWork::error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// A message has another tag than this step expects: the two ranks made different calls.
    Tag {
        /// The index of the receiving link.
        link: u32,
        /// The tag of the message.
        found: u32,
    },
    /// A message has the right tag and a wrong length.
    Length {
        /// The index of the receiving link.
        link: u32,
        /// The tag of the message.
        found: u32,
    },
    /// The words are no program, or chunks of one step differ in length: a bug of the plan.
    Program,
}

impl KernelError {
    /// Reads the word; `None` for 0.
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
const _: () = assert!(size_of::<KernelLaunch>() == 3848 && size_of::<WordWrite>() == 16);
