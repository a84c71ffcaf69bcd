//! What must hold in every simulated world.

use maypole_algorithms::Rank;

use super::rank::{SimulatedProcess, SimulatedRank};
use super::run::World;
use super::script::{Action, CallKind, Disturbance, Script};
use crate::communicator::ControlOutput;
use crate::frame::ControlFrame;
use crate::report::{DelayReason, Report};
use crate::verdict::Verdict;

/// Most outputs of one input: a verdict to three neighbours, an end, an exchange, and some answers.
const MOST_OUTPUTS: usize = 16;

/// What is known of a world that its ranks need not know.
pub(super) struct Truth {
    pub(super) nranks: u32,
    /// The invariant that was broken first.
    pub(super) broken: Option<String>,
    /// Ranks whose user aborted.
    pub(super) aborted: Vec<Rank>,
    /// A rank has sent frames that are wrong.
    pub(super) lies: bool,
    /// More events than a world of its size can have.
    pub(super) most_events: u64,
    /// Control frames that were sent.
    frames: u64,
    killed: Vec<Rank>,
    /// Connections that broke, with the lower rank second.
    broken_connections: Vec<[Rank; 2]>,
    /// Whether the ranks make different calls.
    calls_differ: bool,
    /// Whether a rank leaves before others have made all of their calls.
    leaves_early: bool,
    /// Whether ranks can be late by more than a timeout.
    can_time_out: bool,
    /// Whether all ranks make a call that no rank waits for, and differ in it.
    differs_unnoticed: bool,
    disturbed: bool,
}

impl Truth {
    pub(super) fn new(script: &Script) -> Self {
        let calls = |program: &Vec<Action>| {
            let relevant = program.iter().filter(|it| !matches!(it, Action::Compute(_)));
            relevant.copied().collect::<Vec<_>>()
        };
        let first = calls(&script.programs[0]);
        let differs_unnoticed = script.programs.iter().all(|program| {
            let idle = std::time::Duration::from_secs(2);
            matches!(
                program.as_slice(),
                [.., Action::Call(CallKind::OwnBroadcast, _), Action::Compute(time)] if *time > idle
            )
        });
        let own = |action: &Action| matches!(action, Action::Call(CallKind::OwnBroadcast, _));
        let is_wrong = script.programs.iter().flatten().any(own);
        let uneven = script.programs.iter().any(|program| calls(program) != first);
        let actions = script.programs.iter().map(Vec::len).sum::<usize>() as u64;
        let nranks = script.nranks();
        Self {
            nranks,
            broken: None,
            aborted: Vec::new(),
            lies: false,
            most_events: 3000 * u64::from(nranks) + 40 * actions * u64::from(nranks) + 20_000,
            frames: 0,
            killed: Vec::new(),
            broken_connections: Vec::new(),
            calls_differ: uneven || is_wrong,
            leaves_early: uneven,
            can_time_out: false,
            differs_unnoticed,
            disturbed: !script.disturbances.is_empty(),
        }
        .with(script)
    }

    fn with(mut self, script: &Script) -> Self {
        let delays =
            |it: &Disturbance| matches!(it, Disturbance::Stop(..) | Disturbance::Stall(..));
        let is_slow = script.disturbances.iter().any(|(_, it)| delays(it));
        let jumps =
            script.disturbances.iter().any(|(_, it)| matches!(it, Disturbance::JumpClock(..)));
        let computes = script.programs.iter().flatten().any(|it| matches!(it, Action::Compute(_)));
        let is_late = is_slow || computes || self.calls_differ;
        let exchanges = script.programs.iter().flatten().any(|it| *it == Action::Exchange);
        self.can_time_out =
            jumps || script.timeout.is_some() && is_late || exchanges && self.calls_differ;
        self
    }

    pub(super) fn killed(&mut self, rank: Rank, _has_left: bool) {
        self.killed.push(rank);
    }

    pub(super) fn broke(&mut self, rank: Rank, above: Rank) {
        self.broken_connections.push([rank, above]);
    }

    /// What a rank gives to an exchange.
    pub(super) fn exchange_bytes(rank: Rank, exchange: u64) -> Vec<u8> {
        format!("{rank} {exchange}").into_bytes()
    }

    pub(super) fn check_exchange(&mut self, rank: Rank, exchange: u64, whole: &[Vec<u8>]) {
        for (other, bytes) in (0..).zip(whole) {
            if *bytes != Self::exchange_bytes(other, exchange) && !self.lies && !self.calls_differ {
                self.fail(format!("rank {rank} got wrong bytes of rank {other}"));
            }
        }
        if whole.len() != self.nranks as usize {
            self.fail(format!("rank {rank} got bytes of {} ranks", whole.len()));
        }
    }

    /// The first verdict stays: it is the cause of those that follow.
    pub(super) fn check_first_verdict(
        &mut self,
        rank: Rank,
        before: Option<&Verdict>,
        now: Option<&Verdict>,
    ) {
        if before.is_some() && before != now {
            self.fail(format!("rank {rank} had the verdict {before:?}, and now has {now:?}"));
        }
    }

    /// A verdict must be true when it is made, and for ranks that it reaches later too.
    pub(super) fn check_verdict(&mut self, rank: Rank, verdict: &Verdict, ranks: &[SimulatedRank]) {
        if self.lies {
            return;
        }
        let broke = |a: Rank, b: Rank| {
            let is_pair = |it: &&[Rank; 2]| **it == [a, b] || **it == [b, a];
            self.broken_connections.iter().any(|it| is_pair(&it))
        };
        let is_true = match verdict {
            Verdict::Dead { rank: dead, seen_by } => {
                let process = ranks[*dead as usize].process;
                let unseen = ranks[*dead as usize].host != ranks[*seen_by as usize].host
                    || process == SimulatedProcess::Exited;
                process == SimulatedProcess::Killed || unseen && broke(*dead, *seen_by)
            }
            Verdict::Left { rank: left } => ranks[*left as usize].has_left(),
            Verdict::Mismatch { ranks: [a, b], .. } => self.calls_differ && a != b,
            Verdict::Timeout { .. } => self.can_time_out,
            Verdict::Aborted { by } => self.aborted.contains(by),
            Verdict::Failed { .. } => !self.broken_connections.is_empty(),
            Verdict::Disagreement { .. } => self.calls_differ,
            Verdict::Revoked { .. }
            | Verdict::LeftUnsent { .. }
            | Verdict::MissingRanks { .. }
            | Verdict::DuplicateRank { .. }
            | Verdict::DifferentRankCount { .. } => false,
        };
        if !is_true {
            self.fail(format!("rank {rank} got a verdict that is not true: {verdict:?}"));
        }
    }

    pub(super) fn check_outputs(&mut self, rank: Rank, outputs: &[ControlOutput]) {
        if outputs.len() > MOST_OUTPUTS {
            self.fail(format!("rank {rank} has {} outputs at once: {outputs:?}", outputs.len()));
        }
        let is_frame = |it: &&ControlOutput| matches!(it, ControlOutput::Send(..));
        self.frames += outputs.iter().filter(is_frame).count() as u64;
        let ends = |it: &ControlOutput| {
            matches!(it, ControlOutput::Send(_, ControlFrame::Leave(_) | ControlFrame::Verdict(_)))
        };
        let left =
            |it: &ControlOutput| matches!(it, ControlOutput::Send(_, ControlFrame::Leave(_)));
        // A rank says why the communicator ended before it says that it leaves.
        let first_leave = outputs.iter().position(left).unwrap_or(outputs.len());
        let last_end = outputs.iter().rposition(|it| ends(it) && !left(it)).unwrap_or(0);
        if last_end > first_leave {
            self.fail(format!("rank {rank} leaves before it says why: {outputs:?}"));
        }
    }

    pub(super) fn check_report(&mut self, report: &Report, ranks: &[SimulatedRank]) {
        let culprit = &ranks[report.culprit() as usize];
        let is_true = match report.reason {
            DelayReason::Stopped => culprit.process == SimulatedProcess::Stopped,
            DelayReason::Left => culprit.has_left() || !culprit.is_alive(),
            _ => true,
        };
        if !is_true && !self.lies {
            self.fail(format!("a report is not true: {report}"));
        }
    }

    fn fail(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }
}

impl World {
    /// What must hold when a world has come to its end.
    pub(super) fn check_end(&self) -> Result<(), String> {
        let truth = &self.truth;
        if self.handled > truth.most_events {
            return Err(format!("{} events, and no end", self.handled));
        }
        for (rank, simulated) in self.ranks.iter().enumerate() {
            if simulated.is_alive() && !simulated.has_left() {
                return Err(format!(
                    "rank {rank} still waits at the end: {:?} in {}, verdict {:?}",
                    simulated.thread,
                    simulated.calls.last(),
                    simulated.ended
                ));
            }
        }
        let causes = truth.killed.len()
            + truth.aborted.len()
            + truth.broken_connections.len()
            + usize::from(truth.calls_differ);
        let verdicts = || self.ranks.iter().filter_map(|rank| rank.core.as_ref()?.verdict());
        if truth.lies {
            return Ok(());
        }
        if causes == 0
            && !truth.can_time_out
            && !truth.leaves_early
            && let Some(verdict) = verdicts().next()
        {
            return Err(format!("nothing happened, and a rank has a verdict: {verdict:?}"));
        }
        if causes == 1 && !truth.can_time_out && truth.broken_connections.is_empty() {
            let kind = |verdict: &Verdict| match verdict {
                Verdict::Dead { rank, .. } => (0, *rank),
                Verdict::Left { .. } | Verdict::Mismatch { .. } | Verdict::Disagreement { .. } => {
                    (1, 0)
                }
                Verdict::Aborted { by } => (2, *by),
                _ => (3, 0),
            };
            let mut kinds: Vec<_> = verdicts().map(kind).collect();
            kinds.sort_unstable();
            kinds.dedup();
            // A rank that died after it was the last to be needed may be known to some only as dead
            // and to others as nothing.
            if kinds.len() > 1 {
                let all: Vec<_> = verdicts().collect();
                return Err(format!("the ranks have different verdicts: {all:?}"));
            }
        }
        if truth.differs_unnoticed && !truth.disturbed && !truth.leaves_early && !truth.can_time_out
        {
            let told = verdicts().any(|it| matches!(it, Verdict::Mismatch { .. }));
            if !told {
                return Err(String::from("the ranks make different calls, and no rank is told"));
            }
        }
        Ok(())
    }
}
