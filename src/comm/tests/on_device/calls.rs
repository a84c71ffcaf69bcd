//! Calls on devices give the same bits as on the host, for every collective and type.

use maypole_algorithms::{Collective, DType, RedOp};
use maypole_reduce::Reduction;

use super::super::Random;
use super::super::vector;
use super::support::{configure, on_devices, random_call, simulator, threads_of_block};
use crate::call::Call;
use crate::comm::{
    DeviceCall, DeviceCollective, DeviceSlice, DeviceSliceMut, StreamCalls, launch_calls,
};
use crate::config::Config;
use crate::device::CudaStreamHandle;
use crate::error::Error;
use crate::transfer::Transfer;

/// Ranks on one device, and on two devices alternately.
const WORLDS: [&[i32]; 5] = [&[0], &[0, 0], &[0, 1], &[0, 1, 0], &[0, 0, 1, 1, 0]];

#[test]
fn random_calls_have_the_bits_of_the_proved_trees() {
    let simulator = simulator();
    configure(200);
    for devices in WORLDS {
        let config = Config { gpu_slot_bytes: Some(4096), ..Config::default() };
        on_devices(&simulator, devices, &config, |rank| {
            let comm = &mut rank.comm;
            let mut random = Random(5);
            for round in 0..60 {
                random_call(comm, &mut random, round);
            }
        });
    }
}

/// Blocks of several warps, and of a number of threads that is no power of two.
#[test]
fn random_calls_by_blocks_of_several_warps() {
    let simulator = simulator();
    for (threads, rounds) in [(64, 24), (160, 12), (512, 3)] {
        threads_of_block(threads);
        let config = Config { gpu_slot_bytes: Some(4096), ..Config::default() };
        on_devices(&simulator, &[0, 1, 0], &config, move |rank| {
            let comm = &mut rank.comm;
            let gpu = comm.gpu().expect("a device");
            assert_eq!(gpu.threads, threads as u32);
            let mut random = Random(threads as u64);
            for round in 0..rounds {
                random_call(comm, &mut random, round);
            }
        });
    }
    threads_of_block(0);
}

#[test]
fn vector_collectives_and_groups_of_transfers() {
    let simulator = simulator();
    for devices in WORLDS {
        let config = Config { gpu_slot_bytes: Some(256), ..Config::default() };
        on_devices(&simulator, devices, &config, |rank| {
            (0..6).for_each(|seed| vector::round(&mut rank.comm, seed));
        });
    }
}

#[test]
fn device_memory_on_a_stream_and_barriers() {
    let simulator = simulator();
    on_devices(&simulator, &[0, 1, 1], &Config::default(), |rank| {
        let (me, n) = (rank.comm.rank(), rank.comm.nranks());
        let count = 3000;
        let input: Vec<u8> = (0..count).flat_map(|i| (i * 7 + me).to_le_bytes()).collect();
        let (send, recv) = (rank.put(&input), rank.put(&vec![0; 4 * count as usize]));
        let call = Call {
            collective: Collective::AllReduce,
            send: send.address() as *const u8,
            recv: recv.address() as *mut u8,
            count: count as usize,
            dtype: DType::Int32,
            reduction: RedOp::Sum.into(),
        };
        let again = Call { send: call.recv, ..call };
        let stream = CudaStreamHandle(rank.stream.handle());
        let comm = &mut rank.comm;
        let calls =
            vec![DeviceCall::Collective(call), DeviceCall::Barrier, DeviceCall::Collective(again)];
        // SAFETY: both buffers hold the elements, and live until all ranks are done.
        unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }.expect("to queue");
        let sum = (0..count).map(|i| n * (n * i * 7 + n * (n - 1) / 2));
        let expected: Vec<u8> = sum.flat_map(u32::to_le_bytes).collect();
        assert!(rank.get(&recv) == expected, "rank {me}");
        rank.comm.barrier().expect("a barrier");
    });
}

#[test]
fn collectives_on_device_slices_check_lengths_and_devices() {
    let simulator = simulator();
    on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        let (me, ordinal) = (rank.comm.rank(), rank.device.ordinal());
        let send: Vec<u8> = [1, 2, 3, me + 4].into_iter().flat_map(u32::to_le_bytes).collect();
        let (send, recv) = (rank.put(&send), rank.put(&[0; 16]));
        let (from, to) = (send.address() as *const u32, recv.address() as *mut u32);
        // SAFETY: the buffer holds four elements, lives until all ranks are done, and is only read.
        let send = unsafe { DeviceSlice::from_raw_parts(ordinal, from, 4) };
        let slice = |len| {
            // SAFETY: as above, and one call at a time uses the buffer.
            unsafe { DeviceSliceMut::from_raw_parts(ordinal, to, len) }
        };
        let sum = DeviceCollective::all_reduce(send, slice(4), RedOp::Sum);
        rank.comm.run_on_device(&sum).expect("an all-reduce");
        let words = |bytes: Vec<u8>| -> Vec<u32> {
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
        };
        assert_eq!(words(rank.get(&recv)), [2, 4, 6, 9]);
        let gathered = DeviceCollective::all_gather(send.slice(2..4), slice(4));
        let stream = CudaStreamHandle(rank.stream.handle());
        // SAFETY: the stream is alive, and nobody uses the memory before it is read below.
        unsafe { rank.comm.queue_on_stream(gathered, stream) }.expect("an all-gather");
        assert_eq!(words(rank.get(&recv)), [3, 4, 3, 5]);
        let unequal = DeviceCollective::all_reduce(send, slice(3), RedOp::Sum);
        let unequal = rank.comm.run_on_device(&unequal).expect_err("lengths differ");
        assert!(matches!(unequal, Error::InvalidArgument { .. }), "{unequal}");
        // SAFETY: the call is refused before it uses the memory.
        let elsewhere = unsafe { DeviceSlice::from_raw_parts(1 - ordinal, from, 4) };
        let elsewhere = DeviceCollective::all_reduce(elsewhere, slice(4), RedOp::Sum);
        let elsewhere = rank.comm.run_on_device(&elsewhere).expect_err("another device");
        assert!(elsewhere.to_string().contains("in a communicator for device"), "{elsewhere}");
        rank.comm.barrier().expect("the communicator goes on");
    });
}

#[test]
fn a_factor_in_device_memory_is_read_when_the_call_runs() {
    let simulator = simulator();
    on_devices(&simulator, &[0, 1], &Config::default(), |rank| {
        let me = rank.comm.rank();
        let ones: Vec<u8> = [1.0f32; 100].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (send, recv) = (rank.put(&ones), rank.put(&[0; 400]));
        let factor = rank.put(&0f32.to_le_bytes());
        let call = Call {
            collective: Collective::AllReduce,
            send: send.address() as *const u8,
            recv: recv.address() as *mut u8,
            count: 100,
            dtype: DType::Float32,
            reduction: Reduction {
                scalar: factor.address(),
                resident: true,
                ..RedOp::PreMulSum.into()
            },
        };
        let stream = CudaStreamHandle(rank.stream.handle());
        let value = (2.0 + me as f32).to_le_bytes();
        rank.stream.write(&factor, &value).expect("to write");
        let (comm, calls) = (&mut rank.comm, vec![DeviceCall::Collective(call)]);
        // SAFETY: the buffers hold the elements, and live until all ranks are done.
        unsafe { launch_calls(vec![StreamCalls { comm, calls, stream }]) }.expect("to queue");
        let expected: Vec<u8> = [5.0f32; 100].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert!(rank.get(&recv) == expected);
    });
}

#[test]
fn transfers_to_itself_and_others_reuse_their_programs() {
    let simulator = simulator();
    on_devices(&simulator, &[0, 1, 0], &Config::default(), |rank| {
        let (me, n) = (rank.comm.rank(), rank.comm.nranks());
        let sent = rank.put(&vec![me as u8 + 1; 1000]);
        let received = rank.put(&vec![0; 1000 * n as usize]);
        // More kinds of groups than are kept.
        for round in 0..150usize {
            let bytes = 1 + round * 5;
            let transfers: Vec<Transfer> = (0..n)
                .flat_map(|peer| {
                    let data = (received.address() + u64::from(peer) * 1000) as *mut u8;
                    let send = Transfer::Send { data: sent.address() as *const u8, bytes, peer };
                    [send, Transfer::Receive { data, bytes, peer }]
                })
                .collect();
            let (comm, stream) = (&mut rank.comm, CudaStreamHandle(rank.stream.handle()));
            let part = StreamCalls { comm, calls: vec![DeviceCall::Transfers(&transfers)], stream };
            // SAFETY: the buffers hold the bytes, and live until all ranks are done.
            unsafe { launch_calls(vec![part]) }.expect("to queue");
        }
        let got = rank.get(&received);
        for peer in 0..n as usize {
            assert!(got[peer * 1000..][..746].iter().all(|byte| *byte == peer as u8 + 1));
            assert!(got[peer * 1000 + 746..][..254].iter().all(|byte| *byte == 0));
        }
        let memory = rank.comm.memory();
        assert!(memory.device > 0 && memory.device < 200 << 20, "{memory:?}");
    });
}

#[test]
fn calls_for_host_memory_are_refused_and_the_communicator_goes_on() {
    let simulator = simulator();
    let config = Config { check_pointers: true, ..Config::default() };
    on_devices(&simulator, &[0, 1], &config, |rank| {
        let mut memory = [0u32; 4];
        // SAFETY: the array outlives the communicator.
        let window = unsafe { rank.comm.register_window(memory.as_mut_ptr().cast(), 16) };
        assert!(matches!(window, Err(Error::InvalidUsage { .. })), "{window:?}");
        let pageable = rank.comm.all_reduce_in_place(&mut memory, RedOp::Sum);
        assert!(matches!(pageable, Err(Error::InvalidArgument { .. })), "{pageable:?}");
        rank.comm.barrier().expect("a barrier");
        assert_eq!(rank.comm.device(), Some(rank.comm.rank() as i32));
    });
}

#[test]
fn children_stay_on_the_device() {
    let simulator = simulator();
    on_devices(&simulator, &[0, 1, 0, 1], &Config::default(), |rank| {
        let me = rank.comm.rank();
        let part = rank.comm.split(Some(me % 2), 0).expect("a part").expect("in it");
        assert_eq!(part.device(), rank.comm.device());
        let mut part = part;
        part.barrier().expect("a barrier");
        drop(part);
        rank.comm.barrier().expect("a barrier");
        if me != 3 {
            let mut left = rank.comm.shrink(&[3]).expect("the others");
            left.barrier().expect("a barrier");
        }
    });
}
