//! Tests every operation on every element type, with every number of inputs, at odd sizes and
//! alignments. The bits are compared with `support/operation.rs`, which is independent of the
//! kernels. One rank runs alone, without messages or with messages to itself.

use super::support::alone::{Alone, Link};
use super::support::device;
use super::support::operation::{OnRank, Operation};
use super::support::random::mix;
use maypole_algorithms::schedule::StepTable;
use maypole_algorithms::schedule::operand::{input, output, peer, scratch};
use maypole_algorithms::semantics::evaluate_step;
use maypole_algorithms::{Chunk, Collective, DType, Operand, RedOp, Schedule, Step};
use maypole_cuda::encode::{
    ChunkExtent, LinkTransfer, ProgramBinding, TransferEnd, encode, encode_transfers, ports,
};
use maypole_cuda::launch::{ADDRESS, KernelWork, LL, SLOTS, operation};

/// The approximate number of bytes of a chunk: more than one tile, where a tile is more than all
/// threads process in one round of any loop.
const CHUNK: u64 = 4600;
const TILE: u64 = 4160;

/// Steps with 1 to 8 inputs, contributions and others, and 1 to 3 outputs; the last ones finish.
fn fans() -> Vec<Step> {
    let mut steps = vec![];
    for k in 1..=8 {
        // Every second input is a contribution; the others are scratch and output chunks that the
        // step before has written.
        let place = |i: u32| match (i % 2, k) {
            (1, 2..) => scratch(i / 2 % 2),
            _ => input(i),
        };
        let mut outputs = vec![output(k - 1)];
        outputs.extend((k % 2 == 1).then_some(scratch(0)));
        outputs.extend((k % 3 == 1).then_some(scratch(1)));
        let mut step = Step::new((0..k).map(place), outputs);
        step.finish = k % 4 == 0;
        steps.push(step);
    }
    steps
}

/// A schedule of these steps in one lane, with 8 input and 8 output chunks.
fn schedule(steps: Vec<Step>) -> Schedule {
    let table = StepTable(vec![vec![steps], vec![]]);
    Schedule::new("alone", Collective::AllReduce, 2, 8, table).with_scratch(2)
}

/// Chunks of `elements`, `gap` elements apart.
fn extents(elements: u64, gap: u64) -> Vec<ChunkExtent> {
    (0..8).map(|i| ChunkExtent { offset: i * (elements + gap), elements }).collect()
}

/// The receive buffer after `steps`; the result does not depend on tiles.
fn expected(
    steps: &[Step],
    chunks: &[Vec<u64>],
    operation: Operation,
    parameter: u64,
) -> Vec<Vec<u64>> {
    let mut algebra = OnRank { operation, parameter };
    let mut outputs = vec![vec![]; 8];
    let mut scratch = vec![vec![]; 2];
    let mut sent = vec![];
    for step in steps {
        let value = evaluate_step(&mut algebra, step, |operand| match operand {
            Operand::Local(Chunk::Input(i)) => chunks[i as usize].clone(),
            Operand::Local(Chunk::Output(i)) => outputs[i as usize].clone(),
            Operand::Local(Chunk::Scratch(i)) => scratch[i as usize].clone(),
            Operand::Peer { .. } => sent.pop().expect("a message"),
        });
        for operand in &step.outputs {
            match *operand {
                Operand::Local(Chunk::Output(i)) => outputs[i as usize].clone_from(&value),
                Operand::Local(Chunk::Scratch(i)) => scratch[i as usize].clone_from(&value),
                Operand::Local(Chunk::Input(_)) => panic!("inputs are read only"),
                Operand::Peer { .. } => sent.push(value.clone()),
            }
        }
    }
    outputs
}

/// Runs `steps` on chunks of random bits and compares. `askew`: the bytes by which the send and the
/// receive buffer are misaligned.
fn check(
    alone: &mut Alone<'_>,
    steps: &[Step],
    operation: Operation,
    elements: u64,
    gap: u64,
    askew: [u64; 2],
    protocol: u32,
) {
    let size = operation.size() as u64;
    let schedule = schedule(steps.to_vec());
    let extents = extents(elements, gap);
    let tile = (TILE / size) as u32 + 1;
    let (sending, receiving) = ports(&schedule, 0);
    let binding = ProgramBinding {
        inputs: &extents,
        outputs: &extents,
        tile,
        tiles: elements.div_ceil(tile.into()).max(1),
        tag: 77,
        sending: &sending,
        receiving: &receiving,
    };
    let words = encode(&schedule, 0, &binding).expect("steps that fit");
    let chunks: Vec<Vec<u64>> = (0..8)
        .map(|i| (0..elements).map(|e| operation.special(mix(i << 32 | e))).collect())
        .collect();
    let parameter = operation.parameter(0, 3);
    let span = 8 * (elements + gap);
    let mut data = vec![0; (span * size) as usize];
    for (extent, chunk) in extents.iter().zip(&chunks) {
        for (e, bits) in (extent.offset..).zip(chunk) {
            let at = (e * size) as usize;
            data[at..at + size as usize].copy_from_slice(&bits.to_le_bytes()[..size as usize]);
        }
    }
    let work = KernelWork {
        operation: operation.code(),
        parameter,
        element: size as u32,
        protocol,
        tag: 5,
        ..KernelWork::default()
    };
    let found = alone.run(&words, work, u64::from(tile) * size * 2, &data, askew);
    for (i, expected) in expected(steps, &chunks, operation, parameter).iter().enumerate() {
        for (e, &expected) in (extents[i].offset..).zip(expected) {
            let at = (e * size) as usize;
            let bits = found[at..at + size as usize].iter().rev();
            let bits = bits.fold(0, |wide, byte| wide << 8 | u64::from(*byte));
            assert!(
                operation.same(bits, expected),
                "{operation:?}, {elements} elements, off by {askew:?}, output {i}, element {}: \
                 {bits:#x}, not {expected:#x}",
                e - extents[i].offset
            );
        }
        // Nothing is written between chunks.
        let end = ((extents[i].offset + extents[i].elements) * size) as usize;
        assert!(found[end..end + (gap * size) as usize].iter().all(|byte| *byte == Alone::FILL));
    }
}

fn operations() -> impl Iterator<Item = Operation> {
    let all = |dtype| RedOp::ALL.into_iter().map(move |op| Operation { dtype, op });
    DType::ALL.into_iter().flat_map(all)
}

#[test]
fn every_operation_on_every_type_at_every_fan_in() {
    let device = device::open();
    device.configure(128, 0);
    let mut alone = Alone::new(&device, Link::None);
    for operation in operations() {
        let size = operation.size() as u64;
        check(&mut alone, &fans(), operation, CHUNK / size + 3, 16 / size, [0, 0], SLOTS);
    }
}

/// All operands are misaligned equally, or each differently; chunks have between no bytes and a few
/// packs.
#[test]
fn any_size_and_alignment() {
    let device = device::open();
    device.configure(128, 0);
    let mut alone = Alone::new(&device, Link::None);
    let types = [DType::Uint8, DType::Bfloat16, DType::Float32, DType::Int64];
    for dtype in types {
        let size = dtype.size() as u64;
        let operation = Operation { dtype, op: RedOp::Sum };
        for elements in (0..18).chain([31, 32, 33, 199, 200]) {
            for off in 0..16 / size {
                let askew = [off * size, (off * 3 % (16 / size)) * size];
                // Chunks begin at any element. A gap of 16 bytes after a whole number of packs
                // keeps their alignment equal.
                check(&mut alone, &fans(), operation, elements, 1 + off % 2, askew, SLOTS);
                let alike = [off * size; 2];
                let gap = (16 / size) * 2 - elements % (16 / size);
                check(&mut alone, &fans()[..1], operation, elements, gap, alike, SLOTS);
            }
        }
    }
}

/// The same steps with a message of the rank to itself in each, in slots and in LL lines.
#[test]
fn operations_on_messages() {
    let device = device::open();
    device.configure(128, 0);
    let mut alone = Alone::new(&device, Link::Own);
    let link = peer(1, 0);
    let mut steps = vec![];
    for k in 2..=8 {
        steps.push(Step::new([input(k - 2), input(k - 1)], [link]));
        let mut step = Step::new((0..k - 1).map(input).chain([link]), [output(k - 1)]);
        step.finish = true;
        steps.push(step);
    }
    steps.push(Step::new([input(0)], [output(0), link]));
    steps.push(Step::new([link], [scratch(0)]));
    for operation in operations() {
        let size = operation.size() as u64;
        let elements = 203 / size + 1;
        for protocol in [SLOTS, LL] {
            check(&mut alone, &steps, operation, elements, 1, [size, 0], protocol);
        }
    }
}

/// With one block, which visits the waiting lane first, and with one block per lane: a step waits
/// for single steps of the other lane, not for its whole tile, and does so tile by tile.
#[test]
fn steps_come_after_those_of_other_lanes() {
    let device = device::open();
    let mut alone = Alone::new(&device, Link::None);
    let waits = vec![
        Step::new([output(1)], [output(0)]).after(1, 0),
        Step::new([input(0)], [output(3)]),
        Step::new([scratch(0), input(1)], [output(2)]).after(1, 2),
    ];
    let goes = vec![
        Step::new([input(0)], [output(1)]),
        Step::new([input(3)], [output(4)]).after(0, 1),
        Step::new([input(2)], [scratch(0)]),
        Step::new([input(4)], [output(5)]).after(0, 2),
    ];
    let table = StepTable(vec![vec![waits, goes], vec![]]);
    let schedule = Schedule::new("alone", Collective::AllReduce, 2, 8, table).with_scratch(1);
    let extents = extents(10, 0);
    let (inputs, outputs) = (&extents[..], &extents[..]);
    let binding =
        ProgramBinding { inputs, outputs, tile: 4, tiles: 3, tag: 0, sending: &[], receiving: &[] };
    let words = encode(&schedule, 0, &binding).expect("steps that fit");
    let data: Vec<u8> = (0..80).map(|i| mix(i) as u8).collect();
    let work = KernelWork {
        operation: operation(DType::Uint8, RedOp::Sum),
        element: 1,
        ..KernelWork::default()
    };
    let chunk = |bytes: &[u8], i: usize| bytes[10 * i..][..10].to_vec();
    let sum: Vec<u8> =
        chunk(&data, 2).iter().zip(chunk(&data, 1)).map(|(a, b)| a.wrapping_add(b)).collect();
    for blocks in [1, 2, 2, 2, 2, 2] {
        let found = alone.run(&words, KernelWork { blocks, ..work }, 4, &data, [0, 0]);
        for (output, expected) in [(0, 0), (1, 0), (3, 0), (4, 3), (5, 4)] {
            assert_eq!(chunk(&found, output), chunk(&data, expected), "output {output}");
        }
        assert_eq!(chunk(&found, 2), sum);
    }
}

/// The factor may be in device memory.
#[test]
fn a_factor_in_device_memory() {
    let device = device::open();
    let mut alone = Alone::new(&device, Link::None);
    for dtype in [DType::Float64, DType::Float16, DType::Uint8] {
        let operation = Operation { dtype, op: RedOp::PreMulSum };
        let schedule = schedule(vec![Step::new([input(0)], [output(0)])]);
        let extents = extents(40, 0);
        let (inputs, outputs) = (&extents[..], &extents[..]);
        let none = ProgramBinding {
            inputs,
            outputs,
            tile: 40,
            tiles: 1,
            tag: 0,
            sending: &[],
            receiving: &[],
        };
        let words = encode(&schedule, 0, &none).expect("a step that fits");
        let size = operation.size();
        let data: Vec<u8> = (0..320)
            .flat_map(|i| operation.sample(mix(i)).to_le_bytes()[..size].to_vec())
            .collect();
        let work = KernelWork {
            operation: operation.code(),
            parameter: operation.parameter(2, 3),
            element: size as u32,
            ..KernelWork::default()
        };
        let plain = alone.run(&words, work, 0, &data, [0, 0]);
        let factor = alone.put(&work.parameter.to_le_bytes()[..size]);
        let by_address =
            KernelWork { operation: work.operation | ADDRESS, parameter: factor, ..work };
        assert_eq!(alone.run(&words, by_address, 0, &data, [0, 0]), plain);
        assert_ne!(plain[..40 * size], data[..40 * size]);
    }
}

/// Sends, receives and copies of any length, several in a lane, between addresses of any alignment.
#[test]
fn transfers() {
    let device = device::open();
    device.configure(128, 0);
    let mut alone = Alone::new(&device, Link::Own);
    let data: Vec<u8> = (0..9000u64).map(|i| mix(i) as u8).collect();
    for protocol in [SLOTS, LL] {
        let (from, to) = (alone.put(&data), alone.put(&vec![Alone::FILL; 9000]));
        let (mut sends, mut receives, mut copies) = (vec![], vec![], vec![]);
        let (mut read, mut write) = (1, 0);
        let mut expected = vec![Alone::FILL; 9000];
        for (i, bytes) in [0, 1, 15, 16, 17, 700, 0, 3, 2048, 1001].into_iter().enumerate() {
            let tag = i as u32;
            let place = |address, offset| TransferEnd::Memory(address + offset);
            let (source, target) = (place(from, read), place(to, write));
            if i % 4 == 3 {
                copies.push(LinkTransfer { from: source, to: target, bytes, tag });
            } else {
                sends.push(LinkTransfer { from: source, to: TransferEnd::Link(0), bytes, tag });
                receives.push(LinkTransfer { from: TransferEnd::Link(0), to: target, bytes, tag });
            }
            expected[write as usize..][..bytes as usize]
                .copy_from_slice(&data[read as usize..][..bytes as usize]);
            read += bytes + i as u64 % 3;
            write += bytes + 5;
        }
        let words = encode_transfers(&[sends, receives, copies], 512);
        let work = KernelWork { element: 1, protocol, tag: 3, ..KernelWork::default() };
        alone.run(&words, work, 0, &[], [0, 0]);
        assert!(alone.get(to, 9000) == expected, "protocol {protocol}");
    }
}
