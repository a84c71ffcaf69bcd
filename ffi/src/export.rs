//! How a function of the ABI is exported: under its name, and under the same name with a `p` in front, as NCCL does, so that
//! a tool may take the place of the first and call the second.
//!
//! Both exports run the same body and none calls the other: a tool's replacement is never called by the library itself. In
//! the shared library both are strong, for the dynamic linker does not look at that; `scripts/install` makes
//! the plain names of the static library weak, where it matters.

/// Declares functions of the ABI. Inside the crate they are plain functions of the same name.
macro_rules! abi {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $answer:ty)? $body:block)*) => {$(
        $(#[$attribute])*
        ///
        /// # Safety
        /// Pointers are NULL, or valid for what `nccl.h` says of them; where the call is queued in a group, or does not block,
        /// until that is over. Handles may be anything.
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the ABI's name, the ABI's arguments")]
        #[inline(always)]
        pub(crate) unsafe fn $name($($argument: $type),*) $(-> $answer)? $body

        const _: () = {
            // What profilers show.
            const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => unreachable!(),
            };

            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C" fn exported($($argument: $type),*) $(-> $answer)? {
                let _range = maypole::internal::nvtx::Range::new(NAME);
                // SAFETY: the caller's promise is the same.
                unsafe { $name($($argument),*) }
            }

            #[unsafe(export_name = concat!("p", stringify!($name)))]
            unsafe extern "C" fn twin($($argument: $type),*) $(-> $answer)? {
                let _range = maypole::internal::nvtx::Range::new(NAME);
                // SAFETY: the caller's promise is the same.
                unsafe { $name($($argument),*) }
            }
        };
    )*};
}

/// Declares functions of `maypole.h`, which have no twins.
macro_rules! extension {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $answer:ty $body:block)*) => {$(
        const _: () = {
            $(#[$attribute])*
            ///
            /// # Safety
            /// Pointers are NULL, or valid for what `maypole.h` says of them, until the call, or its group, is over. Handles may
            /// be anything.
            #[unsafe(export_name = stringify!($name))]
            unsafe extern "C" fn exported($($argument: $type),*) -> $answer $body
        };
    )*};
}

pub(crate) use {abi, extension};
