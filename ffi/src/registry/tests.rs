//! The life of a handle, and who may use it when.

use maypole::UniqueId;

use super::entry::LOW_BITS;
use super::*;

fn alone() -> Handle {
    let reserved = reserve(Some((0, 1)), true, -1).unwrap();
    let handle = reserved.handle();
    let id = UniqueId::create().unwrap();
    reserved.fill(Communicator::new(&id, 0, 1).unwrap(), Settings::default()).unwrap();
    handle
}

#[test]
fn a_handle_lives_from_reservation_to_eviction() {
    let first = alone();
    assert_eq!(identity(first), Ok((0, 1)));
    assert_eq!(enter(first).unwrap().comm.nranks(), 1);
    drop(enter(first).unwrap().evict());
    assert_eq!(enter(first).err(), Some(ResultCode::InvalidArgument));
    let second = alone();
    assert_ne!(first, second);
    assert!(identity(first).is_err() && interrupt(first).is_err());
    drop(evict(second).unwrap());
    assert!(evict(second).is_err());
}

#[test]
fn one_thread_at_a_time() {
    let handle = alone();
    let entered = enter(handle).unwrap();
    assert_eq!(enter(handle).err(), Some(ResultCode::InvalidUsage));
    assert_eq!((is_busy(handle), identity(handle)), (Ok(true), Ok((0, 1))));
    assert_eq!(async_result(handle), Ok(ResultCode::Success));
    drop(entered);
    assert_eq!(is_busy(handle), Ok(false));
    drop(evict(handle).unwrap());
}

#[test]
fn what_is_in_progress_is_refused_until_it_says_how_it_ended() {
    let handle = alone();
    for end in [Ok(()), Err(ResultCode::InvalidArgument), Err(ResultCode::Timeout), Ok(())] {
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let deferred = visit(handle).unwrap().defer();
        let begun = deferred.start(move |_| {
            let _ = gate.recv();
            end
        });
        assert_eq!(begun, Err(ResultCode::InProgress));
        assert_eq!(enter(handle).err(), Some(ResultCode::InvalidArgument));
        assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
        drop(go);
        while async_result(handle) == Ok(ResultCode::InProgress) {
            std::thread::yield_now();
        }
        // From the moment that it says so the communicator can be used.
        assert!(enter(handle).is_ok());
        assert_eq!(async_result(handle), Ok(end.err().unwrap_or(ResultCode::Success)));
    }
    // A panic is an end as well.
    let begun = visit(handle).unwrap().defer().start(|_| panic!("on purpose"));
    assert_eq!(begun, Err(ResultCode::InProgress));
    while async_result(handle) == Ok(ResultCode::InProgress) {
        std::thread::yield_now();
    }
    assert_eq!(async_result(handle), Ok(ResultCode::InternalError));
    drop(evict(handle).unwrap());
}

#[test]
fn what_is_being_made_can_be_asked_for_and_aborted() {
    let reserved = reserve(Some((1, 2)), false, 3).unwrap();
    let handle = reserved.handle();
    assert_eq!(identity(handle), Ok((1, 2)));
    assert_eq!((device(handle), blocks(handle)), (Ok(3), Ok(false)));
    assert_eq!(async_result(handle), Ok(ResultCode::InProgress));
    assert_eq!(enter(handle).err(), Some(ResultCode::InvalidArgument));
    assert_eq!(evict(handle).err(), Some(ResultCode::InvalidArgument));
    let signal = reserved.signal().unwrap();
    assert_eq!(abort(handle), Ok(false));
    assert!(signal.is_raised());
    assert!(abort(handle).is_err() && async_result(handle).is_err());
    reserved.fail(ResultCode::RemoteError);
    assert!(evict(handle).is_err());
}

#[test]
fn what_could_not_be_made_says_so_until_it_is_destroyed() {
    let reserved = reserve(None, false, -1).unwrap();
    let handle = reserved.handle();
    assert_eq!(identity(handle), Err(ResultCode::InvalidArgument));
    reserved.fail(ResultCode::Timeout);
    assert_eq!(async_result(handle), Ok(ResultCode::Timeout));
    assert_eq!(enter(handle).err(), Some(ResultCode::Timeout));
    assert!(evict(handle).unwrap().is_none());
    assert!(async_result(handle).is_err());
}

#[test]
fn what_was_never_a_handle_is_refused() {
    let on_the_stack = 0;
    let pointer = std::ptr::from_ref(&on_the_stack).cast_mut().cast();
    for value in [
        null_mut(),
        pointer,
        std::ptr::without_provenance_mut(LOW_BITS),
        std::ptr::without_provenance_mut(usize::MAX),
    ] {
        assert_eq!(enter(value).err(), Some(ResultCode::InvalidArgument));
        assert!(evict(value).is_err() && abort(value).is_err());
    }
}
