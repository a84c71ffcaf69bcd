//! Checks of the memory order between blocks: the rings are so short that each slot is filled, read
//! and filled again without a pause, and every word of every message is compared. If a reader or a
//! writer is too early, words of another round are found.

use crate::elements::{SUM_I32, difference, expected, input};
use crate::gpu::{Gpu, Settings};
use crate::pair::{Pair, Shape, Way};
use crate::report::{Check, Checked, Outcome};
use std::time::Duration;

pub(crate) const CHECKS: [Check; 2] = [
    Check { name: "memory-order-slots", seconds: 90, environment: &[], run: slots },
    Check { name: "memory-order-lines", seconds: 90, environment: &[], run: lines },
];

fn slots(_: &Settings) -> Checked {
    litmus(false)
}

fn lines(_: &Settings) -> Checked {
    litmus(true)
}

fn litmus(ll: bool) -> Checked {
    let gpu = Gpu::open()?;
    // Messages on each link.
    let rounds: usize = if gpu.simulated { 40 } else { 20_000 };
    let (mut messages, mut bits) = (0, 0);
    for (lanes, depth, bytes) in [(1, 1, 16), (8, 1, 512), (8, 2, 4096), (32, 1, 1024)] {
        // All blocks of both ranks have to be resident at the same time.
        let lanes = lanes.min(gpu.blocks / 2).max(1);
        let shape = Shape { lanes, depth, slot_bytes: bytes, ll };
        for way in [Way::Together, Way::Apart] {
            let mut pair = Pair::new(&gpu, shape)?;
            // Larger messages get fewer rounds, because one core compares all of them.
            let rounds = rounds.min((1 << 25) / (lanes as usize * bytes as usize)).max(1);
            let count = rounds * lanes as usize * bytes as usize / 4;
            let inputs = [0, 1].map(|rank| input(SUM_I32.dtype, messages, rank, count));
            let wanted = expected(&SUM_I32, &inputs);
            let call = pair.prepare(&SUM_I32, count)?;
            for (buffer, bytes) in call.inputs.iter().zip(&inputs) {
                pair.streams[0].write(buffer, bytes)?;
            }
            pair.streams[0].synchronize()?;
            // Words of the round before would hide a word that was never written.
            for _ in 0..3 {
                for output in &call.outputs {
                    pair.streams[0].fill(output, 0xee, output.bytes())?;
                }
                pair.streams[0].synchronize()?;
                pair.launch(&call, way)?;
                pair.wait(Duration::from_secs(30))?;
                for (rank, output) in call.outputs.iter().enumerate() {
                    let found = pair.streams[0].read(output, wanted.len())?;
                    if let Some(wrong) = difference(&found, &wanted, 4) {
                        let text = format!("{way:?}, {shape:?}, rank {rank}: {wrong}");
                        return Ok(Outcome::failed(text));
                    }
                    bits += wanted.len();
                }
            }
            let (all, in_slots) = pair.carried()?;
            if in_slots != if ll { 0 } else { all } {
                return Ok(Outcome::failed(format!("{in_slots} of {all} messages in slots")));
            }
            messages += all;
        }
    }
    let text = format!("{messages} messages over rings of 1 and 2, {} MiB compared", bits >> 20);
    Ok(match gpu.simulated {
        true => Outcome::needs_gpu(format!("{text}; x86 keeps the order by itself")),
        false => Outcome::passed(text),
    })
}
