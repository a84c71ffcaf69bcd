//! The verifier: takes a schedule and returns a proof that it is right, or a counterexample.
//!
//! The verifier trusts nothing about the generator of a schedule. It executes the schedule once
//! (out of place and in place) on symbolic values and checks the results against [`Collective`].
//! This text explains why that one execution covers every execution that an engine may make, with
//! any timing, any number of credits, and any choice between copied and lent messages.
//!
//! # Symbolic values
//!
//! What a step computes is defined by [`crate::semantics`], over any domain of values. Engines use
//! numbers; the verifier uses *terms*. A term says which rank's contribution from which input chunk
//! is combined with which other one, and whether the reduction is finished. Two terms that share a
//! rank are never combined, so each contribution counts at most once; an output must contain all of
//! them. Equal terms are equal reduction trees, hence equal bits.
//!
//! # Why one execution is enough
//!
//! Call one execution of a step for one tile a *firing*. Before a firing can happen, other events
//! must have happened:
//!
//! 1. the firing before it in its lane;
//! 2. the steps that `after` names, and the release of what they lent;
//! 3. the arrival of each message that it receives;
//! 4. the release of message `k - credit` of each link on which it sends message `k`;
//! 5. the release of memory that its own lane lent and that it writes;
//! 6. for the first firing of a call on a rank, the end of the former call there.
//!
//! The point is that **this set of events is fixed by the schedule**: no timing can change it. A
//! link is fed by one lane and drained by one lane, and a lane is in order, so it is fixed which
//! firing sends message `k` and which one receives it. Nothing in a schedule waits for "any of"
//! several events, and no step branches on data. Such a system is known as a marked graph, or as a
//! deterministic process network (Kahn), and has this property: an event, once it can happen, can
//! happen until it does, since no other event can prevent it. Therefore all executions consist of
//! the same events, in different orders. Either every execution fires every step, or all executions
//! stop before the same steps; and each receive gets the same message in all of them.
//!
//! Engines differ in two more ways, and both can only *remove* waits. More credits remove waits of
//! kind 4. A message that is copied instead of lent removes the releases in 2, 5 and 6. This gives
//! the four parts of the proof:
//!
//! * **No deadlock.** The verifier executes with the fewest credits that the schedule states, and
//!   lends every message that can be lent: the execution with the most waits. If it completes,
//!   every mixture of credits and lending completes, since each waits for a subset of the same
//!   events. (If it does not, the mixtures with fewer waits are tried too, and the counterexample
//!   states the one with the fewest that still blocks.)
//! * **No race.** Two accesses to a chunk, of which one is a write, must be ordered in *every*
//!   execution. So the same execution is checked against the order that is common to all mixtures,
//!   which is the one with the *fewest* waits: vector clocks that include 1, 3 and the firings in
//!   2, but not credits. Releases order nothing either, except for the loan whose memory is
//!   examined. `hazard.rs` has the details.
//! * **Right values.** The order of the verifier's execution is one that every mixture allows.
//!   Without races, each read sees the same last write in every order, so all orders give the same
//!   terms.
//! * **No leftover message.** Each lane runs the same list in every tile, so it suffices that each
//!   link has as many sends as receives in one tile.
//!
//! In place, output chunks are the memory of input chunks, so values, races and waits of kind 5 may
//! differ. Hence a second execution in place, where the collective allows it.
//!
//! # Why three tiles, and then another call
//!
//! No event waits for an event of a later tile, so a cycle of waits lies within one tile; and all
//! tiles have the same waits. One tile therefore shows every deadlock. Races between tiles, on
//! scratch, show between neighbouring tiles: an access in tile `t` comes before the same step's
//! access in tile `t + 1`, so an access that is ordered after tile `t + 1` is ordered after tile
//! `t`. Two tiles show every race. The third tile guards against a mistake in this argument that
//! would make the first tile special.
//!
//! A call begins on a rank when nothing touches the rank's memory from the former call any more,
//! while other ranks and their links may still be in it. No firing of the former call waits for one
//! of the next. The verifier therefore executes a second call, an exchange over the same links with
//! other message counts (`next_call.rs`), which must receive its own messages and not those of the
//! first.
//!
//! # Lengths
//!
//! A term has contributions to one input chunk only, so all values of a step are as long as that
//! chunk: its *origin*. The proof states it for each step ([`Proved::origin`]). So an engine knows
//! the length of every message and of the content of every scratch chunk, and believes no length
//! that a peer states.
//!
//! # Classes
//!
//! The class is canonical if every output's term is the balanced tree over all ranks
//! ([`crate::semantics::fold`]). A schedule that declares the canonical class must have it. All
//! tiles, and all ranks of an all-reduce, must have equal terms: else ranks would end with
//! different bits.

mod call;
mod clock;
mod counterexample;
mod execution;
mod hazard;
mod memory;
mod next_call;
mod numbering;
mod origin;
mod term;
mod tree;
mod values;

use std::fmt;
use std::sync::Arc;

pub use counterexample::{
    AccessKind, BlockedLane, BufferPlacement, ChunkAccess, Counterexample, MessageSemantics,
    StepPlace, Violation,
};
pub use tree::{ReductionTree, TreeNode};

use crate::schedule::{Class, Schedule};
use crate::types::{Collective, Rank};
use call::ExecutedCall;
use execution::{Execution, ExecutionHalt};
use hazard::{ClockScope, RaceDetector};
use memory::CellLayout;
use numbering::MessageNumbering;
use origin::StepOrigins;
use term::{TermId, TermTable};
use values::SymbolicMemory;

/// How many tiles of the schedule are executed.
const TILES: u32 = 3;

/// Proves `schedule`, or shows what is wrong with it.
pub fn prove(schedule: Schedule) -> Result<Proved, Box<Counterexample>> {
    let calls = lay_out(&schedule)?;
    let call = &calls[0];
    let terms =
        |call: &ExecutedCall| TermTable::new(call.collective, call.flat.nranks, call.inputs);
    let mut terms: Vec<_> = calls.iter().map(terms).collect();
    let mut facts = ProofFacts {
        class: Class::Canonical,
        executions: 0,
        steps: 0,
        lanes: call.flat.lanes.len() as u32,
        links: call.flat.links.len() as u32,
        messages: call.flat.messages.into(),
    };
    let mut roots = Vec::new();
    let mut origins = StepOrigins::new(&call.flat, &terms[0]);
    for placement in placements(call) {
        let run = PlacementRun { schedule: &schedule, calls: &calls, placement };
        let (steps, outcome) = run.execute(&mut terms, &mut origins)?;
        facts.executions += 1;
        facts.steps += steps;
        roots = outcome;
    }
    let terms = terms.swap_remove(0);
    facts.class = class(&schedule, &terms, &roots, call.outputs)?;
    let outputs = calls[0].outputs;
    let proof = Proof { facts, terms, roots, outputs, origins };
    Ok(Proved { schedule, proof: Arc::new(proof), renamed_by: 0 })
}

/// A schedule that the verifier has proved. [`prove`] makes one, and [`Proved::with_root`] another
/// of it. Cheap to clone.
#[derive(Clone)]
pub struct Proved {
    schedule: Schedule,
    proof: Arc<Proof>,
    /// In the schedule that was executed, each rank had the number of the rank so many places
    /// before it, in a circle.
    renamed_by: Rank,
}

/// What follows from the execution of a schedule.
struct Proof {
    facts: ProofFacts,
    terms: TermTable,
    /// By rank and output chunk the term of the output.
    roots: Vec<Option<TermId>>,
    outputs: u32,
    origins: StepOrigins,
}

impl Proved {
    /// The schedule that is proved.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Whether it is a clone of `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.proof, &other.proof) && self.renamed_by == other.renamed_by
    }

    /// What the proof found out about the schedule.
    pub fn facts(&self) -> &ProofFacts {
        &self.proof.facts
    }

    /// The input chunk of which step `index` of `lane` of `rank` moves a copy, or the contributions
    /// that it reduces, as the rank that sends it and the number of the chunk; of a reduction, the
    /// chunk of rank 0 stands for that of every rank. In each tile, all operands of the step are as
    /// long as that chunk. None if there is no such step.
    pub fn origin(&self, rank: Rank, lane: u32, index: u32) -> Option<(Rank, u32)> {
        let origin = self.proof.origins.of(self.executed_as(rank)?, lane, index);
        origin.map(|(source, chunk)| (self.renamed(source), chunk))
    }

    /// The reduction tree of output chunk `output` of `rank`, which is the same in every tile. None
    /// where the collective gives the rank nothing, or where there is no such chunk.
    pub fn tree(&self, rank: Rank, output: u32) -> Option<ReductionTree> {
        let Proof { terms, roots, outputs, .. } = &*self.proof;
        let rank = self.executed_as(rank)?;
        if output >= *outputs {
            return None;
        }
        let root = roots[(rank * outputs + output) as usize]?;
        Some(ReductionTree::new(terms, root).renamed(|rank| self.renamed(rank)))
    }

    /// A proved broadcast from another root: the same schedule, whose ranks have got the numbers of
    /// other ranks. None if the schedule is no broadcast, or if there is no such rank.
    ///
    /// It needs no execution. The verifier compares the numbers of ranks only for equality, except
    /// where it derives from them what a rank must get, and in which order contributions are
    /// reduced. A broadcast reduces nothing, and gives to every rank the input of the root, under
    /// the same numbers of chunks; in place, the output of the root is its input. So all of this
    /// holds for the new numbers if it holds for the old ones.
    pub fn with_root(&self, root: Rank) -> Option<Self> {
        let Collective::Broadcast { root: now } = self.schedule.collective else { return None };
        let nranks = self.schedule.nranks;
        if root >= nranks {
            return None;
        }
        let by = (root + nranks - now) % nranks;
        let mut schedule = self.schedule.renamed(by);
        schedule.collective = Collective::Broadcast { root };
        let renamed_by = (self.renamed_by + by) % nranks;
        Some(Self { schedule, proof: Arc::clone(&self.proof), renamed_by })
    }

    /// The number that `rank` had in the execution. None if there is no such rank.
    fn executed_as(&self, rank: Rank) -> Option<Rank> {
        let nranks = self.schedule.nranks;
        (rank < nranks).then(|| (rank + nranks - self.renamed_by) % nranks)
    }

    /// The number of the rank that had number `rank` in the execution.
    fn renamed(&self, rank: Rank) -> Rank {
        (rank + self.renamed_by) % self.schedule.nranks
    }
}

impl fmt::Debug for Proved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proved: {:?}, {:?}", self.schedule(), self.facts())
    }
}

/// What a proof found out, besides that the schedule is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofFacts {
    /// The class that the schedule has; it may declare less.
    pub class: Class,
    /// The number of executions: one for each placement of the buffers.
    pub executions: u32,
    /// The number of steps that were executed, in all executions together.
    pub steps: u64,
    /// The number of lanes of all ranks.
    pub lanes: u32,
    /// The number of links that are used.
    pub links: u32,
    /// The number of messages that are sent in one tile.
    pub messages: u64,
}

/// Lays out the schedule and the exchange that follows it, if the schedule is well formed.
fn lay_out(schedule: &Schedule) -> Result<[ExecutedCall; 2], Box<Counterexample>> {
    let call = |schedule: &Schedule, tiles| {
        ExecutedCall::new(schedule, tiles).map_err(|ill_formed| {
            let (violation, place) = *ill_formed;
            let schedule = format!("{schedule:?}");
            Box::new(Counterexample { schedule, violation, place, placement: None })
        })
    };
    let first = call(schedule, TILES)?;
    let mut next = call(&next_call::exchange(&first), 1)?;
    next.flat.number_links_as_in(&first.flat);
    Ok([first, next])
}

/// Out of place, and in place where that makes a difference.
fn placements(call: &ExecutedCall) -> impl Iterator<Item = BufferPlacement> {
    let in_place = call.collective.can_run_in_place();
    [BufferPlacement::OutOfPlace].into_iter().chain(in_place.then_some(BufferPlacement::InPlace))
}

/// The execution of all calls with one placement of the buffers.
struct PlacementRun<'a> {
    schedule: &'a Schedule,
    calls: &'a [ExecutedCall; 2],
    placement: BufferPlacement,
}

impl PlacementRun<'_> {
    /// Executes; returns the number of firings and the terms of the schedule's outputs.
    fn execute(
        &self,
        terms: &mut [TermTable],
        origins: &mut StepOrigins,
    ) -> Result<(u64, Vec<Option<TermId>>), Box<Counterexample>> {
        match self.execute_with_clocks(terms, origins, ClockScope::Rank) {
            Err(rejected) if matches!(rejected.violation, Violation::Race { .. }) => {
                self.execute_with_clocks(terms, origins, ClockScope::AllRanks)
            }
            outcome => outcome,
        }
    }

    /// Executes with clocks that have components for the lanes in `scope`.
    fn execute_with_clocks(
        &self,
        terms: &mut [TermTable],
        origins: &mut StepOrigins,
        scope: ClockScope,
    ) -> Result<(u64, Vec<Option<TermId>>), Box<Counterexample>> {
        let layout = CellLayout::new(self.calls, self.placement);
        let credit = self.schedule.credit;
        let numbering = MessageNumbering::new(self.calls, credit);
        let mut values = SymbolicMemory::new(self.calls, &layout, &numbering, terms);
        let mut races = RaceDetector::new(self.calls, &layout, &numbering, scope);
        let semantics = MessageSemantics::Rendezvous;
        let execution = Execution::new(self.calls, &layout, &numbering, semantics, credit);
        let ended = execution.run(|firing| {
            if let Some(races) = &mut races {
                races.fire(&firing)?;
            }
            let result = values.fire(terms, &firing)?;
            if firing.call == 0 { origins.note(&terms[0], firing.step, result) } else { Ok(()) }
        });
        let steps = match ended {
            Ok(steps) => steps,
            Err(ExecutionHalt::Deadlock(cycle)) => return Err(self.deadlock(&layout, cycle)),
            Err(ExecutionHalt::Rejected(at, violation)) => {
                let place = self.calls[at.call].place(at.call, at.lane, at.position, at.tile);
                return Err(self.counterexample(violation, Some(place)));
            }
        };
        let outcome = |call, only_written| {
            values
                .outcome(terms, call, only_written)
                .map_err(|violation| self.counterexample(violation, None))
        };
        outcome(1, true).map_err(|mut counterexample| {
            counterexample.schedule += ", in the exchange that follows it";
            counterexample
        })?;
        Ok((steps, outcome(0, false)?))
    }

    /// Reports the deadlock under the semantics with the fewest waits that has it. `cycle` is the
    /// one under the semantics with the most.
    fn deadlock(&self, layout: &CellLayout, cycle: Vec<BlockedLane>) -> Box<Counterexample> {
        let stated = self.schedule.credit;
        let weaker = [
            (MessageSemantics::Buffered, None),
            (MessageSemantics::Buffered, Some(stated)),
            (MessageSemantics::Rendezvous, None),
        ];
        for (semantics, credit) in weaker {
            let credits = credit.unwrap_or(u32::MAX);
            let numbering = MessageNumbering::new(self.calls, credits);
            let execution = Execution::new(self.calls, layout, &numbering, semantics, credits);
            if let Err(ExecutionHalt::Deadlock(cycle)) = execution.run(|_| Ok::<_, Violation>(())) {
                return self.counterexample(Violation::Deadlock { semantics, credit, cycle }, None);
            }
        }
        let (semantics, credit) = (MessageSemantics::Rendezvous, Some(stated));
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

/// The class of a schedule with these outputs, which must be at least the declared one.
fn class(
    schedule: &Schedule,
    terms: &TermTable,
    roots: &[Option<TermId>],
    outputs: u32,
) -> Result<Class, Box<Counterexample>> {
    if !schedule.collective.reduces() {
        return Ok(Class::Canonical);
    }
    let mut canonical = vec![None; terms.inputs() as usize];
    for (i, &root) in roots.iter().enumerate() {
        let Some(root) = root else { continue };
        let chunk = terms.origin(root);
        let expected = canonical[chunk as usize].get_or_insert_with(|| terms.canonical(chunk));
        if *expected == Some(root) {
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
