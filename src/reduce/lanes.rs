//! The loops, over registers of whatever width: written once, compiled once per instruction set.
//!
//! Everything here is `inline(always)`, so that it becomes part of a function that enables the instruction set. A
//! destination may be exactly one of the sources: each register is read before it is written.

use std::marker::PhantomData;
use std::ptr;

use super::element::Element;

/// A register of elements of one type in one instruction set.
///
/// # Safety
/// `load` and `store` move exactly [`BYTES`](Self::BYTES) bytes at any alignment; `BYTES` is a multiple of the element's
/// size and at most 64. All functions need the instruction set.
pub(super) unsafe trait Lanes {
    /// The element type.
    type Element: Element;
    /// The register.
    type Register: Copy;
    /// Size of the register.
    const BYTES: usize;

    unsafe fn load(from: *const u8) -> Self::Register;
    unsafe fn store(to: *mut u8, value: Self::Register);
    unsafe fn sum(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn prod(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn max(a: Self::Register, b: Self::Register) -> Self::Register;
    unsafe fn min(a: Self::Register, b: Self::Register) -> Self::Register;
}

/// A binary node of a fold.
pub(super) trait Node {
    /// `a` stands for the lower positions.
    ///
    /// # Safety
    /// Needs the instruction set of `L`.
    unsafe fn combine<L: Lanes>(a: L::Register, b: L::Register) -> L::Register;
}

macro_rules! node {
    ($name:ident, $f:ident) => {
        pub(super) struct $name;

        impl Node for $name {
            #[inline(always)]
            unsafe fn combine<L: Lanes>(a: L::Register, b: L::Register) -> L::Register {
                // SAFETY: the caller has the instruction set.
                unsafe { L::$f(a, b) }
            }
        }
    };
}

node!(Sum, sum);
node!(Prod, prod);
node!(Max, max);
node!(Min, min);

/// Folds `elements` elements from each of `K` sources, a balanced tree of [`Node`]s.
pub(super) type Fold = unsafe fn(to: *mut u8, from: *const *const u8, elements: usize);
/// Multiplies by the element in the low bytes of a word.
pub(super) type Scale = unsafe fn(to: *mut u8, from: *const u8, scale: u64, elements: usize);
/// Divides in place, truncating toward zero.
pub(super) type Divide = unsafe fn(at: *mut u8, divisor: u32, elements: usize);
/// Copies bytes past the cache; to be followed by a fence.
pub(super) type Stream = unsafe fn(to: *mut u8, from: *const u8, bytes: usize);

/// The loops of one element type, one kind of node and one instruction set.
pub(super) struct Loops {
    /// Of 2, 3 and 4 sources.
    pub(super) fold: [Fold; 3],
    pub(super) scale: Scale,
    /// Integers only.
    pub(super) divide: Option<Divide>,
    pub(super) stream: Stream,
    /// Bytes of an element.
    pub(super) size: usize,
}

/// See [`Fold`].
///
/// # Safety
/// `from` points to `K` pointers, 2 to 4, each valid for `elements` reads, as `to` is for writes.
#[inline(always)]
pub(super) unsafe fn fold<L: Lanes, N: Node, const K: usize>(
    to: *mut u8,
    from: *const *const u8,
    elements: usize,
) {
    // SAFETY: `from` points to K pointers.
    let from: [*const u8; K] = unsafe { *from.cast() };
    // SAFETY: the operands hold `elements` elements.
    unsafe { each(to, from, elements, Tree::<L, N>(PhantomData)) }
}

/// What is made of a register of each source. (Not a closure: that need not be inlined, and would lack the instruction
/// set where it is not.)
trait Formula<const K: usize> {
    type Lanes: Lanes;

    /// Reads a register at each address.
    unsafe fn of(&self, at: [*const u8; K]) -> <Self::Lanes as Lanes>::Register;
}

/// The balanced tree over 2 to 4 sources.
struct Tree<L, N>(PhantomData<(L, N)>);

impl<L: Lanes, N: Node, const K: usize> Formula<K> for Tree<L, N> {
    type Lanes = L;

    #[inline(always)]
    unsafe fn of(&self, at: [*const u8; K]) -> L::Register {
        // SAFETY: the caller gives K registers' addresses.
        unsafe {
            let left = N::combine::<L>(L::load(at[0]), L::load(at[1]));
            match K {
                2 => left,
                3 => N::combine::<L>(left, L::load(at[2])),
                _ => N::combine::<L>(left, N::combine::<L>(L::load(at[2]), L::load(at[3]))),
            }
        }
    }
}

/// The product with a register.
struct Product<L: Lanes>(L::Register);

impl<L: Lanes> Formula<1> for Product<L> {
    type Lanes = L;

    #[inline(always)]
    unsafe fn of(&self, at: [*const u8; 1]) -> L::Register {
        // SAFETY: the caller gives a register's address.
        unsafe { L::prod(L::load(at[0]), self.0) }
    }
}

/// See [`Scale`].
///
/// # Safety
/// `from` is valid for `elements` reads, `to` for as many writes.
#[inline(always)]
pub(super) unsafe fn scale<L: Lanes>(to: *mut u8, from: *const u8, scale: u64, elements: usize) {
    let pattern = [L::Element::from_bits(scale); 64];
    // SAFETY: 64 elements are at least a register.
    let scale = unsafe { L::load(pattern.as_ptr().cast()) };
    // SAFETY: `each` passes offsets within the operand, which holds `elements` elements.
    unsafe { each(to, [from], elements, Product::<L>(scale)) }
}

/// See [`Divide`].
///
/// # Safety
/// `at` is valid for `elements` reads and writes.
#[inline(always)]
pub(super) unsafe fn divide<L: Lanes>(at: *mut u8, divisor: u32, elements: usize) {
    let at: *mut L::Element = at.cast();
    for i in 0..elements {
        // SAFETY: i < elements.
        unsafe { at.add(i).write_unaligned(at.add(i).read_unaligned().divide(divisor)) }
    }
}

/// Writes `f` of every register of the sources.
#[inline(always)]
unsafe fn each<F: Formula<K>, const K: usize>(
    to: *mut u8,
    from: [*const u8; K],
    elements: usize,
    formula: F,
) {
    let bytes = elements * size_of::<<F::Lanes as Lanes>::Element>();
    if bytes < <F::Lanes as Lanes>::BYTES {
        if bytes > 0 {
            // SAFETY: as the caller has it.
            unsafe { partial(to, from, bytes, formula) }
        }
        return;
    }
    // The last register overlaps the one before it, unless the length is a whole number of them. It is computed first,
    // from sources that the loop may overwrite, and written last.
    let last = bytes - <F::Lanes as Lanes>::BYTES;
    // SAFETY: a register before the end.
    let end = unsafe { formula.of(offset(from, last)) };
    let mut at = 0;
    while at < last {
        // SAFETY: at < last, and from `last` on there is a whole register.
        unsafe { F::Lanes::store(to.add(at), formula.of(offset(from, at))) }
        at += <F::Lanes as Lanes>::BYTES;
    }
    // SAFETY: `last` is a register before the end.
    unsafe { F::Lanes::store(to.add(last), end) }
}

/// Fewer bytes than a register, by way of a padded copy.
#[inline(always)]
unsafe fn partial<F: Formula<K>, const K: usize>(
    to: *mut u8,
    from: [*const u8; K],
    bytes: usize,
    formula: F,
) {
    let mut padded = [[0_u8; 64]; K];
    for (line, p) in padded.iter_mut().zip(from) {
        // SAFETY: the source holds `bytes` bytes, fewer than a register's, which are at most 64.
        unsafe { ptr::copy_nonoverlapping(p, line.as_mut_ptr(), bytes) };
    }
    let mut line = [0_u8; 64];
    let mut at = [ptr::null(); K];
    for (at, line) in at.iter_mut().zip(&padded) {
        *at = line.as_ptr();
    }
    // SAFETY: a register is at most 64 bytes; the destination takes `bytes`.
    unsafe {
        F::Lanes::store(line.as_mut_ptr(), formula.of(at));
        ptr::copy_nonoverlapping(line.as_ptr(), to, bytes);
    }
}

#[inline(always)]
fn offset<const K: usize>(mut from: [*const u8; K], by: usize) -> [*const u8; K] {
    for p in &mut from {
        *p = p.wrapping_add(by);
    }
    from
}

/// Copies `bytes` bytes; whole cache lines of the destination by `line`, which moves 64 bytes to an address that is a
/// multiple of 64.
///
/// # Safety
/// The ranges are valid and do not overlap.
#[inline(always)]
pub(super) unsafe fn stream(
    to: *mut u8,
    from: *const u8,
    bytes: usize,
    line: impl Fn(*mut u8, *const u8),
) {
    let head = to.align_offset(64).min(bytes);
    let lines = (bytes - head) / 64;
    let tail = head + lines * 64;
    // SAFETY: head <= tail <= bytes.
    unsafe {
        ptr::copy_nonoverlapping(from, to, head);
        for i in 0..lines {
            line(to.add(head + i * 64), from.add(head + i * 64));
        }
        ptr::copy_nonoverlapping(from.add(tail), to.add(tail), bytes - tail);
    }
}

/// The table of loops of `L` and `N`, in functions that enable the named features.
macro_rules! loops {
    ($(#[$feature:meta])* $stream:ident) => {
        $(#[$feature])*
        unsafe fn fold<L: Lanes, N: Node, const K: usize>(
            to: *mut u8,
            from: *const *const u8,
            elements: usize,
        ) {
            // SAFETY: the same contract.
            unsafe { lanes::fold::<L, N, K>(to, from, elements) }
        }

        $(#[$feature])*
        unsafe fn scale<L: Lanes>(to: *mut u8, from: *const u8, scale: u64, elements: usize) {
            // SAFETY: the same contract.
            unsafe { lanes::scale::<L>(to, from, scale, elements) }
        }

        $(#[$feature])*
        unsafe fn divide<L: Lanes>(at: *mut u8, divisor: u32, elements: usize) {
            // SAFETY: the same contract.
            unsafe { lanes::divide::<L>(at, divisor, elements) }
        }

        struct Table<L, N>(PhantomData<(L, N)>);

        impl<L: Lanes, N: Node> Table<L, N> {
            const LOOPS: &'static Loops = &Loops {
                fold: [fold::<L, N, 2>, fold::<L, N, 3>, fold::<L, N, 4>],
                scale: scale::<L>,
                divide: if L::Element::INTEGER { Some(divide::<L>) } else { None },
                stream: $stream,
                size: size_of::<L::Element>(),
            };
        }

        /// The loops for `op` on `dtype`.
        pub(super) fn loops(dtype: DType, op: RedOp) -> &'static Loops {
            match dtype {
                DType::Int8 => of::<i8>(op),
                DType::Uint8 => of::<u8>(op),
                DType::Int32 => of::<i32>(op),
                DType::Uint32 => of::<u32>(op),
                DType::Int64 => of::<i64>(op),
                DType::Uint64 => of::<u64>(op),
                DType::Float16 => of::<F16>(op),
                DType::Float32 => of::<f32>(op),
                DType::Float64 => of::<f64>(op),
                DType::Bfloat16 => of::<Bf16>(op),
                DType::Float8E4M3 => of::<E4m3>(op),
                DType::Float8E5M2 => of::<E5m2>(op),
            }
        }

        fn of<E>(op: RedOp) -> &'static Loops
        where
            Packed<E>: Lanes,
        {
            match op {
                RedOp::Sum | RedOp::Avg | RedOp::PreMulSum => Table::<Packed<E>, Sum>::LOOPS,
                RedOp::Prod => Table::<Packed<E>, Prod>::LOOPS,
                RedOp::Max => Table::<Packed<E>, Max>::LOOPS,
                RedOp::Min => Table::<Packed<E>, Min>::LOOPS,
            }
        }
    };
}

pub(super) use loops;
