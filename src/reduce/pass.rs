//! A pass over memory, block by block: what is folded stays in the first-level cache until it is where it belongs.

use std::mem::MaybeUninit;
use std::ptr;

use maypole_algorithms::schedule::MAX_FAN;

use super::FoldKernel;
use super::lanes::Divide;

/// One pass over memory. Addresses need no alignment.
///
/// An output may be exactly an input's memory (the same address); otherwise no output overlaps an input or another output.
#[derive(Clone, Copy, Debug)]
pub struct FoldOperands<'a> {
    /// What is folded, in the order of the fold: 1 to 8.
    pub inputs: &'a [*const u8],
    /// Bit `i`: input `i` is the rank's own contribution, to be scaled where the operation says so.
    pub own: u8,
    /// Where the result goes: 1 to 8.
    pub outputs: &'a [*mut u8],
    /// Bit `i`: output `i` is written past the cache, being large and not read again soon. If any is, the pass ends
    /// with a store fence, so that a release store that follows publishes these outputs too.
    pub non_temporal: u8,
    /// Elements of each input and output.
    pub count: usize,
    /// Apply the operation's closing function.
    pub finish: bool,
}

/// Bytes that are folded at a time. Eight sources of that size and what is made of them fit a first-level cache of 32 KiB
/// when some of the sources are scratch.
const BLOCK: usize = 4096;

/// Inputs that the loops fold at once.
const GROUP: usize = 4;

/// A block of intermediate values.
#[repr(C, align(64))]
struct Block(MaybeUninit<[u8; BLOCK]>);

impl Block {
    const NEW: Self = Self(MaybeUninit::uninit());

    fn at(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// Intermediate values: of inputs 0 to 3, of inputs 4 to 7, and of contributions that were scaled.
struct Scratch {
    left: Block,
    right: Block,
    scaled: [Block; GROUP],
}

impl FoldKernel {
    /// Runs a pass.
    ///
    /// # Safety
    /// Each input is valid for reads, and each output for writes, of `count` elements during the call, with no
    /// concurrent access that conflicts, and they overlap only as [`FoldOperands`] allows.
    pub unsafe fn run(&self, pass: &FoldOperands<'_>) {
        debug_assert!((1..=MAX_FAN).contains(&pass.inputs.len()));
        debug_assert!((1..=MAX_FAN).contains(&pass.outputs.len()));
        let factor = self.factor.filter(|_| pass.own & low_bits(pass.inputs.len()) != 0);
        let divide = self.loops.divide.zip(self.divisor).filter(|_| pass.finish);
        let non_temporal = pass.non_temporal & low_bits(pass.outputs.len()) != 0;
        let plain = factor.is_none() && divide.is_none();
        let fan_in = pass.inputs.len();
        if plain && fan_in == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.copy(pass) };
        } else if plain && !non_temporal && fan_in <= GROUP && pass.outputs.len() == 1 {
            // Without intermediate values there is no need for blocks.
            // SAFETY: the caller's promise.
            unsafe { self.fold(pass.outputs[0], pass.inputs, pass.count) };
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.blocks(pass, factor, divide) };
        }
        if non_temporal {
            fence();
        }
    }

    /// Folds 2 to 4 inputs into one output.
    unsafe fn fold(&self, to: *mut u8, from: &[*const u8], elements: usize) {
        let fold = self.loops.fold[from.len() - 2];
        // SAFETY: the caller's promise; `select` has seen that the machine has the instruction set.
        unsafe { fold(to, from.as_ptr(), elements) }
    }

    /// One input, as it is, to every output.
    unsafe fn copy(&self, pass: &FoldOperands<'_>) {
        let from = pass.inputs[0];
        let bytes = pass.count * self.loops.size;
        let block = if pass.outputs.len() == 1 { bytes } else { BLOCK };
        let mut at = 0;
        while at < bytes {
            let len = block.min(bytes - at);
            for (i, &to) in pass.outputs.iter().enumerate() {
                if to.cast_const() != from {
                    // SAFETY: at + len <= bytes; an output that is not the input does not overlap it.
                    unsafe {
                        self.put(to.add(at), from.add(at), len, pass.non_temporal >> i & 1 != 0)
                    }
                }
            }
            at += len;
        }
    }

    /// The general case. A block's inputs are all read before any output but the first is written, and that one is written
    /// register by register behind the reads: so outputs may be inputs.
    unsafe fn blocks(
        &self,
        pass: &FoldOperands<'_>,
        factor: Option<u64>,
        divide: Option<(Divide, u32)>,
    ) {
        let size = self.loops.size;
        let mut scratch =
            Scratch { left: Block::NEW, right: Block::NEW, scaled: [Block::NEW; GROUP] };
        let direct = (0..pass.outputs.len()).find(|i| pass.non_temporal >> i & 1 == 0);
        let mut inputs = [ptr::null(); MAX_FAN];
        let inputs = &mut inputs[..pass.inputs.len()];
        let mut done = 0;
        while done < pass.count {
            let elements = (BLOCK / size).min(pass.count - done);
            let (at, bytes) = (done * size, elements * size);
            for (input, whole) in inputs.iter_mut().zip(pass.inputs) {
                *input = whole.wrapping_add(at);
            }
            let result = match direct {
                Some(i) => pass.outputs[i].wrapping_add(at),
                None => scratch.left.at(),
            };
            // SAFETY: the block is within the operands; scratch blocks hold `elements`; a result in memory of an input
            // is at the same address.
            unsafe {
                self.fold_block(
                    result,
                    inputs,
                    elements,
                    factor.map(|f| (f, pass.own)),
                    &mut scratch,
                );
                if let Some((divide, divisor)) = divide {
                    divide(result, divisor, elements);
                }
                for (i, to) in pass.outputs.iter().enumerate().filter(|&(i, _)| Some(i) != direct) {
                    self.put(to.add(at), result, bytes, pass.non_temporal >> i & 1 != 0);
                }
            }
            done += elements;
        }
    }

    /// Folds a block of 1 to 8 inputs into `result`, which may be `scratch.left`. `own` is the factor and which inputs
    /// are scaled by it.
    unsafe fn fold_block(
        &self,
        result: *mut u8,
        inputs: &mut [*const u8],
        elements: usize,
        own: Option<(u64, u8)>,
        scratch: &mut Scratch,
    ) {
        let Scratch { left, right, scaled } = scratch;
        let (low, high) = inputs.split_at_mut(GROUP.min(inputs.len()));
        // SAFETY: all operands hold `elements` elements, which are at most a block. What is scaled for the lower group
        // has been folded when the upper group's takes its place.
        unsafe {
            if let Some((factor, own)) = own {
                self.scale(low, own, factor, elements, scaled);
            }
            if high.is_empty() {
                self.node(result, low, elements);
                return;
            }
            self.node(left.at(), low, elements);
            if let Some((factor, own)) = own {
                self.scale(high, own >> GROUP, factor, elements, scaled);
            }
            let upper = match high {
                [single] => *single,
                _ => {
                    self.node(right.at(), high, elements);
                    right.at()
                }
            };
            self.fold(result, &[left.at(), upper], elements);
        }
    }

    /// Folds 1 to 4 inputs.
    unsafe fn node(&self, to: *mut u8, from: &[*const u8], elements: usize) {
        match *from {
            [input] if input == to => {}
            // SAFETY: the caller's promise; what is not the same does not overlap.
            [input] => unsafe { ptr::copy_nonoverlapping(input, to, elements * self.loops.size) },
            // SAFETY: the caller's promise.
            _ => unsafe { self.fold(to, from, elements) },
        }
    }

    /// Replaces inputs that are own contributions by their scaled values.
    unsafe fn scale(
        &self,
        inputs: &mut [*const u8],
        own: u8,
        factor: u64,
        elements: usize,
        scaled: &mut [Block; GROUP],
    ) {
        for (i, (input, block)) in inputs.iter_mut().zip(scaled).enumerate() {
            if own >> i & 1 != 0 {
                // SAFETY: the caller's promise; `select` has seen that the machine has the instruction set.
                unsafe { (self.loops.scale)(block.at(), *input, factor, elements) };
                *input = block.at();
            }
        }
    }

    /// Copies `bytes` bytes between memory that does not overlap.
    unsafe fn put(&self, to: *mut u8, from: *const u8, bytes: usize, non_temporal: bool) {
        // SAFETY: the caller's promise; `select` has seen that the machine has the instruction set.
        unsafe {
            if non_temporal {
                (self.loops.stream)(to, from, bytes);
            } else {
                ptr::copy_nonoverlapping(from, to, bytes);
            }
        }
    }
}

/// A mask of the lowest `n` bits, 1 to 8.
fn low_bits(n: usize) -> u8 {
    u8::MAX >> (MAX_FAN - n)
}

/// Orders non-temporal stores before every later store, a release among them. Neither the compiler nor a model checker
/// knows that they need it: x86's ordinary stores are ordered by themselves.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
