//! Windows over every kind of link: puts and signals keep their order, need no action of the
//! target, and are refused where they do not fit.

use std::any::Any;
use std::cell::UnsafeCell;

use super::{Random, as_ranks, over_tcp};
use crate::config::Config;
use crate::error::Error;
use crate::memory::SharedBuffer;
use crate::window::WINDOW_SLOTS;
use crate::{Communicator, RedOp, WindowId};

/// The kind of memory of a rank's part of a window.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Allocator,
    Library,
    /// A `SharedBuffer` on ranks with an odd number, ordinary memory on the others.
    Mixed,
}

const KINDS: [Kind; 3] = [Kind::Allocator, Kind::Library, Kind::Mixed];

/// Memory that other ranks write to.
struct Part {
    words: *mut u64,
    len: usize,
    _keep: Box<dyn Any>,
}

impl Part {
    fn new(comm: &Communicator, len: usize, kind: Kind) -> Self {
        if kind == Kind::Library || kind == Kind::Mixed && comm.rank() % 2 == 1 {
            let mut buffer = SharedBuffer::new(len * 8 + 64).unwrap();
            // Not at the beginning of the segment.
            let words = buffer.as_mut_ptr().wrapping_add(40).cast();
            return Self { words, len, _keep: Box::new(buffer) };
        }
        let cells: Box<[_]> = (0..len).map(|_| UnsafeCell::new(0)).collect();
        Self { words: cells[0].get(), len, _keep: Box::new(cells) }
    }

    fn register(&self, comm: &mut Communicator) -> Result<WindowId, Error> {
        // SAFETY: the tests drop the part after the window, and read only what was signalled.
        unsafe { comm.register_window(self.words.cast(), self.len * 8) }
    }

    fn get(&self, at: usize) -> u64 {
        assert!(at < self.len);
        // SAFETY: the rank that wrote it has signalled, and writes again only after a signal.
        unsafe { self.words.add(at).read() }
    }
}

fn put(
    comm: &mut Communicator,
    data: &[u64],
    peer: u32,
    window: WindowId,
    at: usize,
) -> Result<(), Error> {
    // SAFETY: the slice is borrowed for the call.
    unsafe { comm.put(data.as_ptr().cast(), data.len() * 8, peer, window, at * 8) }
}

fn links() -> impl Iterator<Item = (Config, Kind)> {
    let slot_bytes = Some(256);
    let configs = [
        Config { slot_bytes, ..Config::default() },
        Config { slot_bytes, p2p_disable: true, ..Config::default() },
        Config { slot_bytes, ..over_tcp(2) },
    ];
    configs.into_iter().flat_map(|config| KINDS.map(|kind| (config.clone(), kind)))
}

#[test]
fn a_put_has_arrived_when_its_signal_has() {
    const SLOT: usize = 300;
    for (config, kind) in links() {
        as_ranks(4, &config, move |comm| {
            let (rank, n) = (comm.rank(), comm.nranks());
            let parts = [kind, Kind::Library].map(|kind| Part::new(comm, SLOT * n as usize, kind));
            let windows = parts.each_ref().map(|part| part.register(comm).unwrap());
            let mut random = Random(rank.into());
            for round in 0..30u64 {
                let mut peers: Vec<u32> = (0..n).collect();
                (0..n as usize).for_each(|i| peers.swap(i, random.below(n.into()) as usize));
                let word = |from: u32, to: u32, i: usize| {
                    round << 40 | u64::from(from) << 32 | u64::from(to) << 24 | i as u64
                };
                for &peer in &peers {
                    let data: Vec<u64> = (0..SLOT).map(|i| word(rank, peer, i)).collect();
                    for window in windows {
                        put(comm, &data, peer, window, SLOT * rank as usize).unwrap();
                    }
                    comm.signal(peer).unwrap();
                }
                for &peer in &peers {
                    // No signal overtakes the put before it, in whatever way that travels.
                    for (part, signals) in parts.iter().zip([1, 2]) {
                        comm.wait_signals(&[(peer, signals)]).unwrap();
                        for i in 0..SLOT {
                            assert_eq!(part.get(SLOT * peer as usize + i), word(peer, rank, i));
                        }
                    }
                }
                // All ranks have read.
                comm.barrier().unwrap();
            }
            windows.into_iter().for_each(|window| comm.deregister_window(window).unwrap());
            comm.barrier().unwrap();
        });
    }
}

/// Puts more than the link holds to a rank that is in a collective with the one that puts.
#[test]
fn a_put_needs_no_action_of_its_target() {
    for (config, kind) in links() {
        as_ranks(2, &config, move |comm| {
            let part = Part::new(comm, 100_000, kind);
            let window = part.register(comm).unwrap();
            if comm.rank() == 0 {
                put(comm, &vec![7; 100_000], 1, window, 0).unwrap();
            }
            let mut sum = [0.0f32];
            comm.all_reduce(&[1.0], &mut sum, RedOp::Sum).unwrap();
            assert_eq!(sum, [2.0]);
            if comm.rank() == 1 {
                comm.wait_signals(&[(0, 1)]).unwrap();
                assert!((0..100_000).all(|i| part.get(i) == 7));
            }
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn a_put_that_does_not_fit_is_refused_and_the_communicator_goes_on() {
    for kind in KINDS {
        refuses_what_does_not_fit(kind);
    }
}

fn refuses_what_does_not_fit(kind: Kind) {
    as_ranks(2, &Config::default(), move |comm| {
        let invalid = |result| assert!(matches!(result, Err(Error::InvalidArgument { .. })));
        let other = 1 - comm.rank();
        invalid(comm.signal(other));
        invalid(comm.wait_signals(&[(other, 1)]));
        // The parts have different lengths.
        let part = Part::new(comm, 4 + comm.rank() as usize, kind);
        let window = part.register(comm).unwrap();
        let theirs = 4 + other as usize;
        for (peer, window, at, len) in [
            (2, window, 0, 1),
            (other, WindowId(9), 0, 1),
            (other, window, theirs, 1),
            (other, window, 0, theirs + 1),
            (other, window, usize::MAX / 8, 1),
        ] {
            invalid(put(comm, &vec![1; len], peer, window, at));
        }
        invalid(comm.deregister_window(WindowId(9)));
        put(comm, &vec![5; theirs], other, window, 0).unwrap();
        put(comm, &[], other, window, theirs).unwrap();
        comm.wait_signals(&[(other, 2)]).unwrap();
        assert!((0..part.len).all(|i| part.get(i) == 5));
        // From itself a rank can wait only for signals that it has sent.
        let me = comm.rank();
        put(comm, &[6], me, window, 1).unwrap();
        comm.signal(me).unwrap();
        invalid(comm.wait_signals(&[(me, 3)]));
        comm.wait_signals(&[(me, 2)]).unwrap();
        assert_eq!(part.get(1), 6);
        comm.barrier().unwrap();
        comm.deregister_window(window).unwrap();
        invalid(comm.deregister_window(window));
        invalid(put(comm, &[1], other, window, 0));
        comm.barrier().unwrap();
    });
}

#[test]
fn a_put_to_a_deregistered_window_writes_nothing_and_ends_all_ranks() {
    for kind in KINDS {
        put_to_a_deregistered_window(kind);
    }
}

fn put_to_a_deregistered_window(kind: Kind) {
    let errors = as_ranks(3, &Config::default(), move |comm| {
        let part = Part::new(comm, 4, kind);
        let window = part.register(comm).unwrap();
        if comm.rank() == 1 {
            comm.deregister_window(window).unwrap();
        }
        // The other ranks have finished all calls that the abort would end.
        match comm.rank() {
            0 => comm.wait_signals(&[(1, 1), (2, 1)]).unwrap(),
            _ => comm.signal(0).unwrap(),
        }
        let result = match comm.rank() {
            0 => put(comm, &[1; 4], 1, window, 0).and_then(|()| comm.wait_signals(&[(1, 1)])),
            _ => comm.wait_signals(&[(0, 1)]),
        };
        assert!((0..4).all(|i| part.get(i) == 0));
        result.expect_err("nobody signals").to_string()
    });
    // The rank that writes notices: the thread of rank 1, or rank 0 itself.
    let (who, name) = if kind == Kind::Allocator { (1, "rank 1") } else { (0, "rank 0") };
    assert!(errors[who].contains("not registered any more"), "{errors:?}");
    assert!(errors[1 - who].contains(name) && errors[2].contains(name), "{errors:?}");
}

/// Where every rank can write directly, no rank has a thread that each ring of the doorbell would
/// wake. The thread starts with the first window that needs it.
#[test]
fn windows_of_shared_buffers_on_one_host_need_no_thread() {
    for (config, on_one_host) in [(false, true), (true, true)]
        .map(|(apart, host)| (Config { p2p_disable: apart, ..Config::default() }, host))
        .into_iter()
        .chain([(over_tcp(1), false)])
    {
        as_ranks(3, &config, move |comm| {
            let has_thread =
                |comm: &Communicator| comm.host.windows.service.as_ref().unwrap().has_thread();
            let parts =
                [Kind::Library, Kind::Library, Kind::Mixed].map(|kind| Part::new(comm, 10, kind));
            parts[0].register(comm).unwrap();
            assert_eq!(has_thread(comm), !on_one_host);
            let window = parts[1].register(comm).unwrap();
            assert_eq!(has_thread(comm), !on_one_host);
            let other = (comm.rank() + 1) % 3;
            put(comm, &[7; 10], other, window, 0).unwrap();
            comm.wait_signals(&[((comm.rank() + 2) % 3, 1)]).unwrap();
            assert!((0..10).all(|i| parts[1].get(i) == 7));
            parts[2].register(comm).unwrap();
            assert!(has_thread(comm));
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn a_window_gets_the_slot_of_a_deregistered_one() {
    as_ranks(2, &Config::default(), |comm| {
        let part = Part::new(comm, 10, Kind::Library);
        let (me, other) = (comm.rank(), 1 - comm.rank());
        let register = |comm: &mut Communicator| part.register(comm).unwrap();
        let first = register(comm);
        // The ranks deregister in different orders, so that they have different slots free.
        let mut live = Vec::new();
        for round in 0..WINDOW_SLOTS + 100 {
            live.push(register(comm));
            if live.len() == 3 {
                let gone = live.remove((me + round) as usize % 3);
                comm.deregister_window(gone).unwrap();
            }
        }
        assert!(!comm.host.windows.service.as_ref().unwrap().has_thread());
        let last = register(comm);
        for window in [first, last] {
            put(comm, &[u64::from(me) + 7; 10], other, window, 0).unwrap();
            comm.wait_signals(&[(other, 1)]).unwrap();
            assert!((0..10).all(|i| part.get(i) == u64::from(other) + 7));
            comm.barrier().unwrap();
        }
        comm.barrier().unwrap();
        // The window that has the slot of another one now does not stand for it.
        if me == 0 {
            comm.deregister_window(last).unwrap();
        }
        comm.barrier().unwrap();
        let next = register(comm);
        if me == 1 {
            put(comm, &[1; 10], other, next, 0).unwrap();
        }
        // The wrong put ends the communicator, so it comes after all that must succeed. Rank 0
        // stays until then, so that rank 1 cannot fail because rank 0 has left.
        comm.barrier().unwrap();
        let error = match me {
            0 => comm.wait_signals(&[(1, 2)]),
            _ => put(comm, &[1; 10], other, last, 0),
        };
        let error = error.expect_err("the window is deregistered").to_string();
        assert!(error.contains(["rank 1", "not registered any more"][me as usize]), "{error}");
    });
}

#[test]
fn an_abort_ends_a_wait_for_signals() {
    for (config, kind) in links() {
        let errors = as_ranks(2, &config, move |comm| {
            let part = Part::new(comm, 4, kind);
            part.register(comm).unwrap();
            if comm.rank() == 0 {
                comm.wait_signals(&[(1, 1)]).unwrap();
                comm.abort_handle().abort();
            } else {
                // Rank 0 may abort as soon as it sees the signal, before this call returns.
                let _signalled = comm.signal(0);
            }
            comm.wait_signals(&[(1 - comm.rank(), 1)]).expect_err("it was aborted").code()
        });
        assert_eq!(errors, [crate::error::ResultCode::RemoteError; 2]);
    }
}

#[test]
fn a_rank_that_leaves_ends_waits_for_it_after_its_last_signal() {
    for (config, kind) in links() {
        as_ranks(2, &config, move |comm| {
            let part = Part::new(comm, 4, kind);
            let window = part.register(comm).unwrap();
            if comm.rank() == 0 {
                comm.wait_signals(&[(1, 1)]).unwrap();
                put(comm, &[3], 1, window, 2).unwrap();
                return;
            }
            comm.signal(0).unwrap();
            comm.wait_signals(&[(0, 1)]).unwrap();
            assert_eq!(part.get(2), 3);
            let error = comm.wait_signals(&[(0, 1)]).expect_err("rank 0 has left");
            assert_eq!(error.code(), crate::error::ResultCode::InvalidUsage, "{error}");
        });
    }
}
