//! `maypole verify`: proves schedules on demand, all cores at once, and prints what was proved.

mod listing;
mod report;
mod request;

use std::ffi::OsString;

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
  --print                 print the one schedule by rank and lane; needs a single N, and --algorithm if there are several

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
    Ok(report::prove_all(request.schedules))
}
