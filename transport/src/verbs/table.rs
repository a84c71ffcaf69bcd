//! All peers of an endpoint that are reached over RDMA, under one lock, and the completions of
//! their queue pairs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole_verbs::{Completion, QueuePair};

use super::connect::PathHandshake;
use super::group::CompletionGroup;
use super::message::PathAttempt;
use super::shared::VerbsShared;
use super::state::{PairState, QueueRole};
use crate::Rank;
use crate::tcp::pair::TcpPair;

#[derive(Debug)]
pub(super) struct VerbsTable {
    pub(super) shared: Arc<VerbsShared>,
    state: Mutex<TableState>,
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(super) struct TableState {
    /// The queues, each with the number of its port.
    groups: Vec<(usize, Arc<CompletionGroup>)>,
    pub(super) pairs: HashMap<Rank, PairState>,
    /// Queue pairs, by their port and number.
    by_queue: HashMap<(usize, u32), QueueOwner>,
}

/// To what a queue pair belongs.
#[derive(Clone, Copy, Debug)]
struct QueueOwner {
    peer: Rank,
    path: usize,
    attempt: u32,
    role: QueueRole,
}

impl VerbsTable {
    pub(super) fn new(shared: Arc<VerbsShared>) -> Self {
        Self { shared, state: Mutex::default() }
    }

    /// A panic under the lock is a bug of this library. The state is then useless, but memory-safe.
    pub(super) fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a peer, with a place in a group of each port.
    pub(super) fn add_pair(&self, peer: Rank, control: &Arc<TcpPair>) {
        let mut state = self.lock();
        let domains = 0..self.shared.domains.len();
        let groups = domains.map(|domain| self.take_place(&mut state, domain)).collect();
        let pair = PairState::new(peer, control.clone(), self.shared.clone(), groups);
        state.pairs.insert(peer, pair);
    }

    /// A group of a port, with a place for one more peer.
    fn take_place(
        &self,
        state: &mut TableState,
        domain: usize,
    ) -> Result<Arc<CompletionGroup>, String> {
        for (_, group) in state.groups.iter().filter(|(of, _)| *of == domain) {
            if group.take_place()? {
                return Ok(group.clone());
            }
        }
        let group = CompletionGroup::new(&self.shared.domains[domain])?;
        if !group.take_place()? {
            return Err("a new group has no room".to_owned());
        }
        state.groups.push((domain, group.clone()));
        Ok(group)
    }

    /// Forgets a peer. Its queue pairs are destroyed.
    pub(super) fn remove_pair(&self, peer: Rank) {
        let mut state = self.lock();
        let removed = state.pairs.remove(&peer);
        state.by_queue.retain(|_, owner| owner.peer != peer);
        drop(state);
        drop(removed);
    }

    /// Begins an attempt to make a path. If its first step fails and `tell` is set, the peer is
    /// told.
    pub(super) fn begin_attempt(&self, peer: Rank, attempt: PathAttempt, tell: bool) {
        let path = usize::from(attempt.path);
        let prepared = {
            let state = self.lock();
            let Some(pair) = state.pairs.get(&peer) else { return };
            let Some(domain) = pair.paths.get(path).map(|path| path.domain) else { return };
            (domain, pair.groups[domain].clone())
        };
        let (domain, group) = prepared;
        // Without the lock, because it takes long.
        let made = group.and_then(|group| PathHandshake::prepare(&group, peer));
        let mut state = self.lock();
        state.by_queue.retain(|_, owner| (owner.peer, owner.path) != (peer, path));
        if let Ok((handshake, queues)) = &made {
            let owner = |role| QueueOwner { peer, path, attempt: attempt.number, role };
            let numbers = queues.iter().map(QueuePair::number).enumerate();
            let messages = numbers.map(|(at, number)| (number, QueueRole::Messages(at)));
            for (number, role) in messages.chain([(handshake.own.trial_queue, QueueRole::Trial)]) {
                state.by_queue.insert((domain, number), owner(role));
            }
        }
        if let Some(pair) = state.pairs.get_mut(&peer) {
            pair.begin_attempt(attempt, made, tell);
        }
    }

    /// Handles all completions that are there, and what follows from them. Returns whether there
    /// were any.
    pub(super) fn poll(&self, state: &mut TableState) -> bool {
        let mut any = false;
        loop {
            let mut got = false;
            for index in 0..state.groups.len() {
                got |= poll_group(state, index);
            }
            any |= got;
            if got {
                continue;
            }
            if !self.shared.take_attention() {
                return any;
            }
            let mut ended = false;
            for pair in state.pairs.values_mut() {
                ended |= pair.settle();
            }
            any |= ended;
            if !ended {
                return any;
            }
        }
    }

    /// Asks for an event at the next completion. Poll once more afterwards.
    pub(super) fn arm(&self, state: &TableState) {
        for (_, group) in state.groups.iter().filter(|(_, group)| !group.has_failed()) {
            // If this fails, polling fails too.
            let _ = group.completions.arm();
        }
    }
}

/// Handles completions of a group. Returns whether there were any.
fn poll_group(state: &mut TableState, index: usize) -> bool {
    let TableState { groups, pairs, by_queue } = state;
    let (domain, group) = &groups[index];
    if group.has_failed() {
        return false;
    }
    let mut received = 0;
    let got = group.completions.poll(|completion: Completion| {
        received += usize::from(completion.is_receive);
        let Some(owner) = by_queue.get(&(*domain, completion.queue)) else { return };
        let QueueOwner { peer, path, attempt, role } = *owner;
        if let Some(pair) = pairs.get_mut(&peer) {
            pair.complete((path, attempt, role), &completion);
        }
    });
    // Every immediate value took a receive, in place of which another is posted before its sender
    // can learn that it was taken.
    let posted = if received > 0 { group.receives.post(0, received) } else { Ok(()) };
    match (got, posted) {
        (Ok(got), Ok(())) => got > 0,
        (Err(error), _) | (_, Err(error)) => {
            group.set_failed();
            let why = format!("the queues of the device failed: {error}");
            for pair in pairs.values_mut() {
                pair.port_changed(*domain, Some(&why));
            }
            true
        }
    }
}
