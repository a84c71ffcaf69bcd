//! The fold of whole operands, block by block, so that intermediate values stay in the first-level
//! cache.

use std::mem::MaybeUninit;
use std::ptr;

use maypole_algorithms::schedule::MAX_FAN;

use super::FoldKernel;
use super::loops::DivideLoop;

/// The operands of one fold. Addresses need no alignment.
///
/// An output may be exactly the memory of an input (the same address). Otherwise no output overlaps
/// an input or another output.
#[derive(Clone, Copy, Debug)]
pub struct FoldOperands<'a> {
    /// The inputs, 1 to 8, in the order of the fold.
    pub inputs: &'a [*const u8],
    /// Bit `i`: input `i` is the rank's own contribution, which is scaled if the operation scales.
    pub own: u8,
    /// The outputs, 1 to 8, which all get the result.
    pub outputs: &'a [*mut u8],
    /// Bit `i`: output `i` is written past the caches, because it is large and not read again soon.
    /// If any bit is set, the fold ends with a store fence, so that a release store that follows
    /// publishes these outputs too.
    pub non_temporal: u8,
    /// Elements of each input and output.
    pub count: usize,
    /// Whether the fold closes the reduction: an integer average is divided.
    pub finish: bool,
}

/// Bytes that are folded at a time. Eight sources of this size and their intermediate values fit a
/// first-level cache of 32 KiB when some of the sources are intermediate values.
const BLOCK: usize = 4096;

/// The most inputs that one loop folds.
const GROUP: usize = 4;

/// A block of intermediate values.
#[repr(C, align(64))]
struct ValueBlock(MaybeUninit<[u8; BLOCK]>);

impl ValueBlock {
    const NEW: Self = Self(MaybeUninit::uninit());

    fn start(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// The intermediate values of a block: the fold of inputs 0 to 3, the fold of inputs 4 to 7, and
/// contributions that were scaled.
struct IntermediateValues {
    left: ValueBlock,
    right: ValueBlock,
    scaled: [ValueBlock; GROUP],
}

impl FoldKernel {
    /// Folds the inputs and writes the result to every output.
    ///
    /// # Safety
    /// Each input is valid for reads, and each output for writes, of `count` elements during the
    /// call, without concurrent accesses that conflict. They overlap only as [`FoldOperands`]
    /// allows.
    pub unsafe fn run(&self, operands: &FoldOperands<'_>) {
        debug_assert!((1..=MAX_FAN).contains(&operands.inputs.len()));
        debug_assert!((1..=MAX_FAN).contains(&operands.outputs.len()));
        let factor = self.factor.filter(|_| operands.own & low_bits(operands.inputs.len()) != 0);
        let divide = self.loops.divide.zip(self.divisor).filter(|_| operands.finish);
        let non_temporal = operands.non_temporal & low_bits(operands.outputs.len()) != 0;
        let plain = factor.is_none() && divide.is_none();
        let fan_in = operands.inputs.len();
        if plain && fan_in == 1 {
            // SAFETY: the caller's promise.
            unsafe { self.copy(operands) };
        } else if plain && !non_temporal && fan_in <= GROUP && operands.outputs.len() == 1 {
            // There are no intermediate values, so blocks would gain nothing.
            // SAFETY: the caller's promise.
            unsafe { self.fold(operands.outputs[0], operands.inputs, operands.count) };
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.fold_by_blocks(operands, factor, divide) };
        }
        if non_temporal {
            fence();
        }
    }

    /// Folds 2 to 4 inputs into one output.
    ///
    /// # Safety
    /// All operands hold `elements` elements, and overlap only as [`FoldOperands`] allows.
    unsafe fn fold(&self, to: *mut u8, from: &[*const u8], elements: usize) {
        let fold = self.loops.fold[from.len() - 2];
        // SAFETY: the caller's promise; `select` has checked that the machine has the instruction
        // set.
        unsafe { fold(to, from.as_ptr(), elements) }
    }

    /// Copies the only input to every output.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn copy(&self, operands: &FoldOperands<'_>) {
        let from = operands.inputs[0];
        let bytes = operands.count * self.loops.size;
        let block = if operands.outputs.len() == 1 { bytes } else { BLOCK };
        let mut at = 0;
        while at < bytes {
            let len = block.min(bytes - at);
            for (i, &to) in operands.outputs.iter().enumerate() {
                if to.cast_const() != from {
                    let non_temporal = operands.non_temporal >> i & 1 != 0;
                    // SAFETY: at + len <= bytes; an output that is not the input does not overlap
                    // it.
                    unsafe { self.copy_block(to.add(at), from.add(at), len, non_temporal) }
                }
            }
            at += len;
        }
    }

    /// The general case. All inputs of a block are read before any output but the first is
    /// written, and the first is written register by register behind the reads. So outputs may be
    /// inputs.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn fold_by_blocks(
        &self,
        operands: &FoldOperands<'_>,
        factor: Option<u64>,
        divide: Option<(DivideLoop, u32)>,
    ) {
        let size = self.loops.size;
        let mut values = IntermediateValues {
            left: ValueBlock::NEW,
            right: ValueBlock::NEW,
            scaled: [ValueBlock::NEW; GROUP],
        };
        // The output into which blocks are folded; the other outputs are copies.
        let direct = (0..operands.outputs.len()).find(|i| operands.non_temporal >> i & 1 == 0);
        let mut inputs = [ptr::null(); MAX_FAN];
        let inputs = &mut inputs[..operands.inputs.len()];
        let mut done = 0;
        while done < operands.count {
            let elements = (BLOCK / size).min(operands.count - done);
            let (at, bytes) = (done * size, elements * size);
            for (input, whole) in inputs.iter_mut().zip(operands.inputs) {
                *input = whole.wrapping_add(at);
            }
            let result = match direct {
                Some(i) => operands.outputs[i].wrapping_add(at),
                None => values.left.start(),
            };
            let own = factor.map(|factor| (factor, operands.own));
            // SAFETY: the block is within the operands; blocks of values hold `elements`; a result
            // in the memory of an input is at the same address.
            unsafe {
                self.fold_block(result, inputs, elements, own, &mut values);
                if let Some((divide, divisor)) = divide {
                    divide(result, divisor, elements);
                }
                let others = operands.outputs.iter().enumerate();
                for (i, to) in others.filter(|&(i, _)| Some(i) != direct) {
                    let non_temporal = operands.non_temporal >> i & 1 != 0;
                    self.copy_block(to.add(at), result, bytes, non_temporal);
                }
            }
            done += elements;
        }
    }

    /// Folds a block of 1 to 8 inputs into `result`, which may be `values.left`. `own` is the
    /// factor, and a mask of the inputs that are scaled by it.
    ///
    /// # Safety
    /// All operands hold `elements` elements, at most a block, and overlap only as
    /// [`FoldOperands`] allows.
    unsafe fn fold_block(
        &self,
        result: *mut u8,
        inputs: &mut [*const u8],
        elements: usize,
        own: Option<(u64, u8)>,
        values: &mut IntermediateValues,
    ) {
        let IntermediateValues { left, right, scaled } = values;
        let (low, high) = inputs.split_at_mut(GROUP.min(inputs.len()));
        // SAFETY: the caller's promise. The scaled inputs of the lower group have been folded when
        // those of the upper group overwrite them.
        unsafe {
            if let Some((factor, own)) = own {
                self.scale(low, own, factor, elements, scaled);
            }
            if high.is_empty() {
                self.fold_group(result, low, elements);
                return;
            }
            self.fold_group(left.start(), low, elements);
            if let Some((factor, own)) = own {
                self.scale(high, own >> GROUP, factor, elements, scaled);
            }
            let upper = match high {
                [single] => *single,
                _ => {
                    self.fold_group(right.start(), high, elements);
                    right.start()
                }
            };
            self.fold(result, &[left.start(), upper], elements);
        }
    }

    /// Folds 1 to 4 inputs.
    ///
    /// # Safety
    /// All operands hold `elements` elements, and overlap only as [`FoldOperands`] allows.
    unsafe fn fold_group(&self, to: *mut u8, from: &[*const u8], elements: usize) {
        match *from {
            [input] if input == to => {}
            // SAFETY: the caller's promise; operands at different addresses do not overlap.
            [input] => unsafe { ptr::copy_nonoverlapping(input, to, elements * self.loops.size) },
            // SAFETY: the caller's promise.
            _ => unsafe { self.fold(to, from, elements) },
        }
    }

    /// Replaces the inputs that are own contributions by their scaled values.
    ///
    /// # Safety
    /// The inputs, at most a group, hold `elements` elements, at most a block.
    unsafe fn scale(
        &self,
        inputs: &mut [*const u8],
        own: u8,
        factor: u64,
        elements: usize,
        scaled: &mut [ValueBlock; GROUP],
    ) {
        for (i, (input, block)) in inputs.iter_mut().zip(scaled).enumerate() {
            if own >> i & 1 != 0 {
                // SAFETY: the caller's promise; `select` has checked that the machine has the
                // instruction set.
                unsafe { (self.loops.scale)(block.start(), *input, factor, elements) };
                *input = block.start();
            }
        }
    }

    /// Copies `bytes` bytes, past the caches if `non_temporal`.
    ///
    /// # Safety
    /// `from` is valid for reads and `to` for writes of `bytes` bytes, and they do not overlap.
    unsafe fn copy_block(&self, to: *mut u8, from: *const u8, bytes: usize, non_temporal: bool) {
        // SAFETY: the caller's promise; `select` has checked that the machine has the instruction
        // set.
        unsafe {
            if non_temporal {
                (self.loops.copy_non_temporal)(to, from, bytes);
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

/// Orders non-temporal stores before every later store, a release store among them. Neither the
/// compiler nor a model checker knows that they need this; ordinary stores of x86 are ordered.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}
