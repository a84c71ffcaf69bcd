//! Tests every collective with every type and operation, for each number of ranks.

use maypole::{Collective, DType, RedOp};

use crate::piece::{Even, Piece, What};
use crate::ranks::Job;
use crate::round::{Group, Round, Way};
use crate::simulator::{folder, play};
use crate::world::World;

/// The number of elements, whether in place, and the bytes of misalignment. Each combination is
/// tested with two of these in turn, or with all.
const FORMS: [(usize, bool, usize); 6] = [
    (64, false, 0),
    (447, true, 3),
    (1, false, 1),
    (1000, true, 0),
    (0, false, 0),
    (333, false, 8),
];

/// All combinations, in rounds.
pub(crate) fn all(world: &mut World, thoroughly: bool) {
    let (mut pieces, mut turn) = (Vec::new(), 0);
    for root in [0, world.nranks - 1] {
        // Collectives without a root are tested once.
        let all = Collective::all(root).into_iter();
        for collective in all.filter(|c| root == 0 || c.root().is_some()) {
            for dtype in DType::ALL {
                let ops = if collective.reduces() { &RedOp::ALL[..] } else { &[RedOp::Sum] };
                for &op in ops {
                    turn += 1;
                    let forms = if thoroughly { 0..FORMS.len() } else { turn..turn + 2 };
                    for (count, in_place, skew) in forms.map(|form| FORMS[form % FORMS.len()]) {
                        let resident = turn % 2 == 0;
                        let even = Even { collective, dtype, op, count, in_place, skew, resident };
                        let seed = (turn * 1000 + count) as u64;
                        pieces.push(Piece { what: What::Even(even), seed });
                    }
                }
            }
        }
    }
    let ways = [Way::Apart, Way::Direct, Way::Legacy, Way::Together];
    for (pieces, way) in pieces.chunks(8).zip(ways.into_iter().cycle()) {
        let groups = vec![Group { calls: pieces.len(), stream: 0 }];
        Round { pieces: pieces.to_vec(), groups, way }.play(world);
    }
}

pub(crate) fn in_threads(ranks: usize, thoroughly: bool) {
    all(&mut World::of_threads(ranks), thoroughly);
}

#[test]
fn every_collective_type_and_operation_in_threads() {
    for ranks in 1..=8 {
        play(&format!("every {ranks} 0"), &[("CUDA_DEVICE_MAX_CONNECTIONS", "32")]).well();
    }
}

#[test]
#[ignore = "the full matrix"]
fn every_form_of_every_collective_type_and_operation() {
    for ranks in 1..=8 {
        play(&format!("every {ranks} 1"), &[("CUDA_DEVICE_MAX_CONNECTIONS", "32")]).well();
    }
}

fn in_processes(ranks: u32) {
    let mut job = Job::start("rank", ranks, "every", &[("LD_LIBRARY_PATH", folder())]);
    job.all_well().into_iter().for_each(|said| assert_eq!(said, "done"));
}

#[test]
fn every_collective_type_and_operation_in_processes() {
    [2, 3].into_iter().for_each(in_processes);
}

#[test]
#[ignore = "the full matrix"]
fn every_number_of_processes() {
    (1..=8).for_each(in_processes);
}
