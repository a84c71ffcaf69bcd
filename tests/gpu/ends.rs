//! Tests of abnormal ends: an abort by another thread while kernels wait, and a rank that is
//! killed.

use std::sync::Barrier;

use maypole::device::CudaStreamHandle;
use maypole::{Call, Collective, DType, RedOp};
use maypole::{DeviceCall, StreamCalls, launch_calls};

use crate::ranks::Job;
use crate::simulator::{folder, play};
use crate::world::{Member, World};

fn sum(member: &Member, count: usize) -> Call {
    let base = member.arena.address();
    Call {
        collective: Collective::AllReduce,
        send: base as *const u8,
        recv: (base + (4 << 20)) as *mut u8,
        count,
        dtype: DType::Int32,
        reduction: RedOp::Sum.into(),
    }
}

/// All ranks but the first wait on their devices; the first aborts that from its own thread, by the
/// handle of another rank.
pub(crate) fn abort(ranks: usize) {
    let mut world = World::of_threads(ranks);
    world.each(|member| member.comm.barrier().expect("a barrier"));
    let handle = world.here[1].comm.abort_handle();
    let queued = Barrier::new(ranks);
    world.each(|member| {
        if member.rank() == 0 {
            queued.wait();
            handle.abort();
        } else {
            let call = sum(member, 100_000);
            let stream = CudaStreamHandle(member.streams[0].handle());
            // More messages than the slots hold, on two streams.
            for stream in [stream, CudaStreamHandle(member.streams[1].handle())] {
                let calls = vec![DeviceCall::Collective(call); 3];
                let part = StreamCalls { comm: &mut member.comm, calls, stream };
                // SAFETY: the places lie within the arena, which outlives the calls.
                unsafe { launch_calls(vec![part]) }.expect("to queue");
            }
            queued.wait();
        }
        for stream in &member.streams {
            stream.synchronize().expect("the device itself is well");
        }
        let call = sum(member, 1);
        // SAFETY: the places lie within the arena.
        let later = unsafe { member.comm.run(&call) };
        assert!(later.is_err(), "rank {} goes on", member.rank());
        assert!(member.comm.async_error().is_some(), "rank {}", member.rank());
        // The other communicator and the device still work.
        member.host.barrier().expect("a barrier");
    });
    // A new communicator on the same devices works.
    drop(world);
    World::of_threads(ranks).each(|member| member.comm.barrier().expect("a barrier"));
}

/// A rank in a process of its own: makes calls until one fails, and prints the error.
pub(crate) fn forever(world: &mut World) {
    world.each(|member| {
        member.comm.barrier().expect("a barrier");
        println!("say:started");
        let mut queue = |count: usize| {
            let calls = vec![DeviceCall::Collective(sum(member, count))];
            let stream = CudaStreamHandle(member.streams[0].handle());
            let part = StreamCalls { comm: &mut member.comm, calls, stream };
            // SAFETY: the places lie within the arena, which outlives the calls.
            unsafe { launch_calls(vec![part]) }?;
            member.streams[0].synchronize()?;
            member.comm.async_error().map_or(Ok(()), Err)
        };
        loop {
            if let Err(error) = [1, 100_000].into_iter().try_for_each(&mut queue) {
                println!("say:{error}");
                return;
            }
        }
    });
}

/// More ranks on a device than a launch can hold: on separate streams they work, on one stream they
/// are refused.
pub(crate) fn crowd(ranks: usize) {
    let mut world = World::of_threads(ranks);
    world.each(|member| member.comm.barrier().expect("a barrier"));
    for legacy in [false, true] {
        let parts = world.here.iter_mut().map(|member| {
            let calls = vec![DeviceCall::Collective(sum(member, 10))];
            let own = if legacy { std::ptr::null_mut() } else { member.streams[0].handle() };
            StreamCalls { comm: &mut member.comm, calls, stream: CudaStreamHandle(own) }
        });
        // SAFETY: the places lie within the arenas, which outlive the calls.
        let queued = unsafe { launch_calls(parts.collect()) };
        if legacy {
            let error = queued.expect_err("without the abort they would never end").to_string();
            assert!(error.contains("use several streams"), "{error}");
        } else {
            queued.expect("to queue");
            world.each(|member| member.streams[0].synchronize().expect("to end"));
        }
    }
}

#[test]
fn more_ranks_than_a_launch_holds_need_streams_of_their_own() {
    let settings = [
        ("CUDA_DEVICE_MAX_CONNECTIONS", "32"),
        ("SIMCUDA_DEVICES", "1"),
        ("SIMCUDA_FILL", "0"),
        ("MAYPOLE_GPU_SLOT_BYTES", "64"),
        ("MAYPOLE_GPU_SLOT_DEPTH", "1"),
    ];
    play("crowd 31", &settings).well();
}

#[test]
fn an_abort_by_another_thread_ends_kernels_that_wait() {
    play("abort 3", &[("CUDA_DEVICE_MAX_CONNECTIONS", "32")]).well();
}

#[test]
fn a_rank_that_is_killed_is_an_error_on_all_others() {
    for devices in ["1", "2"] {
        let settings = [("LD_LIBRARY_PATH", folder()), ("SIMCUDA_DEVICES", devices)];
        let mut job = Job::start("rank", 3, "forever", &settings);
        job.all_say("started");
        job.signal(1, libc::SIGKILL);
        for rank in [0, 2] {
            let said = job.hear(rank);
            assert!(said.contains("rank 1"), "rank {rank} says: {said:?}");
            job.ends_well(rank);
        }
    }
}
