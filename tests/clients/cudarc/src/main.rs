//! The client `cudarc::nccl`: 4 processes, each of which runs this program again.
//!
//! On host memory it uses the layers `sys` and `result` with addresses of vectors; on devices, if
//! MAYPOLE_DEVICE is cuda, the safe layer.

mod device;

use std::ffi::{c_char, c_int, c_void};
use std::fmt::Debug;
use std::io::{BufRead, BufReader};
use std::mem::MaybeUninit;
use std::process::{Command, Stdio};

use cudarc::nccl::result;
use cudarc::nccl::safe::Id;
use cudarc::nccl::sys::{self, ncclDataType_t as Type, ncclRedOp_t as Op};

const N: usize = 4;
const COUNT: usize = 1003;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.as_slice() {
        [_, rank, id] => {
            let bytes: Vec<c_char> = (0..128)
                .map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap() as c_char)
                .collect();
            let (rank, id) = (rank.parse().unwrap(), bytes.try_into().unwrap());
            match on_devices() {
                true => device::one_rank(rank, Id::uninit(id)),
                false => one_rank(rank, sys::ncclUniqueId { internal: id }),
            }
        }
        _ => start(&arguments[0]),
    }
    only_our_library_is_loaded();
}

fn on_devices() -> bool {
    std::env::var("MAYPOLE_DEVICE").is_ok_and(|kind| kind == "cuda")
}

/// Creates the id by the safe layer, and starts the processes.
fn start(program: &str) {
    assert_eq!(result::get_nccl_version().unwrap(), 23203);
    let id = Id::new().unwrap();
    let hex: String = id.internal().iter().map(|byte| format!("{:02x}", *byte as u8)).collect();
    let start = |rank: usize| {
        let mut command = Command::new(program);
        command.args([&rank.to_string(), &hex]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut ranks: Vec<_> = (0..N).map(start).collect();
    for rank in &mut ranks {
        let mut line = String::new();
        BufReader::new(rank.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }
    for mut rank in ranks {
        assert!(rank.wait().unwrap().success());
    }
    let layer = if on_devices() { "safe layer" } else { "results" };
    println!("{N} processes, {layer}: 5 collectives, send and receive");
}

fn expect_equal<T: PartialEq + Debug>(found: &[T], expected: impl Iterator<Item = T>, what: &str) {
    assert!(found.iter().eq(expected.collect::<Vec<_>>().iter()), "{what}: {found:?}");
}

/// An element of the input of a rank.
fn value(rank: usize, index: usize) -> f64 {
    (1000 * rank + index) as f64
}

/// An element of the sum of all ranks.
fn total(index: usize) -> f64 {
    (0..N).map(|rank| value(rank, index)).sum()
}

fn one_rank(rank: usize, id: sys::ncclUniqueId) {
    let none = std::ptr::null_mut();
    // SAFETY: all addresses are of vectors that are at least as long as the calls assume and live
    // until these have returned.
    unsafe {
        let mut comm = MaybeUninit::uninit();
        result::comm_init_rank(comm.as_mut_ptr(), N as c_int, id, rank as c_int).unwrap();
        let comm = comm.assume_init();
        assert_eq!(result::comm_count(comm).unwrap() as usize, N);
        assert_eq!(result::comm_user_rank(comm).unwrap() as usize, rank);

        let mine: Vec<f64> = (0..COUNT * N).map(|i| value(rank, i)).collect();
        let send: *const c_void = mine.as_ptr().cast();
        let mut out = vec![0.0f64; COUNT * N];
        let recv: *mut c_void = out.as_mut_ptr().cast();

        result::all_reduce(send, recv, COUNT, Type::ncclFloat64, Op::ncclSum, comm, none).unwrap();
        expect_equal(&out[..COUNT], (0..COUNT).map(total), "all-reduce");
        result::reduce_scatter(send, recv, COUNT, Type::ncclFloat64, Op::ncclSum, comm, none)
            .unwrap();
        expect_equal(&out[..COUNT], (0..COUNT).map(|i| total(COUNT * rank + i)), "reduce-scatter");
        result::all_gather(send, recv, COUNT, Type::ncclFloat64, comm, none).unwrap();
        expect_equal(&out, (0..COUNT * N).map(|i| value(i / COUNT, i % COUNT)), "all-gather");
        result::broadcast(send, recv, COUNT, Type::ncclFloat64, 2, comm, none).unwrap();
        expect_equal(&out[..COUNT], (0..COUNT).map(|i| value(2, i)), "broadcast");
        out.fill(-1.0);
        result::reduce(send, recv, COUNT, Type::ncclFloat64, Op::ncclMax, 1, comm, none).unwrap();
        let largest = |i| if rank == 1 { value(N - 1, i) } else { -1.0 };
        expect_equal(&out[..COUNT], (0..COUNT).map(largest), "reduce");

        let (right, left) = ((rank + 1) % N, (rank + N - 1) % N);
        result::group_start().unwrap();
        result::send(send, COUNT, Type::ncclFloat64, right as c_int, comm, none).unwrap();
        result::recv(recv, COUNT, Type::ncclFloat64, left as c_int, comm, none).unwrap();
        result::group_end().unwrap();
        expect_equal(&out[..COUNT], (0..COUNT).map(|i| value(left, i)), "send and receive");

        result::comm_finalize(comm).unwrap();
        result::comm_destroy(comm).unwrap();
    }
    println!("done");
}

/// Fails unless our library and no other libnccl is mapped into this process.
fn only_our_library_is_loaded() {
    let ours = std::env::var("MAYPOLE_CLIENTS_LIBRARY").unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let files: Vec<&str> =
        maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
    let mut libraries = files.iter().filter(|file| file.contains("/libnccl")).peekable();
    assert!(libraries.peek().is_some(), "no libnccl is mapped");
    assert!(libraries.all(|file| *file == ours), "{files:?}");
}
