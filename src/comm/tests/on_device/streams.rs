//! Streams, captures, and the number of driver calls that a call needs.

use std::sync::Arc;

use maypole_algorithms::{Collective, DType, RedOp};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;
use maypole_reduce::Reduction;

use super::support::{Rank, all_ranks, calls, configure, on_devices, simulator};
use crate::call::Call;
use crate::comm::{DeviceCall, StreamCalls, launch_calls};
use crate::config::Config;
use crate::device::CudaStreamHandle;
use crate::transfer::Transfer;

fn sum_of(send: &DeviceBuffer, recv: &DeviceBuffer) -> Call {
    Call {
        collective: Collective::AllReduce,
        send: send.address() as *const u8,
        recv: recv.address() as *mut u8,
        count: recv.bytes() / 4,
        dtype: DType::Int32,
        reduction: RedOp::Sum.into(),
    }
}

fn queue(rank: &mut Rank, call: Call, stream: &CudaStream) {
    let (comm, stream) = (&mut rank.comm, CudaStreamHandle(stream.handle()));
    // SAFETY: the callers' buffers hold the elements, and live until all ranks are done.
    unsafe {
        launch_calls(vec![StreamCalls { comm, calls: vec![DeviceCall::Collective(call)], stream }])
    }
    .expect("to queue");
}

fn words(values: impl Iterator<Item = u32>) -> Vec<u8> {
    values.flat_map(u32::to_le_bytes).collect()
}

#[test]
fn calls_on_several_streams_run_in_their_order() {
    let simulator = simulator();
    configure(300);
    on_devices(&simulator, &[0, 1, 0], &Config::default(), |rank| {
        let n = rank.comm.nranks();
        let streams: Vec<CudaStream> =
            (0..3).map(|_| CudaStream::new(&rank.device).expect("a stream")).collect();
        let one = rank.put(&words((0..500).map(|_| 1)));
        let results: Vec<Arc<DeviceBuffer>> = (0..30).map(|_| rank.put(&[0; 2000])).collect();
        for (i, result) in results.iter().enumerate() {
            queue(rank, sum_of(&one, result), &streams[i * i % 3]);
        }
        for stream in &streams {
            stream.synchronize().expect("to end");
        }
        for result in &results {
            assert!(rank.get(result) == words((0..500).map(|_| n)));
        }
    });
}

#[test]
fn a_call_with_a_plan_needs_four_calls_of_the_driver() {
    let simulator = simulator();
    // A single rank, with a factor, so that the call needs the kernel.
    on_devices(&simulator, &[0], &Config::default(), |rank| {
        let floats = |factor: u16| -> Vec<u8> {
            (0..100u16).flat_map(|i| f32::from(factor * i).to_le_bytes()).collect()
        };
        let (send, recv) = (rank.put(&floats(1)), rank.put(&[0; 400]));
        let scalar = 3f32.to_bits().into();
        let reduction = Reduction { scalar, ..RedOp::PreMulSum.into() };
        let call = Call { reduction, dtype: DType::Float32, ..sum_of(&send, &recv) };
        let stream = CudaStream::new(&rank.device).expect("a stream");
        queue(rank, call, &stream);
        stream.synchronize().expect("to end");
        // As in the thread of a user.
        let device = rank.device.clone();
        let _current = device.current().expect("a context");
        let calls = calls(|| queue(rank, call, &stream));
        let known =
            ["cuCtxGetCurrent", "cuStreamGetCaptureInfo", "cuStreamGetId", "cuLaunchKernelEx"];
        // The service thread may query the device meanwhile.
        let mine = |name: &&str| calls.iter().any(|(called, _)| called == name);
        assert!(known.iter().all(mine), "{calls:?}");
        let looks = ["cuThreadExchangeStreamCaptureMode", "cuCtxGetCurrent", "cuCtxPushCurrent_v2"];
        let kernels = ["kernel", "kernel-in-remote-domain"];
        let looks = [&looks[..], &["cuStreamQuery", "cuCtxPopCurrent_v2"], &kernels].concat();
        let other =
            calls.iter().filter(|(name, _)| !known.contains(&&**name) && !looks.contains(&&**name));
        assert_eq!(other.collect::<Vec<_>>(), Vec::<&(String, u64)>::new());
        stream.synchronize().expect("to end");
        assert!(rank.get(&recv) == floats(3));
    });
}

#[test]
fn captured_calls_are_replayed_and_new_plans_keep_the_capture_valid() {
    let simulator = simulator();
    configure(100);
    on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        let me = rank.comm.rank();
        let data = rank.put(&words((0..700).map(|_| 1)));
        let other = rank.put(&words((0..300).map(|i| i + me)));
        let stream = CudaStream::new(&rank.device).expect("a stream");
        // One call with a plan, and one without.
        queue(rank, sum_of(&data, &data), &stream);
        stream.begin_capture().expect("to capture");
        queue(rank, sum_of(&data, &data), &stream);
        queue(rank, sum_of(&other, &other), &stream);
        let graph = stream.end_capture().expect("a whole capture");
        for _ in 0..3 {
            // SAFETY: the buffers and the communicator live until all ranks are done.
            unsafe { graph.launch(&stream) }.expect("to replay");
        }
        stream.synchronize().expect("to end");
        assert!(rank.get(&data) == words((0..700).map(|_| 16)));
        assert!(rank.get(&other) == words((0..300).map(|i| 4 * (2 * i + 1))));
        // After the graph as before it.
        queue(rank, sum_of(&other, &other), &stream);
        stream.synchronize().expect("to end");
        assert!(rank.get(&other) == words((0..300).map(|i| 8 * (2 * i + 1))));
    });
}

#[test]
fn one_thread_queues_for_all_ranks_at_once_on_one_stream_of_each_device() {
    let simulator = simulator();
    for devices in [&[0, 0, 0][..], &[0, 1, 0, 1]] {
        let mut ranks = all_ranks(&simulator, devices, &Config::default());
        let n = ranks.len() as u32;
        let buffers: Vec<_> = ranks
            .iter_mut()
            .map(|rank| (rank.put(&words((0..900).map(|_| 1))), rank.put(&[0; 3600])))
            .collect();
        // More works than one launch takes, and copies between them.
        let parts = ranks.iter_mut().zip(&buffers).map(|(rank, (one, sum))| {
            let own = [
                Transfer::Send {
                    data: one.address() as *const u8,
                    bytes: 4,
                    peer: rank.comm.rank(),
                },
                Transfer::Receive {
                    data: sum.address() as *mut u8,
                    bytes: 4,
                    peer: rank.comm.rank(),
                },
            ];
            let own: &'static [Transfer] = Box::leak(Box::new(own));
            let again = DeviceCall::Collective(sum_of(one, sum));
            let mut calls = vec![again; 25];
            calls.insert(13, DeviceCall::Transfers(own));
            // All ranks of a device use one stream: if one launch were behind the other, both would
            // wait without end.
            StreamCalls {
                comm: &mut rank.comm,
                calls,
                stream: CudaStreamHandle(std::ptr::null_mut()),
            }
        });
        // SAFETY: the buffers hold the elements, and live until the ranks are done.
        unsafe { launch_calls(parts.collect()) }.expect("to queue");
        for (rank, (_, sum)) in ranks.iter().zip(&buffers) {
            // SAFETY: null is the legacy default stream.
            let default = unsafe { CudaStream::foreign(&rank.device, std::ptr::null_mut()) };
            default.synchronize().expect("to end");
            assert!(rank.get(sum) == words((0..900).map(|_| n)));
        }
    }
}
