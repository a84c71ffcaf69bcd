//! The verifier: takes a schedule and returns a proof that it is right, or a counterexample.
//!
//! Nothing is asked of the generator. What must hold follows from [`Collective`](crate::Collective) alone, and what a step
//! means from [`crate::semantics::evaluate_step`], evaluated in terms instead of numbers: a term says which rank's
//! contribution from which input chunk is combined with which, and whether the reduction is finished. Two terms
//! that share a rank are never combined, so a contribution counts exactly once by construction.
//!
//! # Why one execution is enough
//!
//! A firing waits for a fixed set of other events: the firing before it in its lane, the steps of `after`, the
//! sending of message `k` of a link, the release of message `k - credit`, the release of what its own lane lent, the
//! end of the former call on its rank. Which events these are does not depend on the order of anything, because a link is
//! fed by one lane and drained by one lane. So the firings form a marked graph (a deterministic process
//! network): every execution fires the same steps on the same messages, and either all executions finish or all stop
//! at the same steps.
//!
//! More credits, or copying a message instead of lending memory, only remove events from those sets. Hence:
//!
//! * **No deadlock** is shown by the execution with the most constraints: the fewest credits, and every message
//!   lent that can be. Every other mixture of credits and semantics waits for less. (On a deadlock, the weaker ones are
//!   executed too, to report the weakest that still has it.)
//! * **Values** are computed in that same execution: its order is one of those that any weaker semantics allows, and
//!   without races all orders give the same values.
//! * **Races** are looked for in that same execution, but against the order that the *weakest* semantics
//!   guarantees: vector clocks that know nothing of credits, nor of the release of any message except the one whose
//!   lent memory is looked at. See `hazard.rs`. What one lane alone uses is not raced for, since a lane waits for its own
//!   loans; if all memory that is written is so, no clocks are kept.
//! * **Leftover messages**: a lane runs the same list in every tile, so it suffices to count each link's messages.
//!
//! That makes one execution for buffers apart and one in place, where output chunks are the memory of input chunks and
//! values, races and waits for loans may all differ.
//!
//! # Why three tiles, and then another call
//!
//! No event waits for one of a later tile, so a cycle of waits lies within a tile, and all tiles wait alike: one
//! tile shows every deadlock. Races between tiles (on scratch) show between neighbours, since an access of tile
//! `t + 1` that comes after tile `t`'s has its own successors in its lane. Two tiles show all; the third is one to spare,
//! and makes sure that the first is not special.
//!
//! A call on a rank begins when nothing touches the rank's memory from the former any more, while other ranks
//! and their links may still be in it. No firing of the former waits for one of the next. The exchange that follows
//! the schedule, over the very same links with other message counts, is executed too and must receive its own
//! messages.
//!
//! # Classes
//!
//! The terms are also the reduction trees. The class is canonical if every output's term is the balanced tree over all ranks
//! ([`crate::semantics::fold`]), and whoever declares it must have it. Tiles, and the ranks of an
//! all-reduce, must agree on their trees: else ranks would end with different bits.

mod clock;
mod counterexample;
mod form;
mod hazard;
mod machine;
mod memory;
mod next_call;
mod render;
mod term;
mod tree;
mod values;

use std::fmt;
use std::sync::Arc;

pub use counterexample::{
    AccessKind, BlockedLane, ChunkAccess, Counterexample, MessageSemantics, StepPlace, Violation,
};
pub use memory::BufferPlacement;
pub use tree::{ReductionTree, TreeNode};

use crate::schedule::{Class, Schedule};
use crate::types::Rank;
use form::{Form, LinkNumbers};
use hazard::{Hazards, Reach};
use machine::{Halt, Machine, Numbering};
use memory::Memory;
use term::{Term, Terms};
use values::Values;

/// How many tiles of the schedule are executed.
const TILES: u32 = 3;

/// Proves `schedule`, or shows what is wrong with it.
pub fn prove(schedule: Schedule) -> Result<Proved, Box<Counterexample>> {
    let calls = decode(&schedule)?;
    let form = &calls[0];
    let mut terms: Vec<_> =
        calls.iter().map(|form| Terms::new(form.collective, form.nranks, form.inputs)).collect();
    let mut facts = ProofFacts {
        class: Class::Canonical,
        executions: 0,
        steps: 0,
        lanes: form.lanes.len() as u32,
        links: form.links.len() as u32,
        messages: form.links.iter().map(|link| u64::from(link.messages)).sum(),
    };
    let mut roots = Vec::new();
    for placement in placements(form) {
        let run = Run { schedule: &schedule, calls: &calls, placement };
        let (steps, outcome) = run.execute(&mut terms)?;
        facts.executions += 1;
        facts.steps += steps;
        roots = outcome;
    }
    let terms = terms.swap_remove(0);
    facts.class = class(&schedule, &terms, &roots, form.outputs)?;
    Ok(Proved(Arc::new(Proof { schedule, facts, terms, roots, outputs: calls[0].outputs })))
}

/// A schedule that the verifier has proved: `Proved<Schedule>` in spirit. Cheap to clone, and made by [`prove`] alone.
#[derive(Clone)]
pub struct Proved(Arc<Proof>);

struct Proof {
    schedule: Schedule,
    facts: ProofFacts,
    terms: Terms,
    /// By rank and output chunk.
    roots: Vec<Option<Term>>,
    outputs: u32,
}

impl Proved {
    /// What is proved.
    pub fn schedule(&self) -> &Schedule {
        &self.0.schedule
    }

    /// Whether it is a clone of `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the proof found out.
    pub fn facts(&self) -> &ProofFacts {
        &self.0.facts
    }

    /// How output chunk `output` of `rank` comes about: the same in every tile. None where the collective gives
    /// the rank nothing, or has no such chunk.
    pub fn tree(&self, rank: Rank, output: u32) -> Option<ReductionTree> {
        let Proof { schedule, terms, roots, outputs, .. } = &*self.0;
        if rank >= schedule.nranks || output >= *outputs {
            return None;
        }
        roots[(rank * outputs + output) as usize].map(|root| ReductionTree::new(terms, root))
    }
}

impl fmt::Debug for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proved: {:?}, {:?}", self.schedule(), self.facts())
    }
}

/// What a proof found out besides that the schedule is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofFacts {
    /// The class that the schedule has, whatever it declares (it may declare less).
    pub class: Class,
    /// Executions made: one for each placement of the buffers.
    pub executions: u32,
    /// Steps that were executed, in all executions together.
    pub steps: u64,
    /// Lanes of all ranks.
    pub lanes: u32,
    /// Links used.
    pub links: u32,
    /// Messages sent in one tile.
    pub messages: u64,
}

/// The schedule, and the exchange that follows it.
fn decode(schedule: &Schedule) -> Result<[Form; 2], Box<Counterexample>> {
    let mut numbers = LinkNumbers::default();
    let form = Form::new(schedule, TILES, &mut numbers).map_err(|malformed| {
        let (violation, place) = *malformed;
        Box::new(Counterexample {
            schedule: format!("{schedule:?}"),
            violation,
            place,
            placement: None,
        })
    })?;
    let exchange = next_call::exchange(&form);
    let next = Form::new(&exchange, 1, &mut numbers).map_err(|malformed| {
        let (violation, place) = *malformed;
        Box::new(Counterexample {
            schedule: format!("{exchange:?}"),
            violation,
            place,
            placement: None,
        })
    })?;
    Ok([form, next])
}

/// Buffers apart, and in place where that is another thing.
fn placements(form: &Form) -> impl Iterator<Item = BufferPlacement> {
    let shares = form.collective.can_run_in_place();
    [BufferPlacement::OutOfPlace].into_iter().chain(shares.then_some(BufferPlacement::InPlace))
}

/// One execution of all calls.
struct Run<'a> {
    schedule: &'a Schedule,
    calls: &'a [Form; 2],
    placement: BufferPlacement,
}

impl Run<'_> {
    /// Executes; returns the number of firings and the terms of the schedule's outputs.
    fn execute(
        &self,
        terms: &mut [Terms],
    ) -> Result<(u64, Vec<Option<Term>>), Box<Counterexample>> {
        match self.execute_within(terms, Reach::Rank) {
            Err(refuted) if matches!(refuted.violation, Violation::Race { .. }) => {
                self.execute_within(terms, Reach::World)
            }
            outcome => outcome,
        }
    }

    /// The same with clocks of that reach.
    fn execute_within(
        &self,
        terms: &mut [Terms],
        reach: Reach,
    ) -> Result<(u64, Vec<Option<Term>>), Box<Counterexample>> {
        let memory = Memory::new(self.calls, self.placement);
        let credit = self.schedule.credit;
        let numbering = Numbering::new(self.calls, credit);
        let mut values = Values::new(self.calls, &memory, &numbering, terms);
        let mut hazards = Hazards::new(self.calls, &memory, &numbering, reach);
        let machine =
            Machine::new(self.calls, &memory, &numbering, MessageSemantics::Rendezvous, credit);
        let ended = machine.run(|firing| {
            if let Some(hazards) = &mut hazards {
                hazards.fire(&firing)?;
            }
            values.fire(terms, &firing)
        });
        let steps = match ended {
            Ok(steps) => steps,
            Err(Halt::Deadlock(cycle)) => return Err(self.deadlock(&memory, cycle)),
            Err(Halt::Objection(at, violation)) => {
                let place = self.calls[at.call].place(at.call, at.lane, at.position, at.tile);
                return Err(self.counterexample(violation, Some(place)));
            }
        };
        let outcome = |call, partly| {
            values
                .outcome(terms, call, partly)
                .map_err(|violation| self.counterexample(violation, None))
        };
        outcome(1, true).map_err(|mut counterexample| {
            counterexample.schedule += ", in the exchange that follows it";
            counterexample
        })?;
        Ok((steps, outcome(0, false)?))
    }

    /// Reports the deadlock under the weakest semantics that has it; `cycle` is that under the strongest.
    fn deadlock(&self, memory: &Memory, cycle: Vec<BlockedLane>) -> Box<Counterexample> {
        let given = self.schedule.credit;
        let weaker = [
            (MessageSemantics::Buffered, None),
            (MessageSemantics::Buffered, Some(given)),
            (MessageSemantics::Rendezvous, None),
        ];
        for (semantics, credit) in weaker {
            let credits = credit.unwrap_or(u32::MAX);
            let numbering = Numbering::new(self.calls, credits);
            let machine = Machine::new(self.calls, memory, &numbering, semantics, credits);
            if let Err(Halt::Deadlock(cycle)) = machine.run(|_| Ok::<_, Violation>(())) {
                return self.counterexample(Violation::Deadlock { semantics, credit, cycle }, None);
            }
        }
        let (semantics, credit) = (MessageSemantics::Rendezvous, Some(given));
        self.counterexample(Violation::Deadlock { semantics, credit, cycle }, None)
    }

    fn counterexample(
        &self,
        violation: Violation,
        place: Option<StepPlace>,
    ) -> Box<Counterexample> {
        let schedule = format!("{:?}", self.schedule);
        Box::new(Counterexample { schedule, violation, place, placement: Some(self.placement) })
    }
}

/// The class of a schedule with these outputs, which must be the declared one or better.
fn class(
    schedule: &Schedule,
    terms: &Terms,
    roots: &[Option<Term>],
    outputs: u32,
) -> Result<Class, Box<Counterexample>> {
    if !schedule.collective.reduces() {
        return Ok(Class::Canonical);
    }
    let mut canonical = vec![None; terms.inputs() as usize];
    for (i, &root) in roots.iter().enumerate() {
        let Some(root) = root else { continue };
        let chunk = terms.origin(root);
        let known = canonical[chunk as usize].get_or_insert_with(|| terms.canonical(chunk));
        if *known == Some(root) {
            continue;
        }
        if schedule.class == Class::Fast {
            return Ok(Class::Fast);
        }
        let (rank, output) = (i as u32 / outputs, i as u32 % outputs);
        let tree = ReductionTree::new(terms, root).to_string();
        return Err(Box::new(Counterexample {
            schedule: format!("{schedule:?}"),
            violation: Violation::NotCanonical { rank, output, tree },
            place: None,
            placement: None,
        }));
    }
    Ok(Class::Canonical)
}
