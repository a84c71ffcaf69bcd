//! The functions of libibverbs, and the tables of functions that its header calls.
//!
//! # What callers promise
//!
//! As with any libibverbs: pointers to objects come from this library and have not been destroyed,
//! pointers to structures are valid for reading or writing as the manual says, lists of work
//! requests end with null and are valid while the call runs. All `unsafe` blocks of these modules
//! rely on that.

mod acknowledged;
mod address;
mod channel;
mod completion;
mod context;
mod device;
mod events;
mod lists;
mod names;
mod open;
mod protection;
mod queue_pair;
mod queue_pair_create;
mod queue_pair_states;
mod shared_receive;
mod work;
mod work_ex;

/// A shared reference to what a caller's pointer points to.
macro_rules! given {
    ($pointer:expr) => {
        // SAFETY: the caller promises that the pointer is valid, see the module `exports`.
        unsafe { &*$pointer }
    };
}

/// A mutable reference to a structure that the caller provides for results.
macro_rules! given_mut {
    ($pointer:expr) => {
        // SAFETY: the caller promises that the pointer is valid and that no other thread uses the
        // structure, see the module `exports`.
        unsafe { &mut *$pointer }
    };
}

/// Returns null with `errno`.
macro_rules! null {
    ($errno:expr) => {{
        $crate::misuse::set_errno($errno);
        return core::ptr::null_mut();
    }};
}

use {given, given_mut, null};
