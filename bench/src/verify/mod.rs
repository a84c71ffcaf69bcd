//! `maypole verify`: proves schedules on demand, all cores at once, and prints what was proved.

mod listing;
mod report;
mod request;

use std::ffi::OsString;

use maypole_algorithms::cost::{LinkCost, MachineModel, NetworkModel, timeline};
use maypole_algorithms::svg;
use maypole_algorithms::topology::Grouping;

use crate::status;
use listing::listing;
use request::Request;

/// The text of `maypole verify --help`.
const HELP: &str = "\
maypole verify COLLECTIVE|--all [OPTIONS]

Proves the schedules of a collective: right results, no race, no deadlock, the declared bits. Rooted collectives are proved
from their first and their last rank.

  --all                   every schedule of the list: all collectives at 2..64 ranks and at some larger ones, hierarchies
  --ranks N | N..M        numbers of ranks, both ends included (2..64); with --all, these instead of the list
  --algorithm NAME        only this one
  --nodes N+N+...         the ranks of each node, instead of --ranks: hierarchies too
  --rails N               hierarchies with that many rails only
  --channels N            N copies of each schedule side by side
  --print                 print the one schedule by rank and lane; needs a single N, and --algorithm if there are several
  --svg FILE              draw the one schedule: time down, ranks across (of a rooted collective, from rank 0)

Columns: collective, algorithm, class, ranks, proofs, executions, steps executed, seconds of processor time.
Exit status: 0 proved, 1 a counterexample (printed), 6 usage.
";

/// Runs `maypole verify` with what follows it.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> Result<u8, lexopt::Error> {
    let Some(request) = Request::parse(args)? else {
        print!("{HELP}");
        return Ok(status::FINE);
    };
    if request.print {
        for schedule in request.single()? {
            print!("{}", listing(schedule));
        }
    }
    if let Some(path) = &request.svg
        && let Some(schedule) = request.single()?.next()
    {
        let times = timeline(&machine(request.nodes.clone()), schedule, BYTES, 1);
        if let Err(error) = std::fs::write(path, svg::draw(schedule, &times)) {
            eprintln!("maypole: cannot write {}: {error}", path.display());
            return Ok(status::SYSTEM);
        }
    }
    Ok(report::prove_all(request.schedules))
}

/// Of a chunk, in pictures.
const BYTES: usize = 4096;

/// The machine of the pictures: lanes side by side over shared memory, and a network where there are several nodes. Round figures of the
/// right order, to show who waits for whom; `tune` has those that were measured.
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
