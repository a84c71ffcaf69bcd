//! The three kinds of phases that hierarchical reduce and broadcast share: within every node,
//! between the nodes on every rail, and on the root's node between its carriers.

use super::components::{ComponentSet, ComponentSource, has_equal_nodes, named};
use super::compose::RankComponent;
use super::rails::Rails;
use crate::topology::Grouping;
use crate::types::{Collective, Rank};

/// The collectives of the phases.
pub(super) struct RootedCollectives {
    /// Within a node over all pieces at once, where every rank carries a rail.
    pub(super) whole: Collective,
    /// Within a node for one piece, and between nodes: the collective from or to a root.
    pub(super) rooted: fn(Rank) -> Collective,
    /// On the root's node, between the root and the other carriers.
    pub(super) on_root_node: fn(Rank) -> Collective,
}

/// The components of the phases.
pub(super) struct RootedPhases {
    pub(super) rails: Rails,
    /// Components side by side within a node: one for each rail, or one for all.
    pub(super) groups: u32,
    /// Parts per piece.
    pub(super) piece: u32,
    pub(super) within: ComponentSet,
    pub(super) across: ComponentSet,
    pub(super) on_root_node: ComponentSet,
}

impl RootedPhases {
    /// The phases over `rails` rails, with components from `intra` within nodes and from `inter`
    /// between them. `piece` is 0 until it is set. None if a component is lacking or there are no
    /// such rails.
    pub(super) fn new(
        grouping: &Grouping,
        (root, rails): (Rank, u32),
        collectives: &RootedCollectives,
        intra: ComponentSource<'_>,
        inter: ComponentSource<'_>,
    ) -> Option<Self> {
        let rails = Rails::new(grouping, rails, root)?;
        let RootedCollectives { whole, rooted, on_root_node } = *collectives;
        let all_carry = has_equal_nodes(grouping) && rails.count == grouping.size(0);
        let whole = all_carry.then(|| ComponentSet::new(intra, [(whole, rails.count)])).flatten();
        let (groups, within) = match whole {
            Some(set) => (1, set),
            None => {
                let rooted_ones =
                    rails.sizes_and_carriers().map(|(size, root)| (rooted(root), size));
                (rails.count, ComponentSet::new(intra, rooted_ones)?)
            }
        };
        let across = ComponentSet::new(inter, [(rooted(rails.root_node()), grouping.nodes())])?;
        let on_root_node = [(on_root_node(rails.root_rail()), rails.count)];
        let on_root_node = ComponentSet::new(&named(&["direct"]), on_root_node)?;
        Some(Self { rails, groups, piece: 0, within, across, on_root_node })
    }

    /// The component of `rank` within its node in `group`.
    pub(super) fn within(&self, rank: Rank, group: u32) -> RankComponent<'_> {
        let Self { rails, groups, piece, within, .. } = self;
        let (node, local) = (rails.grouping.node(rank), rails.grouping.local_rank(rank));
        let root = if *groups == rails.count { rails.local_carrier(node, group) } else { 0 };
        within.component((rails.grouping.size(node), root), local, *piece, group)
    }

    /// The component of `rank` between nodes; None if it carries no rail.
    pub(super) fn across(&self, rank: Rank) -> Option<RankComponent<'_>> {
        let Self { rails, piece, across, .. } = self;
        rails.rail_of(rank)?;
        let (nodes, node) = (rails.grouping.nodes(), rails.grouping.node(rank));
        Some(across.component((nodes, rails.root_node()), node, *piece, 0))
    }

    /// The component of `rank` on the root's node; None if it is not a carrier there, or if the
    /// root is the only one.
    pub(super) fn on_root_node(&self, rank: Rank) -> Option<RankComponent<'_>> {
        let Self { rails, piece, on_root_node, .. } = self;
        let rail = rails.rail_of(rank)?;
        let takes_part = rails.count > 1 && rails.grouping.node(rank) == rails.root_node();
        takes_part
            .then(|| on_root_node.component((rails.count, rails.root_rail()), rail, *piece, 0))
    }

    /// The rank that is `member` of the component of `rank` within its node.
    pub(super) fn member_within(&self, rank: Rank, member: u32) -> Rank {
        let grouping = &self.rails.grouping;
        grouping.ranks_of(grouping.node(rank))[member as usize]
    }

    /// The rank that is `member` of the component of `rank` between nodes.
    pub(super) fn member_across(&self, rank: Rank, member: u32) -> Rank {
        self.rails.carrier(member, self.own_rail(rank))
    }

    /// The rank that is `member` of the component on the root's node.
    pub(super) fn member_on_root_node(&self, member: u32) -> Rank {
        self.rails.carrier(self.rails.root_node(), member)
    }

    /// The rail of a rank that takes part in a phase between nodes.
    pub(super) fn own_rail(&self, rank: Rank) -> u32 {
        self.rails.rail_of(rank).expect("only carriers have components between nodes")
    }
}
