//! The components that have one role in a hierarchy: one collective over groups of several sizes,
//! from several roots.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use super::compose::{RankComponent, ScheduleNeeds};
use crate::collective::generators;
use crate::schedule::{Channel, Class, Operand, Schedule};
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// Gives the schedule of a component for a collective and a rank count, or None if there is none.
/// Any function will do. One that returns hierarchies makes a hierarchy of three levels.
pub type ComponentSource<'a> = &'a dyn Fn(Collective, u32) -> Option<Schedule>;

/// A source that uses the first of `names` for which the collective has a generator.
pub fn named<'a>(names: &'a [&'a str]) -> impl Fn(Collective, u32) -> Option<Schedule> + 'a {
    move |collective, nranks| {
        let generator = |name: &&str| generators(collective).find(|g| g.name == *name);
        Some(names.iter().find_map(generator)?.schedule(collective, nranks))
    }
}

/// The schedules of one role, and where the scratch and the channels of their copies begin.
pub(super) struct ComponentSet {
    /// By rank count and root (0 where the collective has none).
    schedules: HashMap<(u32, Rank), Schedule>,
    /// The largest number of scratch chunks that a schedule needs; likewise channels, lanes of a
    /// rank and credits.
    scratch: u32,
    channels: Channel,
    lanes: u32,
    credit: u32,
    first_scratch: u32,
    first_channel: Channel,
    /// From the channels of one copy to those of the next.
    stride: Channel,
}

impl ComponentSet {
    /// Schedules for the collectives and rank counts in `wanted`; None if `source` lacks one.
    pub(super) fn new(
        source: ComponentSource<'_>,
        wanted: impl IntoIterator<Item = (Collective, u32)>,
    ) -> Option<Self> {
        let mut schedules = HashMap::new();
        for (collective, nranks) in wanted {
            let key = (nranks, collective.root().unwrap_or(0));
            if let Entry::Vacant(vacant) = schedules.entry(key) {
                vacant.insert(source(collective, nranks)?);
            }
        }
        let all = || schedules.values();
        let lanes = |s: &Schedule| (0..s.nranks).map(|r| s.lanes(r)).max().unwrap_or(0);
        let channels = all().map(|s| s.channels).max().unwrap_or(0);
        Some(Self {
            scratch: all().map(|s| s.scratch).max().unwrap_or(0),
            channels,
            stride: channels,
            lanes: all().map(lanes).max().unwrap_or(0),
            credit: all().map(|s| s.credit).max().unwrap_or(1),
            first_scratch: 0,
            first_channel: 0,
            schedules,
        })
    }

    /// The same set with all copies on the same channels, for copies whose links differ anyway.
    pub(super) fn on_other_links(mut self) -> Self {
        self.stride = 0;
        self
    }

    /// Whether no two of the schedules for the same ranks use the same link. False for large rank
    /// counts, where the check would take long.
    fn has_disjoint_links(&self) -> bool {
        const MOST_RANKS: u32 = 64;
        let mut seen = HashSet::new();
        self.all().all(|schedule| {
            let ranks = schedule.nranks;
            let links = (0..ranks).flat_map(|rank| {
                let lanes = 0..schedule.lanes(rank);
                let mut peers: Vec<_> = lanes
                    .flat_map(|lane| schedule.lane(rank, lane))
                    .flat_map(|step| step.outputs.to_vec())
                    .filter_map(|output| match output {
                        Operand::Peer { rank: peer, channel } => Some((rank, peer, channel)),
                        Operand::Local(_) => None,
                    })
                    .collect();
                peers.sort_unstable();
                peers.dedup();
                peers
            });
            ranks <= MOST_RANKS && links.into_iter().all(|link| seen.insert((ranks, link)))
        })
    }

    /// The same set with `copies` side by side on a rank: their scratch is added to `needs`, and
    /// their channels begin at `channel`.
    pub(super) fn placed(
        mut self,
        copies: u32,
        channel: Channel,
        needs: &mut ScheduleNeeds,
    ) -> Self {
        (self.first_scratch, self.first_channel) = (needs.scratch, channel);
        if copies > 1 && self.stride > 0 && self.has_disjoint_links() {
            self.stride = 0;
        }
        needs.scratch += copies * self.scratch;
        needs.channels = needs.channels.max(self.channels_end(copies));
        needs.credit = needs.credit.max(self.credit);
        needs.lanes += self.lanes;
        self
    }

    /// The first channel of copy `copy`.
    fn channel(&self, copy: u32) -> Channel {
        self.first_channel + copy as Channel * self.stride
    }

    /// The first channel after those of `copies` copies.
    pub(super) fn channels_end(&self, copies: u32) -> Channel {
        self.channel(copies - 1) + self.channels
    }

    /// Member `member` of the schedule for `nranks` and `root`, run as often as makes `parts`
    /// parts, as copy `copy`. It runs in place, finishes nothing and waits for nothing; callers
    /// change the fields that differ.
    pub(super) fn component(
        &self,
        (nranks, root): (u32, Rank),
        member: u32,
        parts: u32,
        copy: u32,
    ) -> RankComponent<'_> {
        let schedule = &self.schedules[&(nranks, root)];
        RankComponent {
            schedule,
            member,
            repeats: parts / schedule.parts,
            scratch: self.first_scratch + copy * self.scratch,
            channel: self.channel(copy),
            finishes: false,
            in_place: true,
            follows: [0..0, 0..0],
            guard: None,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Schedule> {
        self.schedules.values()
    }

    /// The largest number of lanes that a rank has in one of the schedules.
    pub(super) fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Whether all schedules are canonical.
    pub(super) fn is_canonical(&self) -> bool {
        self.all().all(|s| s.class == Class::Canonical)
    }

    /// The name of the schedules.
    fn name(&self) -> String {
        let largest = self.all().max_by_key(|s| s.nranks);
        largest.map_or(String::new(), |s| match &s.detail {
            Some(detail) => format!("{} ({detail})", s.name),
            None => s.name.to_owned(),
        })
    }
}

/// The largest number of parts of a block: with more, chunks are too small to be worth a message.
const MOST_PARTS: u32 = 512;

/// The smallest number of parts that every component's number divides; None if it is too large.
pub(super) fn common_parts<'a>(sets: impl IntoIterator<Item = &'a ComponentSet>) -> Option<u32> {
    let mut parts = 1;
    for schedule in sets.into_iter().flat_map(ComponentSet::all) {
        parts = parts / common_divisor(parts, schedule.parts) * schedule.parts;
        if parts > MOST_PARTS {
            return None;
        }
    }
    Some(parts)
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Whether the ranks of each node are a subtree of the canonical tree: consecutive ranks, nodes of
/// one size that is a power of two, the last one perhaps smaller. One node of any size is the tree
/// itself.
pub(super) fn is_aligned(grouping: &Grouping) -> bool {
    let (size, last) = (grouping.size(0), grouping.nodes() - 1);
    let consecutive =
        (0..grouping.nranks()).all(|r| grouping.node(r) * size + grouping.local_rank(r) == r);
    consecutive
        && (last == 0 || size.is_power_of_two() && grouping.size(last) <= size)
        && (0..last).all(|node| grouping.size(node) == size)
}

/// Whether all nodes have the same size.
pub(super) fn has_equal_nodes(grouping: &Grouping) -> bool {
    (0..grouping.nodes()).all(|node| grouping.size(node) == grouping.size(0))
}

/// The sizes of the nodes.
pub(super) fn node_sizes(grouping: &Grouping) -> impl Iterator<Item = u32> + Clone + '_ {
    (0..grouping.nodes()).map(|node| grouping.size(node))
}

/// The text in which a schedule describes its components.
pub(super) fn detail(
    grouping: &Grouping,
    rails: u32,
    intra: &[&ComponentSet],
    inter: &ComponentSet,
) -> String {
    let intra: Vec<_> = intra.iter().map(|set| set.name()).collect();
    let inter = inter.name();
    let nodes = match grouping.nodes() {
        0..=16 => grouping.to_string(),
        nodes => format!("{nodes} nodes"),
    };
    let plural = if rails == 1 { "" } else { "s" };
    format!("{} in {nodes}, {inter} between, {rails} rail{plural}", intra.join(" and "))
}
