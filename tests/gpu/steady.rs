//! Tests the cost of repeated calls, as launches and other calls of the driver that the simulator
//! counts, and that calls do not change the current context.

use maypole::device::current;
use maypole::{Collective, DType, RedOp};
use maypole_cuda::driver::{Device, Driver};

use crate::piece::{Even, Piece, What};
use crate::round::{Group, Round, Way, place};
use crate::simulator::{calls, play};
use crate::world::World;
use maypole::device::CudaStreamHandle;
use maypole::{StreamCalls, launch_calls};

fn even(collective: Collective, count: usize) -> Piece {
    let (dtype, op) = (DType::Float32, RedOp::Sum);
    let (in_place, skew, resident) = (false, 0, false);
    Piece {
        what: What::Even(Even { collective, dtype, op, count, in_place, skew, resident }),
        seed: 9,
    }
}

/// Counted functions that are no part of the calls: a service thread queries the driver from time
/// to time while work is running.
const LOOKS: [&str; 6] = [
    // The number of started kernels, and of those in a domain, which are no calls.
    "kernel",
    "kernel-in-remote-domain",
    "cuStreamQuery",
    "cuThreadExchangeStreamCaptureMode",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
];

/// The calls of the driver by `times` launches of `pieces`, by all ranks at once if `together`:
/// launches of kernels, and other calls, without those of service threads.
fn cost(world: &mut World, pieces: &[Piece], together: bool, times: u64) -> (u64, u64) {
    let (nranks, ranks) = (world.nranks, world.here.len());
    let queue = |members: &mut [crate::world::Member]| {
        let placed: Vec<_> = members.iter().map(|m| place(pieces, m.rank(), nranks).0).collect();
        let bound: Vec<Vec<_>> = members
            .iter()
            .zip(&placed)
            .map(|(m, placed)| placed.iter().map(|one| one.bind(m.arena.address(), true)).collect())
            .collect();
        let first = CudaStreamHandle(members[0].streams[0].handle());
        let parts = members.iter_mut().zip(&bound).map(|(m, bound)| StreamCalls {
            comm: &mut m.comm,
            calls: bound.iter().map(|one| one.queued()).collect(),
            stream: first,
        });
        // SAFETY: the places lie within the arenas, which outlive the calls.
        unsafe { launch_calls(parts.collect()) }.expect("to queue");
    };
    let members = &mut world.here;
    // Rank by rank, with the context of its device current, as a user of CUDA has it. Nothing waits
    // before the streams are synchronised.
    let mut counted = Vec::new();
    for part in members.chunks_mut(if together { ranks } else { 1 }) {
        let device = part[0].device.clone();
        let guard = device.current().expect("a context");
        (0..2).for_each(|_| queue(part));
        counted.extend(calls(|| (0..times).for_each(|_| queue(part))));
        drop(guard);
    }
    world.each(|member| {
        member.streams[0].synchronize().expect("the calls end");
        assert_eq!(member.comm.async_error(), None);
    });
    let count =
        |name: &str| counted.iter().filter(|one| one.0 == name).map(|one| one.1).sum::<u64>();
    let launches = count("cuLaunchKernel") + count("cuLaunchKernelEx");
    // The simulated device has memory synchronisation domains.
    assert_eq!(count("kernel-in-remote-domain"), launches);
    let (current, stream) =
        (count("cuCtxGetCurrent"), count("cuStreamGetCaptureInfo") + count("cuStreamGetId"));
    let strange: Vec<_> = counted
        .iter()
        .filter(|(name, _)| {
            !name.starts_with("cuLaunch")
                && !["cuCtxGetCurrent", "cuStreamGetCaptureInfo", "cuStreamGetId"]
                    .contains(&&**name)
                && !LOOKS.contains(&&**name)
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    // A service thread first asks for the current context; one of them may be between its two
    // calls.
    let looks = count("cuStreamQuery") + ranks as u64;
    (launches, current.saturating_sub(looks).max(launches) + stream)
}

/// One launch and three other calls for each call of each rank.
pub(crate) fn scene() {
    let mut world = World::of_threads(4);
    let root = 2;
    for collective in Collective::all(root) {
        for count in [1, 1000, 100_000] {
            let (launches, others) = cost(&mut world, &[even(collective, count)], false, 5);
            assert_eq!(launches, 4 * 5, "{collective:?} of {count}");
            assert!(others <= 3 * 4 * 5, "{collective:?} of {count}: {others} other calls");
        }
    }
    // A group is one launch.
    let group: Vec<_> = Collective::all(root).map(|collective| even(collective, 100)).into();
    let (launches, others) = cost(&mut world, &group, false, 5);
    assert_eq!(launches, 4 * 5, "a group");
    assert!(others <= 3 * 4 * 5, "a group: {others} other calls");
}

/// Calls of ranks of one device are launched together.
pub(crate) fn fused() {
    let mut world = World::of_threads(4);
    assert!(world.here.iter().all(|member| member.comm.device() == Some(0)), "one device");
    let one = [even(Collective::AllReduce, 1000)];
    assert_eq!(cost(&mut world, &one, true, 5).0, 5);
    // Four ranks of seven calls are 28 works; eight calls are more than the 30 of a launch.
    let calls = |n: usize| vec![even(Collective::AllReduce, 10); n];
    assert_eq!(cost(&mut world, &calls(7), true, 5).0, 5);
    assert_eq!(cost(&mut world, &calls(8), true, 5).0, 10);
}

/// Calls work with any current context, or none, and leave it unchanged.
pub(crate) fn contexts() {
    let mut world = World::of_threads(4);
    let pieces: Vec<_> = Collective::all(3).map(|collective| even(collective, 500)).into();
    let groups = vec![Group { calls: 5, stream: 0 }, Group { calls: 3, stream: 1 }];
    let round = |way| Round { pieces: pieces.clone(), groups: groups.clone(), way };
    let driver = Driver::find().expect("a driver that works").expect("a driver");
    let ways = [Way::Direct, Way::Apart, Way::Together, Way::Legacy];
    for way in ways {
        // The calls are made by other threads, without a current context, or by this one.
        assert_eq!(current(), None);
        round(way).play(&mut world);
        assert_eq!(current(), None);
    }
    for ordinal in [0, 1] {
        let device = Device::open(&driver, ordinal).expect("a device");
        let guard = device.current().expect("a context");
        for way in ways {
            round(way).play(&mut world);
            assert_eq!(current(), Some(ordinal));
        }
        drop(guard);
    }
    // Each rank's thread has the other device's context.
    world.each(|member| {
        let other = 1 - member.comm.device().expect("a device");
        let device = Device::open(&driver, other).expect("a device");
        let guard = device.current().expect("a context");
        member.comm.barrier().expect("a barrier");
        assert_eq!(current(), Some(other));
        drop(guard);
    });
}

#[test]
fn a_call_is_one_launch_and_three_other_calls() {
    play("steady", &[("CUDA_DEVICE_MAX_CONNECTIONS", "32")]).well();
}

#[test]
fn ranks_of_a_device_are_launched_together() {
    play("fused", &[("SIMCUDA_DEVICES", "1")]).well();
}

#[test]
fn contexts_of_the_caller_are_left_as_they_were() {
    play("contexts", &[("CUDA_DEVICE_MAX_CONNECTIONS", "32"), ("SIMCUDA_DEVICES", "2")]).well();
}
