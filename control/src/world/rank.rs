//! A rank of a simulated world: the program that a thread of its user runs, the calls that it
//! makes, and what it can look up.

use std::collections::BTreeMap;
use std::time::Duration;

use maypole_algorithms::{Collective, DType, Rank, RedOp};

use super::script::{Action, CallKind};
use crate::activity::{Activity, RecordedCall, RecorderSnapshot};
use crate::call_signature::CallSignature;
use crate::communicator::{
    CommunicatorCore, DeviceProgress, LocalFacts, ProcessName, ProcessState,
};
use crate::long_wait::LongWait;
use crate::time::Time;
use crate::verdict::Verdict;

/// A rank.
pub(super) struct SimulatedRank {
    /// None while an input is handled.
    pub(super) core: Option<CommunicatorCore>,
    pub(super) host: u32,
    pub(super) process: SimulatedProcess,
    /// How far the clock of the rank is ahead, in nanoseconds.
    pub(super) clock_ahead: i64,
    pub(super) program: Vec<Action>,
    /// The next action of the program.
    pub(super) next_action: usize,
    pub(super) thread: SimulatedThread,
    pub(super) calls: RecorderSnapshot,
    /// The hash of all calls that have begun.
    pub(super) history: u64,
    /// Messages that have come: the sender and the number of the call, with their tags.
    pub(super) arrived: BTreeMap<(Rank, u64), u64>,
    /// Ranks that have announced on their links that they left.
    pub(super) left_links: Vec<Rank>,
    /// The ranks of which a link or a verdict has said that they are dead, with the first that said
    /// so.
    pub(super) dead_links: Vec<Verdict>,
    /// Why a rank aborted the links, if they say so, and until when the verdict may come.
    pub(super) link_abort: Option<(Option<Verdict>, Time)>,
    /// The verdict that ended the waits of the rank.
    pub(super) ended: Option<Verdict>,
    pub(super) exchanged: Option<Result<Vec<Vec<u8>>, Verdict>>,
    /// The number of exchanges that were complete.
    pub(super) exchanges: u64,
    /// Neighbours to which the connection is open at this end.
    pub(super) connections: Vec<Rank>,
    /// The moment of the deadline for which an event is queued.
    pub(super) wake_queued: Option<Time>,
    /// Events for the process that came while it was stopped.
    pub(super) held: Vec<super::run::Event>,
    /// Reports about long waits.
    pub(super) reports: u64,
    /// Why the program did not do all of its actions.
    pub(super) failure: Option<Verdict>,
}

/// The process of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SimulatedProcess {
    Running,
    Stopped,
    /// It ended by `exit`.
    Exited,
    Killed,
}

/// The thread of the user of a rank.
#[derive(Clone, Debug)]
pub(super) enum SimulatedThread {
    /// It begins its next action.
    Ready,
    /// It computes until this time.
    Computing(Time),
    /// It is in a call, and waits for the messages of these ranks.
    InCall {
        missing: Vec<Rank>,
        wait: Option<LongWait>,
        /// Whether a failure has been seen, and the messages were looked for once more.
        looked_again: bool,
        /// A message has another tag, and the verdict is awaited.
        mismatched: bool,
    },
    InExchange,
    /// It has left the communicator.
    Left,
}

impl SimulatedRank {
    pub(super) fn new(rank: Rank, nranks: u32, host: u32, program: Vec<Action>) -> Self {
        Self {
            core: Some(CommunicatorCore::new(rank, nranks)),
            host,
            process: SimulatedProcess::Running,
            clock_ahead: 0,
            program,
            next_action: 0,
            thread: SimulatedThread::Ready,
            calls: RecorderSnapshot::default(),
            history: 0,
            arrived: BTreeMap::new(),
            left_links: Vec::new(),
            dead_links: Vec::new(),
            link_abort: None,
            ended: None,
            exchanged: None,
            exchanges: 0,
            connections: Vec::new(),
            wake_queued: None,
            held: Vec::new(),
            reports: 0,
            failure: None,
        }
    }

    /// The time as the clock of the rank shows it.
    pub(super) fn local(&self, now: Time) -> Time {
        let nanoseconds = now.since_start().as_nanos() as i64 + self.clock_ahead;
        Time::after_start(Duration::from_nanos(nanoseconds.max(0) as u64))
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(self.process, SimulatedProcess::Running | SimulatedProcess::Stopped)
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.thread, SimulatedThread::Left) || self.process == SimulatedProcess::Exited
    }

    /// Records that a call begins. Returns the ranks that it waits for and those that it sends to.
    pub(super) fn begin_call(&mut self, kind: CallKind, count: u64) -> (Vec<Rank>, Vec<Rank>) {
        let (rank, nranks) = match &self.core {
            Some(core) => (core.rank(), core.nranks()),
            None => unreachable!("the core is here between inputs"),
        };
        let root = match kind {
            CallKind::AllReduce => None,
            CallKind::Broadcast(root) => Some(root),
            CallKind::OwnBroadcast => Some(rank),
        };
        let collective = root.map_or(Collective::AllReduce, |root| Collective::Broadcast { root });
        let signature = CallSignature::even(collective, DType::Int32, RedOp::Sum, count);
        let calls = &mut self.calls;
        calls.sequence += 1;
        calls.in_call = true;
        let history = self.history;
        if calls.calls.len() == 63 {
            calls.calls.remove(0);
        }
        calls.calls.push(RecordedCall { sequence: calls.sequence, signature, history, took: None });
        self.history = signature.extend(history);
        let others: Vec<Rank> = (0..nranks).filter(|other| *other != rank).collect();
        match root {
            None => (others.clone(), others),
            Some(root) if root == rank => (Vec::new(), others),
            Some(root) => (vec![root], Vec::new()),
        }
    }

    /// Why the waits of the rank fail: the verdict that has come, or what the links say.
    pub(super) fn failing(&self, now: Time) -> Option<Verdict> {
        let of_links = || match &self.link_abort {
            Some((Some(reason), _)) => Some(reason.clone()),
            Some((None, until)) if *until <= now => {
                let why = String::from("no verdict came");
                Some(Verdict::Failed { rank: Rank::MAX, why })
            }
            _ => None,
        };
        self.ended.clone().or_else(of_links)
    }
}

/// What a rank can look up.
pub(super) struct SimulatedFacts<'a> {
    pub(super) rank: Rank,
    pub(super) ranks: &'a [SimulatedRank],
}

impl SimulatedFacts<'_> {
    fn own(&self) -> &SimulatedRank {
        &self.ranks[self.rank as usize]
    }
}

impl LocalFacts for SimulatedFacts<'_> {
    fn snapshot(&self) -> RecorderSnapshot {
        let mut snapshot = self.own().calls.clone();
        if let SimulatedThread::InCall { missing, wait: Some(_), .. } = &self.own().thread {
            snapshot.waits_for = missing.first().copied();
        }
        snapshot
    }

    fn activity(&self) -> Activity {
        Activity { snapshot: self.snapshot(), elsewhere: None }
    }

    fn process_state(&self, rank: Rank) -> Option<ProcessState> {
        let other = self.ranks.get(rank as usize)?;
        let is_visible = rank != self.rank && other.host == self.own().host;
        is_visible.then_some(match other.process {
            SimulatedProcess::Running => ProcessState::Running,
            SimulatedProcess::Stopped => ProcessState::Stopped,
            SimulatedProcess::Exited | SimulatedProcess::Killed => ProcessState::Ended,
        })
    }

    fn process_name(&self, rank: Rank) -> ProcessName {
        ProcessName { host: format!("host{}", self.ranks[rank as usize].host), pid: rank }
    }

    fn link_failure(&self) -> Option<Verdict> {
        self.own().link_abort.as_ref()?.0.clone()
    }

    fn has_left_link(&self, rank: Rank) -> bool {
        self.own().left_links.contains(&rank)
    }

    fn device(&self) -> Option<DeviceProgress> {
        None
    }
}
