//! Macros that declare the exported functions.
//!
//! As in NCCL, each function of `nccl.h` is exported under its name `ncclX` and under the pnccl
//! alias `pncclX`. A tool may define `ncclX` itself and call `pncclX`. Both exports run the same
//! body and neither calls the other, so that the library never calls a tool's replacement.
//!
//! In the shared library both symbols are strong; the dynamic linker makes no difference there. In
//! the static library, where there is one, `scripts/install` makes the plain names weak.

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

        const _: () = {
            /// The name that profilers show.
            const NAME: &std::ffi::CStr =
                match std::ffi::CStr::from_bytes_with_nul(
                    concat!(stringify!($name), "\0").as_bytes()
                ) {
                    Ok(name) => name,
                    Err(_) => unreachable!(),
                };

            /// The exported symbol.
            ///
            /// # Safety
            /// The client keeps the terms of `nccl.h`, which the function above states.
            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C" fn exported($($argument: $type),*) $(-> $result)? {
                let _range = maypole::internal::nvtx::NvtxRange::new(NAME);
                // SAFETY: the client's promise is the one that the function asks for.
                unsafe { $name($($argument),*) }
            }

            /// The pnccl alias.
            ///
            /// # Safety
            /// As for the exported symbol.
            #[unsafe(export_name = concat!("p", stringify!($name)))]
            unsafe extern "C" fn pnccl_alias($($argument: $type),*) $(-> $result)? {
                let _range = maypole::internal::nvtx::NvtxRange::new(NAME);
                // SAFETY: as above.
                unsafe { $name($($argument),*) }
            }
        };
    )*};
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

pub(crate) use {abi, extension};
