//! A round of a test: some calls on the host, the same calls on devices in one of several ways, and
//! a comparison of all memory.

use std::ffi::c_void;

use maypole::Communicator;
use maypole::device::CudaStreamHandle;
use maypole::{StreamCalls, launch_calls};

use crate::piece::{FILL, Piece, Placed};
use crate::world::{ARENA, Member, STREAMS, World};

/// How the calls are made on the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Each rank's thread makes one call after the other, and waits for each.
    Direct,
    /// Each rank's thread queues the calls on its own streams.
    Apart,
    /// One thread queues the calls of all ranks at once, on a stream of each rank.
    Together,
    /// The same, all on the legacy default stream.
    Legacy,
}

/// Calls that are queued by one `launch_calls`, and the number of the stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) calls: usize,
    pub(crate) stream: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) pieces: Vec<Piece>,
    /// The groups, which together contain all pieces.
    pub(crate) groups: Vec<Group>,
    pub(crate) way: Way,
}

/// The pieces with their offsets in the memory of a rank, and the bytes that they need.
pub(crate) fn place(pieces: &[Piece], rank: u32, nranks: u32) -> (Vec<Placed<'_>>, usize) {
    let mut end = 0;
    let mut placed = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let one = piece.place(end, rank, nranks);
        end = one.end;
        placed.push(one);
    }
    assert!(end <= ARENA, "a round of {end} bytes");
    (placed, end)
}

/// A rank's memory before the calls.
pub(crate) fn contributions(placed: &[Placed<'_>], end: usize, salt: u64) -> Vec<u8> {
    let mut memory = vec![FILL; end];
    placed.iter().for_each(|one| one.fill(&mut memory, salt));
    memory
}

/// The memory after the calls, made on the host.
pub(crate) fn by_host(placed: &[Placed<'_>], host: &mut Communicator, before: &[u8]) -> Vec<u8> {
    let mut after = before.to_vec();
    let base = after.as_mut_ptr() as u64;
    for one in placed {
        // SAFETY: the places lie within the memory.
        let done = unsafe { one.bind(base, false).run(host) };
        done.unwrap_or_else(|error| panic!("on the host: {:?}: {error}", one.piece));
    }
    after
}

/// Fails if a byte has a wrong value.
pub(crate) fn compare(placed: &[Placed<'_>], expected: &[u8], got: &[u8], context: &str) {
    if expected == got {
        return;
    }
    let wrong: Vec<usize> = (0..expected.len()).filter(|at| expected[*at] != got[*at]).collect();
    let at = wrong[0];
    let owner = placed.iter().find(|one| at < one.end).expect("a byte of a piece");
    panic!(
        "{} bytes differ, the first is {:#04x} instead of {:#04x} in {}\n{context}",
        wrong.len(),
        got[at],
        expected[at],
        owner.describe(at)
    );
}

impl Round {
    /// Plays it; `World::each` runs what a rank does alone.
    pub(crate) fn play(&self, world: &mut World) {
        let nranks = world.nranks;
        let place = |member: &Member| place(&self.pieces, member.rank(), nranks);
        let expected = world.each(|member| {
            let (placed, end) = place(member);
            let before = contributions(&placed, end, 0);
            let stream = &member.streams[0];
            stream.write(&member.arena, &before).expect("to write");
            stream.synchronize().expect("to write");
            by_host(&placed, &mut member.host, &before)
        });
        match self.way {
            Way::Direct => {
                world.each(|member| self.directly(member, nranks));
            }
            Way::Apart => {
                world.each(|member| self.queue(std::slice::from_mut(member), nranks));
            }
            Way::Together | Way::Legacy => self.queue(&mut world.here, nranks),
        }
        let got = world.each(|member| {
            let end = place(member).1;
            let all = member.streams.iter().try_for_each(|stream| stream.synchronize());
            all.expect("the calls end");
            if self.way == Way::Legacy {
                legacy(member).synchronize().expect("the calls end");
            }
            let got = member.streams[0].read(&member.arena, end).expect("to read");
            assert_eq!(member.comm.async_error(), None, "{self:?}");
            got
        });
        for (member, (expected, got)) in world.here.iter().zip(expected.iter().zip(&got)) {
            compare(&place(member).0, expected, got, &format!("{self:?}"));
        }
    }

    fn directly(&self, member: &mut Member, nranks: u32) {
        let base = member.arena.address();
        for one in place(&self.pieces, member.rank(), nranks).0 {
            // SAFETY: the places lie within the arena.
            let done = unsafe { one.bind(base, true).run(&mut member.comm) };
            done.unwrap_or_else(|error| panic!("{:?}: {error}", one.piece));
        }
    }

    /// Queues the groups of these ranks.
    fn queue(&self, members: &mut [Member], nranks: u32) {
        let placed: Vec<_> =
            members.iter().map(|m| place(&self.pieces, m.rank(), nranks).0).collect();
        let mut first = 0;
        for group in &self.groups {
            let range = first..first + group.calls;
            first = range.end;
            let bound: Vec<Vec<_>> = members
                .iter()
                .zip(&placed)
                .map(|(member, placed)| {
                    let base = member.arena.address();
                    placed[range.clone()].iter().map(|one| one.bind(base, true)).collect()
                })
                .collect();
            let parts = members.iter_mut().zip(&bound).map(|(member, bound)| {
                let stream = match self.way {
                    Way::Legacy => std::ptr::null_mut::<c_void>(),
                    _ => member.streams[group.stream % STREAMS].handle(),
                };
                let calls = bound.iter().map(|one| one.queued()).collect();
                StreamCalls { comm: &mut member.comm, calls, stream: CudaStreamHandle(stream) }
            });
            // SAFETY: the places lie within the arenas, which live until the streams have run.
            let queued = unsafe { launch_calls(parts.collect()) };
            queued.unwrap_or_else(|error| panic!("{error}\n{self:?}"));
        }
        assert_eq!(first, self.pieces.len(), "groups share out the pieces");
    }
}

/// The legacy default stream of a rank's device.
pub(crate) fn legacy(member: &Member) -> maypole_cuda::stream::CudaStream {
    // SAFETY: null is the legacy default stream, which always exists.
    unsafe { maypole_cuda::stream::CudaStream::foreign(&member.device, std::ptr::null_mut()) }
}
