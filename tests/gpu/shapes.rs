//! Tests processes and devices in every combination, devices that processes do not see, writes to
//! peers that are lost, and drivers without waits for words in memory.

use maypole::device::CudaStreamHandle;
use maypole::{DeviceCall, StreamCalls, launch_calls};

use crate::driver::without;
use crate::failures::PATIENCE;
use crate::proxy::{APART, same_bits_in};
use crate::simulator::{play, play_for};
use crate::world::World;

/// The processes are separated by semicolons, and their devices by commas.
#[test]
fn every_shape_of_processes_and_devices() {
    for plan in ["0,1;2,3", "0;1;2;3", "0,1,2;3", "0,1,2,3"] {
        same_bits_in("direct", plan, &[("SIMCUDA_DEVICES", "4")]);
    }
}

/// Job systems show each process its own device only. Kernels reach the other device all the same.
#[test]
fn processes_that_see_one_device_each_exchange_directly() {
    let one_each = [("CUDA_VISIBLE_DEVICES@0", "0"), ("CUDA_VISIBLE_DEVICES@1", "1")];
    same_bits_in("direct", "0;0", &one_each);
}

/// The driver says that the devices have peer access, and what they write there is lost.
#[test]
fn writes_to_peers_that_never_arrive_are_noticed() {
    for plan in ["0,1", "0;1", "0,1;0"] {
        same_bits_in("proxied", plan, &[("SIMCUDA_DROP_PEER_WRITES", "1")]);
    }
}

/// A launch returns when the kernel has ended, which needs the proxy.
#[test]
fn launches_that_wait_for_the_kernel_have_the_same_bits() {
    same_bits_in("proxied", "0;1", &[APART, ("CUDA_LAUNCH_BLOCKING", "1")]);
}

/// This thread is two ranks. It queues calls of the first on two streams before those of the
/// second, so that nothing it calls may wait for the first call.
pub(crate) fn one_thread() {
    let mut world = World::of_threads(2);
    world.each(|member| member.comm.barrier().expect("a barrier"));
    for _ in 0..5 {
        for member in &mut world.here {
            for stream in 0..2 {
                let stream = CudaStreamHandle(member.streams[stream].handle());
                let calls = vec![DeviceCall::Barrier];
                let part = StreamCalls { comm: &mut member.comm, calls, stream };
                // SAFETY: a barrier uses no memory of the caller.
                unsafe { launch_calls(vec![part]) }.expect("to queue");
            }
        }
    }
    for member in &world.here {
        member.streams[..2].iter().for_each(|s| s.synchronize().expect("the works finish"));
        assert_eq!(member.comm.async_error(), None);
    }
}

#[test]
fn calls_on_two_streams_do_not_wait_in_the_host() {
    play("one-thread", &[]).well();
    play("one-thread", &[("SIMCUDA_STREAM_VALUES", "0")]).well();
    let older = without("cuStreamWaitValue64_v2");
    play_for(PATIENCE, older.path().to_str().expect("text"), "one-thread", &[]).well();
}
