//! The safe layer of cudarc on devices: contexts, streams and memory by its module `driver`,
//! collectives by its `Comm`, which aborts its communicator when it is dropped.

use std::io::Read;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};
use cudarc::nccl::safe::{Comm, Id, ReduceOp, group_end, group_start};

use crate::{COUNT, N, expect_equal, total, value};

/// Runs one rank, on the device `rank` modulo the number of devices and on its own stream.
pub fn one_rank(rank: usize, id: Id) {
    let devices = CudaContext::device_count().unwrap() as usize;
    let context = CudaContext::new(rank % devices).unwrap();
    let stream = context.new_stream().unwrap();
    let comm = Comm::from_rank(stream.clone(), rank, N, id).unwrap();
    assert_eq!((comm.rank(), comm.world_size(), comm.ordinal()), (rank, N, rank % devices));

    let mine: Vec<f64> = (0..COUNT * N).map(|i| value(rank, i)).collect();
    let send = stream.clone_htod(&mine).unwrap();
    let short = stream.clone_htod(&mine[..COUNT]).unwrap();
    let mut out = stream.alloc_zeros::<f64>(COUNT).unwrap();
    let mut all = stream.alloc_zeros::<f64>(COUNT * N).unwrap();
    let read = |from: &CudaSlice<f64>| stream.clone_dtoh(from).unwrap();

    check_asynchronous(&context, &stream, || {
        comm.all_reduce(&short, &mut out, &ReduceOp::Sum).unwrap();
    });
    expect_equal(&read(&out), (0..COUNT).map(total), "all-reduce");
    comm.reduce_scatter(&send, &mut out, &ReduceOp::Sum).unwrap();
    expect_equal(&read(&out), (0..COUNT).map(|i| total(COUNT * rank + i)), "reduce-scatter");
    comm.all_gather(&short, &mut all).unwrap();
    expect_equal(&read(&all), (0..COUNT * N).map(|i| value(i / COUNT, i % COUNT)), "all-gather");
    comm.broadcast(Some(&short), &mut out, 2).unwrap();
    expect_equal(&read(&out), (0..COUNT).map(|i| value(2, i)), "broadcast");
    comm.all_reduce_in_place(&mut out, &ReduceOp::Avg).unwrap();
    expect_equal(&read(&out), (0..COUNT).map(|i| value(2, i)), "average of equal values");

    let (right, left) = ((rank + 1) % N, (rank + N - 1) % N);
    group_start().unwrap();
    comm.send(&short, right as i32).unwrap();
    comm.recv(&mut out, left as i32).unwrap();
    group_end().unwrap();
    expect_equal(&read(&out), (0..COUNT).map(|i| value(left, i)), "send and receive");

    // An abort ends the calls of all ranks, so each rank waits here until all are done.
    println!("done");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Makes a call while its stream is held: it must return, and do nothing until the stream
/// continues.
fn check_asynchronous(context: &Arc<CudaContext>, stream: &Arc<CudaStream>, call: impl FnOnce()) {
    let other = context.new_stream().unwrap();
    let mut gate = other.alloc_zeros::<u64>(1).unwrap();
    other.synchronize().unwrap();
    let address = gate.device_ptr(&other).0;
    // SAFETY: the gate is eight bytes of device memory, which live until the stream has passed it.
    let waits = unsafe { sys::cuStreamWaitValue64_v2(stream.cu_stream(), address, 1, 0) };
    assert_eq!(waits, CUresult::CUDA_SUCCESS);
    call();
    // SAFETY: the stream is alive.
    let state = unsafe { sys::cuStreamQuery(stream.cu_stream()) };
    assert_eq!(state, CUresult::CUDA_ERROR_NOT_READY);
    other.memcpy_htod(&[1u64], &mut gate).unwrap();
    other.synchronize().unwrap();
    stream.synchronize().unwrap();
}
