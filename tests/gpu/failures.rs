//! Tests with a driver that fails in any of its functions: the ranks get errors or right results,
//! and nothing hangs or crashes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use maypole::device::CudaStreamHandle;
use maypole::{Call, Collective, Communicator, DType, RedOp, Transfer, UniqueId};
use maypole::{DeviceCall, StreamCalls, launch_calls};
use maypole_cuda::driver::{Device, Driver};
use maypole_cuda::memory::DeviceBuffer;
use maypole_cuda::stream::CudaStream;

use crate::simulator::{calls_so_far, folder, play_for};

/// Elements of a call: more than one message.
const COUNT: usize = 40_000;
const RANKS: u32 = 2;

/// A scene takes a fraction of a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// What a rank does: calls on two streams, transfers and a barrier. All errors are treated alike.
fn live(id: &UniqueId, rank: u32) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut comm = Communicator::builder(id)
        .rank(rank, RANKS)
        .device(rank as i32 / 2)
        .build()
        .map_err(|error| format!("init: {error}"))?;
    let abort = comm.abort_handle();
    let lived = (|| {
        let driver = Driver::find().map_err(|e| text(&e))?.ok_or("no driver")?;
        let device = Device::open(&driver, rank as i32 / 2).map_err(|e| text(&e))?;
        let streams = [
            CudaStream::new(&device).map_err(|e| text(&e))?,
            CudaStream::new(&device).map_err(|e| text(&e))?,
        ];
        let buffer = DeviceBuffer::new(&device, 4 * COUNT * 3).map_err(|e| text(&e))?;
        // It must outlive the communicator's work even if that fails.
        let buffer = std::mem::ManuallyDrop::new(Arc::new(buffer));
        let sent: Vec<u8> = (0..COUNT as u32).flat_map(|i| (i * 3 + rank).to_le_bytes()).collect();
        streams[0].write(&buffer, &sent).map_err(|e| text(&e))?;
        streams[0].synchronize().map_err(|e| text(&e))?;
        let at = |block: usize| buffer.address() + (block * 4 * COUNT) as u64;
        let sum = Call {
            collective: Collective::AllReduce,
            send: at(0) as *const u8,
            recv: at(1) as *mut u8,
            count: COUNT,
            dtype: DType::Int32,
            reduction: RedOp::Sum.into(),
        };
        let peer = 1 - rank;
        let transfers = [
            Transfer::Send { data: at(1) as *const u8, bytes: 4 * COUNT, peer },
            Transfer::Receive { data: at(2) as *mut u8, bytes: 4 * COUNT, peer },
        ];
        let rounds = [
            (vec![DeviceCall::Collective(sum)], 0),
            (vec![DeviceCall::Barrier, DeviceCall::Transfers(&transfers)], 1),
            (vec![DeviceCall::Collective(Call { count: 10, ..sum })], 0),
        ];
        for (calls, stream) in rounds {
            let stream = CudaStreamHandle(streams[stream].handle());
            let part = StreamCalls { comm: &mut comm, calls, stream };
            // SAFETY: the buffer holds three blocks, and is never freed.
            unsafe { launch_calls(vec![part]) }.map_err(|e| text(&e))?;
        }
        for stream in &streams {
            stream.synchronize().map_err(|e| text(&e))?;
        }
        comm.barrier().map_err(|e| text(&e))?;
        if let Some(error) = comm.async_error() {
            return Err(text(&error));
        }
        let got = streams[0].read(&buffer, buffer.bytes()).map_err(|e| text(&e))?;
        let sums: Vec<u8> = (0..COUNT as u32).flat_map(|i| (i * 6 + 1).to_le_bytes()).collect();
        assert!(got[4 * COUNT..8 * COUNT] == sums, "rank {rank}: wrong sums without an error");
        assert!(got[8 * COUNT..] == sums, "rank {rank}: wrong transfers without an error");
        Ok(())
    })();
    if lived.is_err() {
        abort.abort();
    }
    drop(comm);
    lived
}

/// Prints the result of each rank, and then the calls of the driver.
pub(crate) fn scene() {
    let id = UniqueId::create().expect("a unique id");
    let ranks: Vec<_> =
        (0..RANKS).map(|rank| std::thread::spawn(move || live(&id, rank))).collect();
    for rank in ranks {
        match rank.join().expect("no rank panics") {
            Ok(()) => println!("say:right"),
            Err(error) => println!("say:error: {}", error.replace('\n', " ")),
        }
    }
    if maypole::device::count().is_ok_and(|count| count > 0) {
        calls_so_far().iter().for_each(|(name, count)| println!("calls:{name} {count}"));
    }
}

/// The results that the ranks printed.
pub(crate) fn said(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_once("say:").map(|(_, said)| said.to_owned());
    text.lines().filter_map(words).collect()
}

fn fail_each(points: impl Fn(u64) -> Vec<u64>) {
    let all = play_for(PATIENCE, folder(), "failing", &[]).well();
    assert_eq!(said(&all), ["right", "right"], "{all}");
    let called = all.lines().filter_map(|line| line.strip_prefix("calls:")?.split_once(' '));
    let called: BTreeMap<String, u64> =
        called.map(|(name, n)| (name.to_owned(), n.parse().expect("a number"))).collect();
    assert!(called.len() > 20, "{called:?}");
    let mut errors = 0;
    for (name, count) in &called {
        for point in points(*count) {
            // CUDA_ERROR_UNKNOWN, which no code handles specially.
            let order = format!("{name}:{point}:999");
            let ending = play_for(PATIENCE, folder(), "failing", &[("SIMCUDA_FAIL", &order)]);
            assert!(!ending.hung(), "{order} of {count} hangs:\n{}", ending.said);
            assert!(ending.status.success(), "{order}: {}\n{}", ending.status, ending.said);
            let said = said(&ending.said);
            assert_eq!(said.len(), RANKS as usize, "{order}:\n{}", ending.said);
            errors += said.iter().filter(|said| said.starts_with("error")).count();
        }
    }
    assert!(errors > called.len(), "{errors} errors of {} functions", called.len());
}

#[test]
fn each_function_of_the_driver_may_fail() {
    fail_each(|count| if count > 1 { vec![1, 1 + count / 2] } else { vec![1] });
}

#[test]
#[ignore = "the full matrix"]
fn each_call_of_the_driver_may_fail() {
    fail_each(|count| (1..=count).collect());
}
