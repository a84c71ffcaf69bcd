//! The plans that a communicator keeps. A full table loses the plan whose last use is longest ago.

use std::collections::HashMap;

use maypole_algorithms::verify::Proved;
use maypole_algorithms::{Collective, DType, RedOp};

use super::Plan;
use crate::call::{Call, Extents, Task};
use crate::error::Error;
use crate::tune::{AlgorithmFilter, Choice};

/// The most plans of collective calls that are kept. A plan has some KiB, so that this is some MiB
/// per communicator.
const MAX_COLLECTIVE_PLANS: usize = 1024;

/// The most plans of collective calls that are found without hashing their key.
const RECENT_PLANS: usize = 32;

/// The most plans of vector calls that are kept. Their blocks may differ in every call.
pub(crate) const MAX_VECTOR_PLANS: usize = 32;

/// The most plans that are kept of calls that select their algorithms, and of calls by a schedule
/// of the caller. These tables are searched from the front to the back.
const MAX_SPECIAL_PLANS: usize = 256;

/// The most broadcasts whose choice and proof are kept for further roots.
pub(crate) const MAX_BROADCASTS: usize = 32;

/// The most plans that are kept in all, that of a barrier included.
#[cfg(test)]
pub(crate) const MAX_KEPT_PLANS: usize =
    MAX_COLLECTIVE_PLANS + MAX_VECTOR_PLANS + 2 * MAX_SPECIAL_PLANS + 1;

/// The key by which the plan of a collective call is found. Buffers and the factor of a rank are
/// not part of the key: they are bound by each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    collective: Collective,
    count: usize,
    dtype: DType,
    op: RedOp,
}

impl PlanKey {
    #[inline]
    pub(crate) fn new(call: &Call) -> Self {
        let Call { collective, count, dtype, reduction, .. } = *call;
        let op = if collective.reduces() { reduction.op } else { RedOp::Max };
        Self { collective, count, dtype, op }
    }

    /// The place of the key among the recent plans: different for the roots of one kind of call,
    /// up to their number.
    #[inline]
    fn place(&self) -> usize {
        let root = self.collective.root().unwrap_or(0) as usize;
        let kind = self.count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - 8);
        (kind + root) % RECENT_PLANS
    }
}

#[derive(PartialEq, Eq)]
struct VectorPlanKey {
    collective: Collective,
    dtype: DType,
    op: RedOp,
    extents: Extents,
}

impl VectorPlanKey {
    fn new(task: &Task) -> Self {
        let Task { collective, dtype, .. } = *task;
        Self { collective, dtype, op: task.reduction().op, extents: task.extents.clone() }
    }
}

/// The plans of a communicator. The number of a plan is valid until the next plan is kept.
#[derive(Default)]
pub(crate) struct Plans {
    plans: Vec<Plan>,
    collective: HashMap<PlanKey, CollectivePlan>,
    /// How many plans of collective calls were looked up in `collective` or made so far.
    uses: u64,
    /// Some plans of the last collective calls, each at the [place](PlanKey::place) of its key, so
    /// that calls that alternate between a few kinds or roots hash nothing.
    recent: [Option<(PlanKey, usize)>; RECENT_PLANS],
    vector: RecentlyUsed<VectorPlanKey>,
    /// The plans of calls that select their algorithms.
    selected: RecentlyUsed<(PlanKey, AlgorithmFilter)>,
    /// The plans by a schedule that the caller provided.
    by_schedule: RecentlyUsed<(PlanKey, Proved)>,
    /// The plan of a barrier.
    barrier: Option<usize>,
    /// The proof and the choice of broadcasts from rank 0, which serve for other roots too.
    broadcasts: RecentlyUsed<VectorPlanKey, (Proved, Choice)>,
}

/// The number of a plan in the index, and its last use.
struct CollectivePlan {
    number: usize,
    used: u64,
}

/// Some values by their keys, the most recently used first: numbers of plans, for example.
struct RecentlyUsed<K, V = usize>(Vec<(K, V)>);

impl<K, V> Default for RecentlyUsed<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K, V> RecentlyUsed<K, V> {
    /// The first value whose key `is` the right one.
    fn find(&mut self, is: impl Fn(&K) -> bool) -> Option<&V> {
        let index = self.0.iter().position(|(key, _)| is(key))?;
        self.0[..=index].rotate_right(1);
        Some(&self.0[0].1)
    }

    /// Makes room for one more value if there are `most`; returns the one that is given up.
    fn make_room(&mut self, most: usize) -> Option<V> {
        if self.0.len() < most { None } else { self.0.pop().map(|(_, value)| value) }
    }

    fn add(&mut self, key: K, value: V) {
        self.0.insert(0, (key, value));
    }
}

impl<K> RecentlyUsed<K> {
    /// Keeps a plan; it replaces the last one if there are `most`.
    fn insert(&mut self, most: usize, key: K, plan: Plan, plans: &mut Vec<Plan>) -> usize {
        let number = put(plans, self.make_room(most), plan);
        self.add(key, number);
        number
    }
}

/// Puts a plan in the place of the `replaced` one, if there is one; returns its number.
fn put(plans: &mut Vec<Plan>, replaced: Option<usize>, plan: Plan) -> usize {
    match replaced {
        Some(number) => {
            plans[number] = plan;
            number
        }
        None => {
            plans.push(plan);
            plans.len() - 1
        }
    }
}

impl Plans {
    /// The number of the plan for `key`, if there is one.
    #[inline]
    pub(crate) fn find(&mut self, key: &PlanKey) -> Option<usize> {
        if let Some((recent, number)) = &self.recent[key.place()]
            && recent == key
        {
            return Some(*number);
        }
        self.look_up(key)
    }

    /// As [`find`](Self::find), for a plan that is not among the recent ones.
    #[cold]
    fn look_up(&mut self, key: &PlanKey) -> Option<usize> {
        let plan = self.collective.get_mut(key)?;
        self.uses += 1;
        plan.used = self.uses;
        self.recent[key.place()] = Some((*key, plan.number));
        Some(plan.number)
    }

    /// Keeps the plan of all calls with this key; returns its number.
    pub(crate) fn insert(&mut self, key: PlanKey, plan: Plan) -> usize {
        let replaced = match self.collective.get(&key) {
            Some(same) => Some(same.number),
            None if self.collective.len() < MAX_COLLECTIVE_PLANS => None,
            None => {
                // Recent plans are used without being looked up.
                let is_recent = |number| self.recent.iter().flatten().any(|(_, n)| *n == number);
                let others = self.collective.iter().filter(|(_, plan)| !is_recent(plan.number));
                let oldest = others.min_by_key(|(_, plan)| plan.used).map(|(key, _)| *key);
                oldest.and_then(|key| self.collective.remove(&key)).map(|plan| plan.number)
            }
        };
        let number = put(&mut self.plans, replaced, plan);
        self.uses += 1;
        self.collective.insert(key, CollectivePlan { number, used: self.uses });
        self.recent[key.place()] = Some((key, number));
        number
    }

    /// The number of the plan for a vector call, if there is one.
    pub(crate) fn find_vector(&mut self, task: &Task) -> Option<usize> {
        let key = VectorPlanKey::new(task);
        self.vector.find(|known| *known == key).copied()
    }

    /// Keeps the plan of vector calls like `task`; returns its number.
    pub(crate) fn insert_vector(&mut self, task: &Task, plan: Plan) -> usize {
        self.vector.insert(MAX_VECTOR_PLANS, VectorPlanKey::new(task), plan, &mut self.plans)
    }

    /// The number of the plan for calls with this key that allow exactly these algorithms, if there
    /// is one.
    pub(crate) fn find_selected(
        &mut self,
        key: &PlanKey,
        algorithms: &AlgorithmFilter,
    ) -> Option<usize> {
        self.selected.find(|(k, a)| k == key && a == algorithms).copied()
    }

    /// Keeps the plan of all calls with this key that allow exactly these algorithms; returns its
    /// number.
    pub(crate) fn insert_selected(
        &mut self,
        key: PlanKey,
        algorithms: AlgorithmFilter,
        plan: Plan,
    ) -> usize {
        self.selected.insert(MAX_SPECIAL_PLANS, (key, algorithms), plan, &mut self.plans)
    }

    /// The number of the plan for calls with this key by `schedule`, if there is one.
    pub(crate) fn find_by_schedule(&mut self, schedule: &Proved, key: &PlanKey) -> Option<usize> {
        self.by_schedule.find(|(k, s)| k == key && s.is_same(schedule)).copied()
    }

    /// Keeps the plan of all calls with this key by `schedule`; returns its number.
    pub(crate) fn insert_by_schedule(
        &mut self,
        schedule: Proved,
        key: PlanKey,
        plan: Plan,
    ) -> usize {
        self.by_schedule.insert(MAX_SPECIAL_PLANS, (key, schedule), plan, &mut self.plans)
    }

    /// The number of the plan for barriers, if there is one.
    pub(crate) fn barrier(&self) -> Option<usize> {
        self.barrier
    }

    /// Keeps the plan of a barrier, for good; returns its number.
    pub(crate) fn insert_barrier(&mut self, plan: Plan) -> usize {
        let number = put(&mut self.plans, self.barrier, plan);
        self.barrier = Some(number);
        number
    }

    /// The choice and the proof for broadcasts like `task`. `make` makes them if they are not kept.
    pub(crate) fn broadcast(
        &mut self,
        task: &Task,
        make: impl FnOnce() -> Result<(Proved, Choice), Error>,
    ) -> Result<(Proved, Choice), Error> {
        let key = VectorPlanKey::new(task);
        if let Some(known) = self.broadcasts.find(|known| *known == key) {
            return Ok(known.clone());
        }
        let made = make()?;
        self.broadcasts.make_room(MAX_BROADCASTS);
        self.broadcasts.add(key, made.clone());
        Ok(made)
    }

    #[inline]
    pub(crate) fn get(&self, number: usize) -> &Plan {
        &self.plans[number]
    }

    /// How many broadcasts have their choice and proof kept.
    #[cfg(test)]
    pub(crate) fn broadcasts(&self) -> usize {
        self.broadcasts.0.len()
    }

    /// How many plans are kept.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.plans.len()
    }
}
