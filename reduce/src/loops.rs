//! The loops over memory, written once for registers of any width and compiled per instruction set.
//!
//! Everything here is `inline(always)`, so that it becomes part of a function that enables the
//! instruction set. The destination of a loop may be exactly one of its sources: each register is
//! read before it is written.

use std::marker::PhantomData;
use std::ptr;

use super::element::Arithmetic;

/// A vector register that holds elements of one type, in one instruction set. A value of an
/// implementing type proves that the processor has the instruction set.
///
/// # Safety
/// `load` and `store` move exactly [`BYTES`](Self::BYTES) bytes at any alignment. `BYTES` is a
/// multiple of the size of an element and at most 64.
pub(super) unsafe trait Vector: Copy {
    /// The element type.
    type Element: Arithmetic;
    /// The register.
    type Register: Copy;
    /// The size of the register.
    const BYTES: usize;

    /// The proof that the processor has the instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn new() -> Self;

    /// Reads a register.
    ///
    /// # Safety
    /// `from` is valid for reads of [`BYTES`](Self::BYTES) bytes.
    unsafe fn load(self, from: *const u8) -> Self::Register;

    /// Writes a register.
    ///
    /// # Safety
    /// `to` is valid for writes of [`BYTES`](Self::BYTES) bytes.
    unsafe fn store(self, to: *mut u8, value: Self::Register);

    /// [`Arithmetic::sum`] of each element.
    fn sum(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// [`Arithmetic::prod`] of each element.
    fn prod(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// [`Arithmetic::max`] of each element, of prepared values; the result is a prepared one too.
    fn max(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// [`Arithmetic::min`] of each element, of prepared values; the result is a prepared one too.
    fn min(self, a: Self::Register, b: Self::Register) -> Self::Register;

    /// Prepares the input of a maximum.
    #[inline(always)]
    fn prepare_max(self, a: Self::Register) -> Self::Register {
        a
    }

    /// Prepares the input of a minimum.
    #[inline(always)]
    fn prepare_min(self, a: Self::Register) -> Self::Register {
        a
    }

    /// The elements of a prepared minimum. Those of a prepared maximum are the same.
    #[inline(always)]
    fn finish_min(self, a: Self::Register) -> Self::Register {
        a
    }
}

/// Stores that bypass the caches. A value of an implementing type proves that the processor has
/// the instruction set.
pub(super) trait NonTemporalStore: Copy {
    /// The proof that the processor has the instruction set.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn new() -> Self;

    /// Copies 64 bytes past the caches. A fence must follow before the data is published.
    ///
    /// # Safety
    /// `from` is valid for reads and `to` for writes of 64 bytes, and `to` is a multiple of 64.
    unsafe fn copy_cache_line(self, to: *mut u8, from: *const u8);
}

/// The operation of a binary node of a fold.
pub(super) trait FoldOperation {
    /// Combines `a`, which stands for the lower positions, with `b`.
    fn combine<V: Vector>(vector: V, a: V::Register, b: V::Register) -> V::Register;

    /// Prepares an input, once for all nodes.
    #[inline(always)]
    fn prepare<V: Vector>(_: V, a: V::Register) -> V::Register {
        a
    }

    /// The elements of a result of prepared inputs.
    #[inline(always)]
    fn finish<V: Vector>(_: V, a: V::Register) -> V::Register {
        a
    }
}

macro_rules! fold_operation {
    ($name:ident, $method:ident $(, $own:ident: $of_vector:ident)*) => {
        pub(super) struct $name;

        impl FoldOperation for $name {
            #[inline(always)]
            fn combine<V: Vector>(vector: V, a: V::Register, b: V::Register) -> V::Register {
                vector.$method(a, b)
            }

            $(
                #[inline(always)]
                fn $own<V: Vector>(vector: V, a: V::Register) -> V::Register {
                    vector.$of_vector(a)
                }
            )*
        }
    };
}

fold_operation!(Sum, sum);
fold_operation!(Prod, prod);
fold_operation!(Max, max, prepare: prepare_max);
fold_operation!(Min, min, prepare: prepare_min, finish: finish_min);

/// Folds `elements` elements of each of K sources by a balanced tree.
pub(super) type FoldLoop = unsafe fn(to: *mut u8, from: *const *const u8, elements: usize);
/// Multiplies each element by the element in the low bytes of `factor`.
pub(super) type ScaleLoop = unsafe fn(to: *mut u8, from: *const u8, factor: u64, elements: usize);
/// Divides each element in place, truncating toward zero.
pub(super) type DivideLoop = unsafe fn(at: *mut u8, divisor: u32, elements: usize);
/// Copies bytes past the caches. A fence must follow before the data is published.
pub(super) type CopyLoop = unsafe fn(to: *mut u8, from: *const u8, bytes: usize);

/// The loops of one element type, one fold operation and one instruction set.
pub(super) struct Loops {
    /// The folds of 2, 3 and 4 sources.
    pub(super) fold: [FoldLoop; 3],
    pub(super) scale: ScaleLoop,
    /// Present for integers only.
    pub(super) divide: Option<DivideLoop>,
    pub(super) copy_non_temporal: CopyLoop,
    /// Bytes of an element.
    pub(super) size: usize,
}

/// See [`FoldLoop`].
///
/// # Safety
/// `from` points to `K` pointers, 2 to 4, each valid for reads of `elements` elements. `to` is
/// valid for writes of as many.
#[inline(always)]
pub(super) unsafe fn fold<V: Vector, O: FoldOperation, const K: usize>(
    vector: V,
    to: *mut u8,
    from: *const *const u8,
    elements: usize,
) {
    // SAFETY: `from` points to K pointers.
    let from: [*const u8; K] = unsafe { *from.cast() };
    // SAFETY: all operands hold `elements` elements.
    unsafe { map(vector, to, from, elements, Tree::<O>(PhantomData)) }
}

/// See [`ScaleLoop`].
///
/// # Safety
/// `from` is valid for reads of `elements` elements, `to` for writes of as many.
#[inline(always)]
pub(super) unsafe fn scale<V: Vector>(
    vector: V,
    to: *mut u8,
    from: *const u8,
    factor: u64,
    elements: usize,
) {
    let pattern = [V::Element::from_bits(factor); 64];
    // SAFETY: 64 elements are at least a register.
    let factor = unsafe { vector.load(pattern.as_ptr().cast()) };
    // SAFETY: both operands hold `elements` elements.
    unsafe { map(vector, to, [from], elements, Product::<V>(factor)) }
}

/// See [`DivideLoop`].
///
/// # Safety
/// `at` is valid for reads and writes of `elements` elements.
#[inline(always)]
pub(super) unsafe fn divide<V: Vector>(at: *mut u8, divisor: u32, elements: usize) {
    let at: *mut V::Element = at.cast();
    for i in 0..elements {
        // SAFETY: i < elements.
        unsafe { at.add(i).write_unaligned(at.add(i).read_unaligned().divide(divisor)) }
    }
}

/// See [`CopyLoop`]. Only whole cache lines of the destination bypass the caches.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of `bytes` bytes, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn copy_non_temporal<S: NonTemporalStore>(
    store: S,
    to: *mut u8,
    from: *const u8,
    bytes: usize,
) {
    let head = to.align_offset(64).min(bytes);
    let lines = (bytes - head) / 64;
    let tail = head + lines * 64;
    // SAFETY: head <= tail <= bytes, and from `head` on the destination is aligned to 64.
    unsafe {
        ptr::copy_nonoverlapping(from, to, head);
        for i in 0..lines {
            store.copy_cache_line(to.add(head + i * 64), from.add(head + i * 64));
        }
        ptr::copy_nonoverlapping(from.add(tail), to.add(tail), bytes - tail);
    }
}

/// What is computed from one register of each of K sources. It is a trait and not a closure
/// because a closure need not be inlined, and would lack the instruction set where it is not.
trait Formula<V: Vector, const K: usize> {
    /// Reads a register at each address and computes the result.
    ///
    /// # Safety
    /// Each address is valid for reads of a register.
    unsafe fn apply(&self, vector: V, at: [*const u8; K]) -> V::Register;
}

/// The balanced tree of an operation over 2 to 4 sources.
struct Tree<O>(PhantomData<O>);

impl<V: Vector, O: FoldOperation, const K: usize> Formula<V, K> for Tree<O> {
    #[inline(always)]
    unsafe fn apply(&self, vector: V, at: [*const u8; K]) -> V::Register {
        // SAFETY: the caller gives the addresses of K registers, and indices stay below K.
        let load = |i: usize| O::prepare(vector, unsafe { vector.load(at[i]) });
        let left = O::combine(vector, load(0), load(1));
        let all = match K {
            2 => left,
            3 => O::combine(vector, left, load(2)),
            _ => O::combine(vector, left, O::combine(vector, load(2), load(3))),
        };
        O::finish(vector, all)
    }
}

/// The product with a register.
struct Product<V: Vector>(V::Register);

impl<V: Vector> Formula<V, 1> for Product<V> {
    #[inline(always)]
    unsafe fn apply(&self, vector: V, at: [*const u8; 1]) -> V::Register {
        // SAFETY: the caller gives the address of a register.
        vector.prod(unsafe { vector.load(at[0]) }, self.0)
    }
}

/// Writes the result of `formula` for every register of the sources.
///
/// # Safety
/// The sources are valid for reads of `elements` elements, `to` for writes of as many. `to` is one
/// of the sources, or overlaps none of them.
#[inline(always)]
unsafe fn map<V: Vector, F: Formula<V, K>, const K: usize>(
    vector: V,
    to: *mut u8,
    from: [*const u8; K],
    elements: usize,
    formula: F,
) {
    let bytes = elements * size_of::<V::Element>();
    if bytes < V::BYTES {
        if bytes > 0 {
            // SAFETY: the operands hold `bytes` bytes, which are fewer than a register.
            unsafe { map_partial(vector, to, from, bytes, formula) }
        }
        return;
    }
    // The last register overlaps the one before it, unless the length is a whole number of
    // registers. It is computed first, because the loop may overwrite its sources, and written
    // last.
    let last = bytes - V::BYTES;
    // SAFETY: `last` is one register before the end.
    let end = unsafe { formula.apply(vector, offset(from, last)) };
    let mut at = 0;
    while at < last {
        // SAFETY: at < last, and a whole register follows `last`.
        unsafe { vector.store(to.add(at), formula.apply(vector, offset(from, at))) }
        at += V::BYTES;
    }
    // SAFETY: `last` is one register before the end.
    unsafe { vector.store(to.add(last), end) }
}

/// [`map`] of fewer bytes than a register, through padded copies.
///
/// # Safety
/// The sources are valid for reads of `bytes` bytes, `to` for writes of as many, and `bytes` is
/// less than [`Vector::BYTES`].
#[inline(always)]
unsafe fn map_partial<V: Vector, F: Formula<V, K>, const K: usize>(
    vector: V,
    to: *mut u8,
    from: [*const u8; K],
    bytes: usize,
    formula: F,
) {
    let mut padded = [[0_u8; 64]; K];
    for (line, source) in padded.iter_mut().zip(from) {
        // SAFETY: the source holds `bytes` bytes, and a register has at most 64.
        unsafe { ptr::copy_nonoverlapping(source, line.as_mut_ptr(), bytes) };
    }
    let mut at = [ptr::null(); K];
    for (at, line) in at.iter_mut().zip(&padded) {
        *at = line.as_ptr();
    }
    let mut result = [0_u8; 64];
    // SAFETY: a register is at most 64 bytes, and the destination takes `bytes`.
    unsafe {
        vector.store(result.as_mut_ptr(), formula.apply(vector, at));
        ptr::copy_nonoverlapping(result.as_ptr(), to, bytes);
    }
}

#[inline(always)]
fn offset<const K: usize>(mut from: [*const u8; K], by: usize) -> [*const u8; K] {
    for source in &mut from {
        *source = source.wrapping_add(by);
    }
    from
}

/// Defines `loops(dtype, op)`, which returns the [`Loops`] of one instruction set, and the
/// functions that it refers to. The functions enable the target features that are named, if any.
/// `$vector<E>` is the [`Vector`] of element type `E`, `$store` the [`NonTemporalStore`].
macro_rules! kernel_table {
    ($(#[$feature:meta])* $vector:ident, $store:ident) => {
        use std::marker::PhantomData;

        use maypole_algorithms::{DType, RedOp};

        use super::element::{Arithmetic, for_element_type};
        use super::loops::{
            self, FoldOperation, Loops, Max, Min, NonTemporalStore, Prod, Sum, Vector,
        };

        /// # Safety
        /// As for [`loops::fold`]; and the processor has the instruction set.
        $(#[$feature])*
        unsafe fn fold<V: Vector, O: FoldOperation, const K: usize>(
            to: *mut u8,
            from: *const *const u8,
            elements: usize,
        ) {
            // SAFETY: the caller keeps the same contract.
            unsafe { loops::fold::<V, O, K>(V::new(), to, from, elements) }
        }

        /// # Safety
        /// As for [`loops::scale`]; and the processor has the instruction set.
        $(#[$feature])*
        unsafe fn scale<V: Vector>(to: *mut u8, from: *const u8, factor: u64, elements: usize) {
            // SAFETY: the caller keeps the same contract.
            unsafe { loops::scale(V::new(), to, from, factor, elements) }
        }

        /// # Safety
        /// As for [`loops::divide`]; and the processor has the instruction set.
        $(#[$feature])*
        unsafe fn divide<V: Vector>(at: *mut u8, divisor: u32, elements: usize) {
            // SAFETY: the caller keeps the same contract.
            unsafe { loops::divide::<V>(at, divisor, elements) }
        }

        /// # Safety
        /// As for [`loops::copy_non_temporal`]; and the processor has the instruction set.
        $(#[$feature])*
        unsafe fn copy_non_temporal(to: *mut u8, from: *const u8, bytes: usize) {
            // SAFETY: the caller keeps the same contract.
            unsafe { loops::copy_non_temporal($store::new(), to, from, bytes) }
        }

        struct Table<V, O>(PhantomData<(V, O)>);

        impl<V: Vector, O: FoldOperation> Table<V, O> {
            const LOOPS: &'static Loops = &Loops {
                fold: [fold::<V, O, 2>, fold::<V, O, 3>, fold::<V, O, 4>],
                scale: scale::<V>,
                divide: if V::Element::INTEGER { Some(divide::<V>) } else { None },
                copy_non_temporal,
                size: size_of::<V::Element>(),
            };
        }

        /// The loops for `op` on `dtype`.
        pub(super) fn loops(dtype: DType, op: RedOp) -> &'static Loops {
            for_element_type!(dtype, loops_of(op))
        }

        fn loops_of<E>(op: RedOp) -> &'static Loops
        where
            $vector<E>: Vector,
        {
            match op {
                RedOp::Sum | RedOp::Avg | RedOp::PreMulSum => Table::<$vector<E>, Sum>::LOOPS,
                RedOp::Prod => Table::<$vector<E>, Prod>::LOOPS,
                RedOp::Max => Table::<$vector<E>, Max>::LOOPS,
                RedOp::Min => Table::<$vector<E>, Min>::LOOPS,
            }
        }
    };
}

pub(super) use kernel_table;
