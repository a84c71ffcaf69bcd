//! Benchmark of the reduction kernels: bytes of output per second, by element type, instruction
//! set, numbers of inputs and outputs, and size.
//!
//! `cargo bench -p maypole-bench --bench reduce -- 'float sum/Avx512/2 to 1'`
//!
//! Operands of 64 KiB stay in the second-level cache, operands of 1 MiB in the third, and operands
//! of 64 MiB in neither.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use maypole::internal::reduce::{FoldKernel, FoldOperands, Isa};
use maypole_algorithms::{DType, RedOp};

/// Operand sizes in bytes.
const SIZES: [(usize, &str); 3] = [(64 << 10, "64 KiB"), (1 << 20, "1 MiB"), (64 << 20, "64 MiB")];

/// The number of inputs, the number of outputs, and a mask of the non-temporal outputs.
const OPERAND_COUNTS: [(usize, usize, u8); 9] = [
    (1, 1, 0),
    (1, 1, 0b1),
    (2, 1, 0),
    (2, 1, 0b1),
    (2, 2, 0),
    (2, 2, 0b10),
    (4, 1, 0),
    (8, 1, 0),
    (8, 1, 0b1),
];

const TYPES: [DType; 7] = [
    DType::Float32,
    DType::Bfloat16,
    DType::Float16,
    DType::Int8,
    DType::Float64,
    DType::Float8E4M3,
    DType::Float8E5M2,
];

const OPERATIONS: [RedOp; 4] = [RedOp::Sum, RedOp::Avg, RedOp::Max, RedOp::Min];

fn reduce(criterion: &mut Criterion) {
    let largest = SIZES[SIZES.len() - 1].0;
    let sources: Vec<Vec<u8>> = (0..8).map(|_| numbers(largest)).collect();
    let mut targets: Vec<Vec<u8>> = (0..2).map(|_| numbers(largest)).collect();
    let inputs: Vec<*const u8> = sources.iter().map(|s| s.as_ptr()).collect();
    let outputs: Vec<*mut u8> = targets.iter_mut().map(|t| t.as_mut_ptr()).collect();
    for dtype in TYPES {
        for op in OPERATIONS {
            for isa in Isa::available() {
                let kernel = FoldKernel::select(dtype, op.into(), 8, isa);
                let mut group = criterion.benchmark_group(format!("{dtype} {op}/{isa:?}"));
                group.warm_up_time(Duration::from_millis(50));
                group.measurement_time(Duration::from_millis(300));
                group.sample_size(10);
                for (fan_in, fan_out, non_temporal) in OPERAND_COUNTS {
                    for (bytes, size) in SIZES {
                        let operands = FoldOperands {
                            inputs: &inputs[..fan_in],
                            own: 1,
                            outputs: &outputs[..fan_out],
                            non_temporal,
                            count: bytes / dtype.size(),
                            finish: true,
                        };
                        let kind = if non_temporal == 0 { "" } else { " non-temporal" };
                        group.throughput(Throughput::Bytes(bytes as u64));
                        group.bench_function(format!("{fan_in} to {fan_out}{kind}/{size}"), |b| {
                            // SAFETY: each operand is a separate vector of at least `bytes` bytes.
                            b.iter(|| unsafe { kernel.run(black_box(&operands)) });
                        });
                    }
                }
            }
        }
    }
}

/// Bytes that are normal numbers of moderate size in every type.
fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|i| 0x30 + (i * 7 % 13) as u8).collect()
}

criterion_group!(benches, reduce);
criterion_main!(benches);
