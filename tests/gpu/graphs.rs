//! Tests calls that are captured in a graph and replayed with different contributions each time.

use maypole::device::CudaStreamHandle;
use maypole::{Collective, DType, RedOp};
use maypole::{StreamCalls, launch_calls};
use maypole_cuda::stream::{CudaEvent, CudaGraph};

use crate::piece::{Even, Piece, What};
use crate::round::{by_host, compare, contributions, place};
use crate::simulator::play;
use crate::world::{Member, World};

/// Calls of all kinds: collectives, sends and receives, vector collectives, and calls without data.
fn pieces(nranks: u32) -> Vec<Piece> {
    let root = nranks - 1;
    let even = |collective, dtype, op, count| {
        let (in_place, skew, resident) = (false, 0, true);
        What::Even(Even { collective, dtype, op, count, in_place, skew, resident })
    };
    let ring = (0..nranks).map(|rank| (rank, (rank + 1) % nranks, 300 + rank as usize));
    let whats = [
        even(Collective::AllReduce, DType::Float32, RedOp::Sum, 100),
        even(Collective::AllReduce, DType::Bfloat16, RedOp::PreMulSum, 1001),
        What::Transfers(ring.collect()),
        even(Collective::Broadcast { root }, DType::Uint8, RedOp::Sum, 333),
        What::Uneven(Collective::AllGather, DType::Int32, RedOp::Sum),
        What::Barrier,
        even(Collective::ReduceScatter, DType::Float64, RedOp::Max, 50),
    ];
    let piece = |(seed, what)| Piece { what, seed };
    (1..).zip(whats).map(piece).collect()
}

/// Queues these calls for `members`, on the same stream of each, or on one stream for all if they
/// share a device.
fn queue(
    members: &mut [Member],
    pieces: &[Piece],
    nranks: u32,
    first: usize,
    on: &[CudaStreamHandle],
) {
    let placed: Vec<_> = members.iter().map(|m| place(pieces, m.rank(), nranks).0).collect();
    let bound: Vec<Vec<_>> = members
        .iter()
        .zip(&placed)
        .map(|(member, placed)| {
            let base = member.arena.address();
            placed[first..].iter().map(|one| one.bind(base, true)).collect()
        })
        .collect();
    let parts = members.iter_mut().zip(&bound).zip(on).map(|((member, bound), stream)| {
        let calls = bound.iter().map(|one| one.queued()).collect();
        StreamCalls { comm: &mut member.comm, calls, stream: *stream }
    });
    // SAFETY: the places lie within the arenas, which outlive the graphs.
    unsafe { launch_calls(parts.collect()) }.expect("to queue");
}

fn capture(member: &mut Member, pieces: &[Piece], nranks: u32) -> CudaGraph {
    let (device, handles) = (member.device.clone(), [0, 1].map(|i| member.streams[i].handle()));
    let fork = CudaEvent::new(&device).expect("an event");
    let join = CudaEvent::new(&device).expect("an event");
    member.streams[0].begin_capture().expect("to begin");
    let on = CudaStreamHandle(handles[0]);
    // The last calls are on a second stream of the same capture.
    let half = pieces.len() / 2;
    queue(std::slice::from_mut(member), &pieces[..half], nranks, 0, &[on]);
    fork.record(&member.streams[0]).expect("to fork");
    member.streams[1].wait(&fork).expect("to fork");
    let on = CudaStreamHandle(handles[1]);
    queue(std::slice::from_mut(member), pieces, nranks, half, &[on]);
    join.record(&member.streams[1]).expect("to join");
    member.streams[0].wait(&join).expect("to join");
    member.streams[0].end_capture().expect("a graph")
}

/// A graph for each rank.
pub(crate) fn of_each_rank(ranks: usize, replays: u64) {
    let mut world = World::of_threads(ranks);
    let nranks = world.nranks;
    let pieces = pieces(nranks);
    world.each(|member| {
        let graph = capture(member, &pieces, nranks);
        let (placed, end) = place(&pieces, member.rank(), nranks);
        for replay in 0..replays {
            let before = contributions(&placed, end, replay);
            let stream = &member.streams[0];
            stream.write(&member.arena, &before).expect("to write");
            // SAFETY: the arena outlives the graph, and nothing else uses it meanwhile.
            unsafe { graph.launch(stream) }.expect("to replay");
            let got = stream.read(&member.arena, end).expect("to read");
            assert_eq!(member.comm.async_error(), None, "replay {replay}");
            let expected = by_host(&placed, &mut member.host, &before);
            compare(&placed, &expected, &got, &format!("replay {replay}"));
        }
        // Calls outside the graph go on.
        member.comm.barrier().expect("a barrier");
    });
}

/// One graph for all ranks, which share a device: their calls are in the same launches.
pub(crate) fn of_all_ranks(ranks: usize, replays: u64) {
    let mut world = World::of_threads(ranks);
    let nranks = world.nranks;
    let pieces = pieces(nranks);
    assert!(world.here.iter().all(|member| member.comm.device() == Some(0)), "one device");
    let on = vec![CudaStreamHandle(world.here[0].streams[0].handle()); ranks];
    world.here[0].streams[0].begin_capture().expect("to begin");
    queue(&mut world.here, &pieces, nranks, 0, &on);
    let graph = world.here[0].streams[0].end_capture().expect("a graph");
    for replay in 0..replays {
        let expected = world.each(|member| {
            let (placed, end) = place(&pieces, member.rank(), nranks);
            let before = contributions(&placed, end, replay);
            member.streams[0].write(&member.arena, &before).expect("to write");
            member.streams[0].synchronize().expect("to write");
            by_host(&placed, &mut member.host, &before)
        });
        let stream = &world.here[0].streams[0];
        // SAFETY: the arenas outlive the graph, and nothing else uses them meanwhile.
        unsafe { graph.launch(stream) }.expect("to replay");
        stream.synchronize().expect("to replay");
        for (member, expected) in world.here.iter().zip(&expected) {
            let (placed, end) = place(&pieces, member.rank(), nranks);
            let got = member.streams[0].read(&member.arena, end).expect("to read");
            compare(&placed, expected, &got, &format!("replay {replay}"));
        }
    }
    world.each(|member| assert_eq!(member.comm.async_error(), None));
}

#[test]
fn graphs_of_each_rank_a_thousand_times() {
    play("graphs 3 1000", &[("CUDA_DEVICE_MAX_CONNECTIONS", "32")]).well();
}

#[test]
fn a_graph_of_all_ranks_of_a_device_a_thousand_times() {
    play("graphs-together 3 1000", &[("SIMCUDA_DEVICES", "1")]).well();
}
