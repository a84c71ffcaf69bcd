//! `maypole verify`: proves schedules on all cores, and prints what was proved.

mod listing;
mod report;
mod request;

use maypole_algorithms::cost::{LinkCost, MachineModel, NetworkModel, timeline};
use maypole_algorithms::svg;
use maypole_algorithms::topology::Grouping;

use crate::status::Failure;
use listing::listing;
use request::ProofRequest;
pub(crate) use request::VerifyArguments;

/// Bytes of a chunk in pictures.
const PICTURE_CHUNK_BYTES: usize = 4096;

/// Runs `maypole verify`. Returns the exit status.
///
/// # Errors
/// The arguments do not fit together, or the picture cannot be written.
pub(crate) fn run(arguments: VerifyArguments) -> Result<u8, Failure> {
    let request = ProofRequest::new(arguments)?;
    if request.print {
        for schedule in request.single()? {
            print!("{}", listing(schedule));
        }
    }
    if let Some(path) = &request.svg
        && let Some(schedule) = request.single()?.next()
    {
        let machine = machine(request.nodes.clone());
        let times = timeline(&machine, schedule, PICTURE_CHUNK_BYTES, 1);
        std::fs::write(path, svg::draw(schedule, &times)).map_err(|error| {
            Failure::system(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    Ok(report::prove_all(request.schedules))
}

/// The machine of the pictures: lanes side by side over shared memory, and a network if there are
/// several nodes. These are round figures of the right order of magnitude, to show which rank waits
/// for which; `tune` has measured ones.
fn machine(nodes: Option<Grouping>) -> MachineModel {
    let link = |latency, byte| LinkCost { latency, message: 0.0, byte };
    MachineModel {
        step: 0.1e-6,
        operand: 0.04e-6,
        byte: 0.02e-9,
        lanes_share_a_core: false,
        ranks_per_core: 1.0,
        link: link(0.3e-6, 0.0),
        network: nodes.map(|grouping| NetworkModel { grouping, link: link(1.5e-6, 0.08e-9) }),
    }
}
