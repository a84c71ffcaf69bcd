//! Macros that declare the exported functions.
//!
//! As in NCCL, each function of `nccl.h` is exported under its name `ncclX` and under the pnccl
//! alias `pncclX`. A tool may define `ncclX` itself and call `pncclX`. Both exports run the same
//! body and neither calls the other, so that the library never calls a tool's replacement.
//!
//! The plain names are weak symbols, as NCCL's are, so that a program that is linked with the
//! static library may define them. rustc exports only symbols that it knows, and it does not know
//! those of assembly: the crate `maypole-ffi-names` makes it export them.

/// Declares functions of `nccl.h`. Inside the crate they are plain functions of the same name.
macro_rules! abi {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        ///
        /// # Safety
        /// Pointers are NULL, or valid for what `nccl.h` says of them; if the call is queued or
        /// does not block, until it has ended. Handles may be any values.
        #[allow(
            non_snake_case,
            clippy::too_many_arguments,
            reason = "name and arguments are those of nccl.h"
        )]
        #[inline(always)]
        pub(crate) unsafe fn $name($($argument: $type),*) $(-> $result)? $body

        #[allow(non_snake_case, unused_imports, reason = "the name is that of nccl.h")]
        mod $name {
            use super::*;

            /// The name that profilers show.
            const NAME: &std::ffi::CStr =
                match std::ffi::CStr::from_bytes_with_nul(
                    concat!(stringify!($name), "\0").as_bytes()
                ) {
                    Ok(name) => name,
                    Err(_) => unreachable!(),
                };

            /// What the exported symbol runs.
            ///
            /// # Safety
            /// The client keeps the terms of `nccl.h`, which the function above states.
            #[cfg_attr(
                not(any(target_arch = "x86_64", target_arch = "aarch64")),
                unsafe(export_name = stringify!($name))
            )]
            unsafe extern "C" fn exported($($argument: $type),*) $(-> $result)? {
                let _range = maypole::internal::nvtx::NvtxRange::new(NAME);
                // SAFETY: the client's promise is the one that the function asks for.
                unsafe { super::$name($($argument),*) }
            }

            $crate::exports::macros::weak_symbol!($name, exported);

            /// The pnccl alias.
            ///
            /// # Safety
            /// As for the exported symbol.
            #[unsafe(export_name = concat!("p", stringify!($name)))]
            unsafe extern "C" fn pnccl_alias($($argument: $type),*) $(-> $result)? {
                let _range = maypole::internal::nvtx::NvtxRange::new(NAME);
                // SAFETY: as above.
                unsafe { super::$name($($argument),*) }
            }
        }
    )*};
}

/// Declares the weak symbol `$name`, which jumps to a function. Rust has no stable attribute for
/// weak symbols. On other processors the function itself is exported, as a strong symbol.
macro_rules! weak_symbol {
    ($name:ident, $function:ident) => {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        std::arch::global_asm!(
            concat!(".pushsection .text.", stringify!($name), ",\"ax\",@progbits"),
            ".p2align 4",
            concat!(".weak ", stringify!($name)),
            concat!(".type ", stringify!($name), ",@function"),
            concat!(stringify!($name), ":"),
            concat!($crate::exports::macros::jump!(), " {function}"),
            concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
            ".popsection",
            function = sym $function,
        );
    };
}

/// The instruction that jumps to a symbol.
#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    () => {
        "jmp"
    };
}

/// The instruction that jumps to a symbol.
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    () => {
        "b"
    };
}

/// Declares functions of `maypole.h`, which have no alias.
macro_rules! extension {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty $body:block
    )*) => {$(
        $(#[$attribute])*
        ///
        /// # Safety
        /// Pointers are NULL, or valid for what `maypole.h` says of them until the call, or its
        /// group, has ended. Handles may be any values.
        #[unsafe(no_mangle)]
        #[allow(
            non_snake_case,
            clippy::too_many_arguments,
            reason = "name and arguments are those of maypole.h"
        )]
        unsafe extern "C" fn $name($($argument: $type),*) -> $result $body
    )*};
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use jump;
pub(crate) use {abi, extension, weak_symbol};
