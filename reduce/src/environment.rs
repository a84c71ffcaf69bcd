//! The floating-point environment in which a rank folds and plans.
//!
//! The program of a rank may have chosen another rounding mode for its thread, or that subnormal
//! numbers count as zero. Its sums would then differ in bits from those of the other ranks, and it
//! could choose another schedule. So both are computed in the same environment on all ranks.

use std::marker::PhantomData;

/// The default environment, from [`enter`](Self::enter) to the drop of this value: rounding to
/// nearest even, subnormal numbers kept, no traps. The drop restores the environment before.
///
/// A call enters it once and not per fold: reading the register costs about a nanosecond, writing
/// it empties the pipeline of the processor. So it is written only if it differs.
pub struct DefaultEnvironment {
    /// The control register of the caller, if it differs.
    caller: Option<registers::Control>,
    /// The register belongs to the thread.
    _thread: PhantomData<*const ()>,
}

impl DefaultEnvironment {
    /// Enters it on this thread.
    #[inline]
    #[must_use = "the environment ends when this value is dropped"]
    pub fn enter() -> Self {
        let current = registers::read();
        let caller = (!registers::is_default(current)).then(|| {
            registers::write(registers::DEFAULT);
            current
        });
        Self { caller, _thread: PhantomData }
    }
}

impl Drop for DefaultEnvironment {
    #[inline]
    fn drop(&mut self) {
        if let Some(caller) = self.caller {
            registers::write(caller);
        }
    }
}

/// MXCSR, which controls SSE, AVX and AVX-512.
#[cfg(target_arch = "x86_64")]
pub mod registers {
    use std::arch::asm;

    /// The bits of the register.
    pub type Control = u32;

    /// All exceptions masked and none raised, rounding to nearest, no flushing to zero.
    pub const DEFAULT: Control = 0x1f80;

    /// The lowest bits record which exceptions were raised. They change no result.
    const RECORD: Control = 0x3f;

    /// Whether these bits are the default environment.
    #[inline(always)]
    pub fn is_default(control: Control) -> bool {
        control & !RECORD == DEFAULT
    }

    /// Reads the register of this thread.
    #[inline(always)]
    pub fn read() -> Control {
        let mut control = 0;
        // SAFETY: SSE is part of x86-64. The instruction writes the 4 bytes of `control`.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut control, options(nostack, preserves_flags)) };
        control
    }

    /// Writes the register. `control` has no reserved bits: it was read, or is [`DEFAULT`].
    #[cold]
    pub fn write(control: Control) {
        // SAFETY: the value has no reserved bits, because the register had the same, or it is the
        // default. The instruction reads the 4 bytes of `control`.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &control, options(nostack, preserves_flags)) };
    }
}

/// FPCR. The record of exceptions is a register of its own.
#[cfg(target_arch = "aarch64")]
pub mod registers {
    use std::arch::asm;

    /// The bits of the register.
    pub type Control = u64;

    /// No traps, rounding to nearest, no flushing to zero, NaN operands propagate.
    pub const DEFAULT: Control = 0;

    /// Whether these bits are the default environment.
    #[inline(always)]
    pub fn is_default(control: Control) -> bool {
        control == DEFAULT
    }

    /// Reads the register of this thread.
    #[inline(always)]
    pub fn read() -> Control {
        let control;
        // SAFETY: programs may read the register.
        unsafe { asm!("mrs {}, fpcr", out(reg) control, options(nostack, preserves_flags)) };
        control
    }

    /// Writes the register. `control` has no reserved bits: it was read, or is [`DEFAULT`].
    #[cold]
    pub fn write(control: Control) {
        // SAFETY: programs may write the register, and no bits are set that were not set before.
        unsafe { asm!("msr fpcr, {}", in(reg) control, options(nostack, preserves_flags)) };
    }
}

/// Other processors keep the environment of the caller.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub mod registers {
    /// The bits of the register.
    pub type Control = ();
    /// The default environment.
    pub const DEFAULT: Control = ();

    /// Whether these bits are the default environment.
    pub fn is_default((): Control) -> bool {
        true
    }

    /// Reads the register of this thread.
    pub fn read() -> Control {}

    /// Does nothing.
    pub fn write((): Control) {}
}
