//! Tests of the life of a handle, and of which thread may use it when.

use std::ptr::from_ref;

use maypole::ResultCode;
use maypole::{AbortHandle, Communicator, UniqueId};

use super::abort::interrupt;
use super::handle::LOW_BITS;
use super::*;
use crate::config::CommSettings;

/// The handle of a communicator of one rank.
fn single_rank() -> CommHandle {
    let reservation = reserve(Some((0, 1)), true, -1).unwrap();
    let handle = reservation.handle();
    let id = UniqueId::create().unwrap();
    reservation.fill(Communicator::new(&id, 0, 1).unwrap(), CommSettings::default()).unwrap();
    handle
}

#[test]
fn a_handle_is_live_from_reservation_to_removal() {
    let first = single_rank();
    assert_eq!(identity(first), Ok((0, 1)));
    assert_eq!(acquire_exclusive(first).unwrap().comm.nranks(), 1);
    drop(acquire_exclusive(first).unwrap().remove());
    assert_eq!(acquire_exclusive(first).err(), Some(ResultCode::InvalidArgument));
    let second = single_rank();
    assert_ne!(first, second);
    assert!(identity(first).is_err() && interrupt(first, AbortHandle::abort).is_err());
    drop(remove(second).unwrap());
    assert!(remove(second).is_err());
}

#[test]
fn one_thread_at_a_time_uses_a_communicator() {
    let handle = single_rank();
    let exclusive = acquire_exclusive(handle).unwrap();
    assert_eq!(acquire_exclusive(handle).err(), Some(ResultCode::InvalidUsage));
    assert_eq!((is_used(handle), identity(handle)), (Ok(true), Ok((0, 1))));
    assert_eq!(async_result(handle), Ok(ResultCode::Success));
    drop(exclusive);
    assert_eq!(is_used(handle), Ok(false));
    drop(remove(handle).unwrap());
}

#[test]
fn a_communicator_in_progress_is_refused_until_it_tells_the_result() {
    let handle = single_rank();
    for result in [Ok(()), Err(ResultCode::InvalidArgument), Err(ResultCode::Timeout), Ok(())] {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let work = acquire(handle).unwrap().defer();
        let started = work.start(move |_| {
            let _ = gate.recv();
            result
        });
        assert_eq!(started, Err(ResultCode::InProgress));
        assert_eq!(acquire_exclusive(handle).err(), Some(ResultCode::InvalidArgument));
        assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
        drop(go);
        while async_result(handle) == Ok(ResultCode::InProgress) {
            std::thread::yield_now();
        }
        // From the moment that it tells the result, the communicator can be used.
        assert!(acquire_exclusive(handle).is_ok());
        assert_eq!(async_result(handle), Ok(result.err().unwrap_or(ResultCode::Success)));
    }
    // A panic ends the work as well.
    let started = acquire(handle).unwrap().defer().start(|_| panic!("on purpose"));
    assert_eq!(started, Err(ResultCode::InProgress));
    while async_result(handle) == Ok(ResultCode::InProgress) {
        std::thread::yield_now();
    }
    assert_eq!(async_result(handle), Ok(ResultCode::InternalError));
    drop(remove(handle).unwrap());
}

#[test]
fn a_communicator_in_creation_answers_queries_and_can_be_aborted() {
    let reservation = reserve(Some((1, 2)), false, 3).unwrap();
    let handle = reservation.handle();
    // As in NCCL, what a communicator is can be asked only when it has been made.
    assert_eq!(identity(handle), Err(ResultCode::InvalidArgument));
    assert_eq!((device(handle), is_blocking(handle)), (Ok(3), Ok(false)));
    assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
    assert_eq!(acquire_exclusive(handle).err(), Some(ResultCode::InvalidArgument));
    assert_eq!(remove(handle).err(), Some(ResultCode::InvalidArgument));
    let signal = reservation.signal().unwrap();
    assert_eq!(abort(handle), Ok(false));
    assert!(signal.is_raised());
    assert!(abort(handle).is_err() && async_result(handle).is_err());
    reservation.fail(ResultCode::RemoteError);
    assert!(remove(handle).is_err());
}

#[test]
fn a_failed_creation_is_told_until_the_handle_is_destroyed() {
    let reservation = reserve(None, false, -1).unwrap();
    let handle = reservation.handle();
    assert_eq!(identity(handle), Err(ResultCode::InvalidArgument));
    reservation.fail(ResultCode::Timeout);
    assert_eq!(async_result(handle), Ok(ResultCode::Timeout));
    assert_eq!(acquire_exclusive(handle).err(), Some(ResultCode::Timeout));
    assert!(remove(handle).unwrap().is_none());
    assert!(async_result(handle).is_err());
}

#[test]
fn a_value_that_was_never_a_handle_is_refused() {
    let on_the_stack = 0;
    let address = from_ref(&on_the_stack).addr();
    for value in [0, address, LOW_BITS, usize::MAX].map(CommHandle::from_value) {
        assert_eq!(acquire_exclusive(value).err(), Some(ResultCode::InvalidArgument));
        assert!(remove(value).is_err() && abort(value).is_err());
    }
}
