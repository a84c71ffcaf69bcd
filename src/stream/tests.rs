//! Tests of host streams.

use maypole_transport::sync::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Barrier, Mutex};

use super::*;
use crate::{Communicator, RedOp, UniqueId};

type Log = Arc<Mutex<Vec<usize>>>;

fn write(log: &Log, number: usize) -> Work {
    let log = Arc::clone(log);
    Box::new(move || {
        log.lock().unwrap().push(number);
        Ok(())
    })
}

/// Work that ends when the sender says so or is dropped.
fn held() -> (Sender<()>, Work) {
    let (open, gate): (_, Receiver<()>) = channel();
    let work = move || {
        let _ = gate.recv();
        Ok(())
    };
    (open, Box::new(work))
}

#[test]
fn a_stream_keeps_the_order() {
    let (stream, log) = (Stream::new(), Log::default());
    let (open, work) = held();
    stream.run(work).unwrap();
    for number in 0..100 {
        stream.run(write(&log, number)).unwrap();
    }
    assert!(!stream.is_idle().unwrap() && log.lock().unwrap().is_empty());
    drop(open);
    stream.synchronize().unwrap();
    assert!(stream.is_idle().unwrap());
    assert_eq!(*log.lock().unwrap(), (0..100).collect::<Vec<_>>());
}

#[test]
fn a_piece_on_two_streams_joins_and_forks_them() {
    let (one, two, log) = (Stream::new(), Stream::new(), Log::default());
    let (open, work) = held();
    one.run(work).unwrap();
    two.run(write(&log, 0)).unwrap();
    issue(vec![Issue { work: write(&log, 1), on: vec![one.clone(), two.clone(), one.clone()] }])
        .unwrap();
    two.run(write(&log, 2)).unwrap();
    one.run(write(&log, 3)).unwrap();
    open.send(()).unwrap();
    one.synchronize().unwrap();
    two.synchronize().unwrap();
    let log = log.lock().unwrap();
    assert_eq!(log[..2], [0, 1]);
    assert!(log[2..] == [2, 3] || log[2..] == [3, 2]);
}

#[test]
fn what_is_issued_at_once_runs_side_by_side() {
    let (stream, log) = (Stream::new(), Log::default());
    let barrier = Arc::new(Barrier::new(5));
    let meet = || {
        let barrier = Arc::clone(&barrier);
        let work: Work = Box::new(move || {
            barrier.wait();
            Ok(())
        });
        Issue { work, on: vec![stream.clone()] }
    };
    issue((0..5).map(|_| meet()).collect()).unwrap();
    stream.run(write(&log, 1)).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn a_stream_waits_for_another_as_it_is() {
    let (one, two, log) = (Stream::new(), Stream::new(), Log::default());
    let (open, work) = held();
    one.run(work).unwrap();
    one.run(write(&log, 1)).unwrap();
    two.wait_for(&one).unwrap();
    two.run(write(&log, 2)).unwrap();
    two.wait_for(&two).unwrap();
    let (other, work) = held();
    one.run(work).unwrap();
    drop(open);
    // It does not wait for what `one` still holds.
    two.synchronize().unwrap();
    assert_eq!(*log.lock().unwrap(), [1, 2]);
    assert!(!one.is_idle().unwrap());
    drop(other);
    one.synchronize().unwrap();
}

#[test]
fn the_first_failure_stays_until_it_is_fetched_and_stops_nothing() {
    let (stream, log) = (Stream::new(), Log::default());
    stream.run(Box::new(|| Err(ResultCode::RemoteError))).unwrap();
    let panicked = stream.run(Box::new(|| panic!("on purpose"))).unwrap();
    let last = stream.run(write(&log, 1)).unwrap();
    assert_eq!(last.wait(), Ok(()));
    assert_eq!(panicked.wait(), Err(ResultCode::InternalError));
    let failed = Error::Failed { code: ResultCode::RemoteError };
    assert_eq!(stream.is_idle(), Err(failed.clone()));
    assert_eq!(stream.synchronize(), Err(failed));
    assert_eq!((stream.synchronize(), stream.failure()), (Ok(()), None));
    assert_eq!(*log.lock().unwrap(), [1]);
}

#[test]
fn what_is_cancelled_keeps_its_place() {
    let (stream, log) = (Stream::new(), Log::default());
    let (open, work) = held();
    let first = stream.run(work).unwrap();
    let second = stream.run(write(&log, 2)).unwrap();
    stream.run(write(&log, 3)).unwrap();
    second.cancel();
    assert!(!second.has_ended());
    drop(open);
    stream.synchronize().unwrap();
    first.cancel();
    assert!(first.has_ended() && second.has_ended());
    assert_eq!(*log.lock().unwrap(), [3]);
}

#[test]
fn work_must_not_wait_for_streams() {
    let stream = Stream::new();
    let itself = stream.clone();
    let work = move || match itself.synchronize() {
        Err(Error::InvalidUsage { .. }) => Err(ResultCode::Timeout),
        _ => Ok(()),
    };
    stream.run(Box::new(work)).unwrap();
    assert_eq!(stream.synchronize(), Err(Error::Failed { code: ResultCode::Timeout }));
}

#[test]
fn a_descriptor_counts_what_has_ended() {
    let stream = Stream::new();
    let fd = stream.event_fd().unwrap();
    assert_eq!(stream.event_fd().unwrap(), fd);
    for _ in 0..3 {
        stream.run(Box::new(|| Ok(()))).unwrap();
    }
    // Who synchronises may be a moment ahead of the last count.
    let mut count = 0;
    while count < 3 {
        let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut bytes = [0; 8];
        // SAFETY: both are alive.
        unsafe {
            assert_eq!(libc::poll(&mut poll, 1, 10_000), 1);
            assert_eq!(libc::read(fd, bytes.as_mut_ptr().cast(), 8), 8);
        }
        count += u64::from_ne_bytes(bytes);
    }
    assert_eq!(count, 3);
}

#[test]
fn threads_that_issue_on_the_same_streams_in_any_order_end() {
    let streams: Vec<Stream> = (0..3).map(|_| Stream::new()).collect();
    let count = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        for turn in 0..3 {
            let (streams, count) = (&streams, &count);
            scope.spawn(move || {
                for _ in 0..200 {
                    let on = (0..2).map(|i| streams[(turn + i) % 3].clone()).collect();
                    let count = Arc::clone(count);
                    let work: Work = Box::new(move || {
                        count.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    });
                    issue(vec![Issue { work, on }]).unwrap();
                }
            });
        }
    });
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 600);
}

#[test]
fn a_stream_and_its_last_work_do_not_hold_each_other() {
    let stream = Stream::new();
    let chain = Arc::downgrade(&stream.chain);
    let ticket = stream.run(Box::new(|| Ok(()))).unwrap();
    stream.synchronize().unwrap();
    drop((stream, ticket));
    // The thread that ran it lets go a moment later.
    while chain.strong_count() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn one_thread_is_several_ranks() {
    let id = UniqueId::create().unwrap();
    let stream = Stream::new();
    let rank = |rank: u32| {
        let work: Work = Box::new(move || {
            let run = || -> Result<f32, Error> {
                let mut comm = Communicator::new(&id, rank, 3)?;
                let mut sum = [0.0];
                comm.all_reduce(&[rank as f32 + 1.0], &mut sum, RedOp::Sum)?;
                Ok(sum[0])
            };
            match run() {
                Ok(6.0) => Ok(()),
                Ok(_) => Err(ResultCode::InternalError),
                Err(error) => Err(error.code()),
            }
        });
        Issue { work, on: vec![stream.clone()] }
    };
    issue((0..3).map(rank).collect()).unwrap();
    assert_eq!(stream.synchronize(), Ok(()));
}
