//! Makes rustc export the functions of `nccl.h`, which `maypole-ffi` defines in assembly.
//!
//! rustc passes to the linker the list of the symbols that a shared library exports, and this list
//! names only functions that rustc knows. The weak symbols of `maypole-ffi` are in assembly, so
//! this crate declares a function of each name. None of them is ever linked: an object of a library
//! is used only for symbols that are not defined yet, and `maypole-ffi` defines them all.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(non_snake_case, reason = "the names are those of nccl.h")]

include!(concat!(env!("OUT_DIR"), "/names.rs"));

fn unreachable() -> ! {
    std::process::abort()
}
