//! cudarc's safe layer on devices: contexts, streams and memory by its `driver` module, collectives by its `Comm`, whose end is an abort.

use std::io::Read;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStreamHandle, DevicePtr};
use cudarc::nccl::safe::{Comm, Id, ReduceOp, group_end, group_start};

use crate::{COUNT, N, same, total, value};

/// Rank `rank` on the device of its number, counted round; on a stream of its own.
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

    held(&context, &stream, || {
        comm.all_reduce(&short, &mut out, &ReduceOp::Sum).unwrap();
    });
    same(&read(&out), (0..COUNT).map(total), "all-reduce");
    comm.reduce_scatter(&send, &mut out, &ReduceOp::Sum).unwrap();
    same(&read(&out), (0..COUNT).map(|i| total(COUNT * rank + i)), "reduce-scatter");
    comm.all_gather(&short, &mut all).unwrap();
    same(&read(&all), (0..COUNT * N).map(|i| value(i / COUNT, i % COUNT)), "all-gather");
    comm.broadcast(Some(&short), &mut out, 2).unwrap();
    same(&read(&out), (0..COUNT).map(|i| value(2, i)), "broadcast");
    comm.all_reduce_in_place(&mut out, &ReduceOp::Avg).unwrap();
    same(&read(&out), (0..COUNT).map(|i| value(2, i)), "average of the same");

    let (right, left) = ((rank + 1) % N, (rank + N - 1) % N);
    group_start().unwrap();
    comm.send(&short, right as i32).unwrap();
    comm.recv(&mut out, left as i32).unwrap();
    group_end().unwrap();
    same(&read(&out), (0..COUNT).map(|i| value(left, i)), "send and receive");

    // An abort ends the calls of all ranks: so each waits here until all are done.
    println!("done");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// What `call` queues while its stream is held: it returns, and nothing is done before the stream is let go.
fn held(context: &Arc<CudaContext>, stream: &Arc<CudaStreamHandle>, call: impl FnOnce()) {
    let other = context.new_stream().unwrap();
    let mut gate = other.alloc_zeros::<u64>(1).unwrap();
    other.synchronize().unwrap();
    let address = gate.device_ptr(&other).0;
    // SAFETY: the gate is eight bytes of device memory, which stay until the stream has passed it.
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
