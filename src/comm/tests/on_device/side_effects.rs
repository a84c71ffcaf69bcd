//! Side effects of the driver: allocations that wait for kernels, contexts that cost memory, and
//! stores between which time passes.

use std::sync::mpsc;
use std::time::Duration;

use maypole_algorithms::{Collective, DType, RedOp};
use maypole_cuda::stream::CudaStream;

use super::support::{
    Rank, all_ranks, allocations_wait, calls, configure, cooperative_grids_take_turns,
    kernels_load_late, on_devices, retained, simulator, stream_of_another_context,
};
use crate::call::Call;
use crate::comm::{DeviceCall, StreamCalls, launch_calls};
use crate::config::Config;
use crate::device::CudaStreamHandle;
use crate::error::Error;

/// Numbers of elements, each of which needs a plan of its own.
const COUNTS: [usize; 7] = [1, 2, 100, 3000, 9000, 40_000, 100_000];

/// One thread makes the calls of ranks on two devices. Each call needs a new plan on both, for
/// which nothing may be allocated after the kernel of the first device was launched.
#[test]
fn one_thread_launches_on_two_devices_while_allocations_wait_for_kernels() {
    let simulator = simulator();
    let mut ranks = all_ranks(&simulator, &[0, 1], &Config::default());
    let data = vec![1u8; 4 * COUNTS[COUNTS.len() - 1]];
    let buffers: Vec<_> = ranks.iter_mut().map(|rank| [rank.put(&data), rank.put(&data)]).collect();
    let waiting = allocations_wait();
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        for count in COUNTS {
            let calls = ranks.iter_mut().zip(&buffers).map(|(rank, [send, recv])| {
                let call = Call {
                    collective: Collective::AllReduce,
                    send: send.address() as *const u8,
                    recv: recv.address() as *mut u8,
                    count,
                    dtype: DType::Uint32,
                    reduction: RedOp::Sum.into(),
                };
                let stream = CudaStreamHandle(rank.stream.handle());
                let calls = vec![DeviceCall::Collective(call)];
                StreamCalls { comm: &mut rank.comm, calls, stream }
            });
            // SAFETY: the buffers hold `count` elements and live until the streams have run.
            unsafe { launch_calls(calls.collect()) }.expect("to queue");
        }
        let results = ranks.iter().zip(&buffers).map(|(rank, [_, recv])| rank.get(recv));
        done.send(results.collect::<Vec<_>>()).expect("the test waits");
    });
    let results = finished.recv_timeout(Duration::from_secs(60)).expect("the calls hang");
    assert!(results.iter().flatten().all(|byte| *byte == 2), "1 + 1 in every byte");
    drop(waiting);
}

/// Ranks as threads, none of which waits for another between calls.
#[test]
fn ranks_in_threads_plan_while_allocations_wait_for_kernels() {
    let simulator = simulator();
    configure(300);
    let waiting = allocations_wait();
    for _ in 0..3 {
        on_devices(&simulator, &[0, 1, 1], &Config::default(), |rank| {
            for count in COUNTS {
                let mut data = vec![rank.comm.rank() + 1; count];
                rank.comm.all_reduce_in_place(&mut data, RedOp::Sum).expect("a sum");
                assert!(data.iter().all(|sum| *sum == 6));
            }
        });
    }
    drop(waiting);
}

#[test]
fn a_communicator_makes_no_context_on_devices_that_it_does_not_use() {
    let simulator = simulator();
    // Threads of earlier tests may still release theirs.
    let before = retained(1);
    on_devices(&simulator, &[0, 0], &Config::default(), move |rank| {
        rank.comm.barrier().expect("a barrier");
        assert!(retained(1) <= before && retained(0) > 0);
    });
}

/// A work on another stream begins as soon as the one before has stored that it has finished. Then
/// everything that it reads has been stored too.
#[test]
fn works_on_alternating_streams_with_time_between_all_stores() {
    let simulator = simulator();
    configure(2000);
    on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        let streams = [(); 2].map(|()| CudaStream::new(&rank.device).expect("a stream"));
        for _ in 0..60 {
            for stream in &streams {
                let Rank { comm, .. } = rank;
                let (calls, stream) =
                    (vec![DeviceCall::Barrier], CudaStreamHandle(stream.handle()));
                // SAFETY: a barrier uses no memory of the caller.
                unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }
                    .expect("to queue");
            }
        }
        streams.iter().for_each(|stream| stream.synchronize().expect("the works finish"));
    });
}

/// Graphs and calls on streams that nothing but the communicator orders.
#[test]
fn replays_of_graphs_are_ordered_with_each_other_and_with_calls() {
    let simulator = simulator();
    configure(300);
    on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        const COUNT: usize = 5000;
        let me = rank.comm.rank();
        let streams = [(); 3].map(|()| CudaStream::new(&rank.device).expect("a stream"));
        let sends: Vec<_> = (0..3u32)
            .map(|i| rank.put(&[(me + 1) << (8 * i); COUNT].map(u32::to_le_bytes).concat()))
            .collect();
        let recvs: Vec<_> = (0..3).map(|_| rank.put(&[0; 4 * COUNT])).collect();
        let mut all_reduce = |i: usize| {
            let call = Call {
                collective: Collective::AllReduce,
                send: sends[i].address() as *const u8,
                recv: recvs[i].address() as *mut u8,
                count: COUNT,
                dtype: DType::Uint32,
                reduction: RedOp::Sum.into(),
            };
            let calls = vec![DeviceCall::Collective(call)];
            let stream = CudaStreamHandle(streams[i].handle());
            let comm = &mut rank.comm;
            // SAFETY: the buffers hold `COUNT` elements and outlive the graphs.
            unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }.expect("to queue");
        };
        let graphs = [0, 1].map(|i| {
            streams[i].begin_capture().expect("to begin");
            all_reduce(i);
            streams[i].end_capture().expect("a graph")
        });
        for _ in 0..40 {
            for i in 0..2 {
                // SAFETY: the buffers outlive the graphs.
                unsafe { graphs[i].launch(&streams[i]) }.expect("to replay");
                all_reduce(2);
            }
        }
        streams.iter().for_each(|stream| stream.synchronize().expect("all works finish"));
        assert_eq!(rank.comm.async_error(), None);
        for (i, recv) in recvs.iter().enumerate() {
            let sums = [3u32 << (8 * i); COUNT].map(u32::to_le_bytes).concat();
            assert!(rank.get(recv) == sums, "buffer {i}");
        }
    });
}

/// Two communicators on the same devices, whose calls the ranks queue in different orders on two
/// streams. Both kernels of a device have to run at the same time.
#[test]
fn kernels_of_two_communicators_overlap() {
    let simulator = simulator();
    let serial = cooperative_grids_take_turns();
    let [mut ones, mut others] =
        [(); 2].map(|()| all_ranks(&simulator, &[0, 1], &Config::default()));
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        for _ in 0..10 {
            for device in 0..2 {
                let mut pair = [&mut ones[device], &mut others[device]];
                pair.rotate_left(device);
                for rank in pair {
                    let stream = CudaStreamHandle(rank.stream.handle());
                    let (comm, calls) = (&mut rank.comm, vec![DeviceCall::Barrier]);
                    let calls = vec![StreamCalls { comm, calls, stream }];
                    // SAFETY: a barrier uses no memory of the caller.
                    unsafe { launch_calls(calls) }.expect("to queue");
                }
            }
        }
        ones.iter().chain(&others).for_each(|r| r.stream.synchronize().expect("they finish"));
        done.send(()).expect("the test waits");
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("the kernels do not overlap");
    drop(serial);
}

/// Queues a barrier of a rank.
fn barrier(rank: &mut Rank, stream: &CudaStream) {
    let stream = CudaStreamHandle(stream.handle());
    let (comm, calls) = (&mut rank.comm, vec![DeviceCall::Barrier]);
    // SAFETY: a barrier uses no memory of the caller.
    unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }.expect("to queue");
}

/// A stream that is destroyed leaves its work running and its handle to the next stream.
#[test]
fn works_on_a_stream_with_the_handle_of_a_destroyed_one_are_ordered() {
    let simulator = simulator();
    let mut ranks = all_ranks(&simulator, &[0, 1], &Config::default());
    let [first, second] = &mut ranks[..] else { panic!("two ranks") };
    for _ in 0..10 {
        let destroyed = CudaStream::new(&first.device).expect("a stream");
        let handle = destroyed.handle();
        barrier(first, &destroyed);
        drop(destroyed);
        let stream = CudaStream::new(&first.device).expect("a stream");
        assert_eq!(stream.handle(), handle);
        barrier(first, &stream);
        let other = CudaStream::new(&second.device).expect("a stream");
        barrier(second, &other);
        barrier(second, &other);
        other.synchronize().expect("the works finish");
        stream.synchronize().expect("the works finish");
        assert_eq!((first.comm.async_error(), second.comm.async_error()), (None, None));
    }
}

/// The first launch of a kernel that was not loaded would wait for the kernel of the other device.
#[test]
fn kernels_are_loaded_before_any_rank_launches() {
    let simulator = simulator();
    let late = kernels_load_late();
    let mut ranks = all_ranks(&simulator, &[0, 1], &Config::default());
    let (done, finished) = mpsc::channel();
    std::thread::spawn(move || {
        let streams = [0, 1].map(|i| CudaStream::new(&ranks[i].device).expect("a stream"));
        for (rank, stream) in ranks.iter_mut().zip(&streams) {
            barrier(rank, stream);
        }
        streams.iter().for_each(|stream| stream.synchronize().expect("the works finish"));
        done.send(()).expect("the test waits");
    });
    finished.recv_timeout(Duration::from_secs(60)).expect("the first launch waits for a kernel");
    drop(late);
}

/// In a domain of their own, kernels that write to other devices do not delay the fences of others.
#[test]
fn kernels_run_in_the_memory_domain_for_writes_to_other_devices() {
    let simulator = simulator();
    let mut ranks = all_ranks(&simulator, &[0, 1], &Config::default());
    let counted = calls(|| {
        for rank in &mut ranks {
            let stream = CudaStream::new(&rank.device).expect("a stream");
            barrier(rank, &stream);
        }
    });
    let count = |name: &str| counted.iter().find(|one| one.0 == name).map_or(0, |one| one.1);
    assert_eq!((count("kernel-in-remote-domain"), count("cuLaunchKernel")), (2, 0));
}

/// The kernels are in the primary context of the device, so they cannot run on streams of others.
#[test]
fn a_stream_of_another_context_is_refused_without_effect() {
    let simulator = simulator();
    let mut ranks = all_ranks(&simulator, &[0, 1], &Config::default());
    let stream = CudaStreamHandle(stream_of_another_context(0));
    let (comm, calls) = (&mut ranks[0].comm, vec![DeviceCall::Barrier]);
    // SAFETY: the stream is never destroyed, and a barrier uses no memory of the caller.
    let refused = unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) };
    let Err(Error::InvalidArgument { what }) = refused else { panic!("{refused:?}") };
    assert!(what.contains("another CUDA context"), "{what}");
    let streams = [0, 1].map(|i| CudaStream::new(&ranks[i].device).expect("a stream"));
    for (rank, stream) in ranks.iter_mut().zip(&streams) {
        barrier(rank, stream);
    }
    streams.iter().for_each(|stream| stream.synchronize().expect("the works finish"));
}
