//! The groups of NCCL_TESTS_SPLIT: processes of one color form a group with a communicator of its
//! own. All groups are measured at once.

use crate::options::Options;

/// A rank's group, and its rank there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RankGroup {
    /// The rank in the group.
    pub(crate) rank: u32,
    /// The number of ranks of the group.
    pub(crate) nranks: u32,
    /// The group's rank 0, as a rank among all.
    pub(crate) leader: u32,
    /// The number of ranks of the smallest group.
    pub(crate) smallest: u32,
}

impl RankGroup {
    /// The group of the `index`th rank of a process.
    pub(crate) fn new(options: &Options, process: u32, processes: u32, index: u32) -> Self {
        let per_process = options.ranks_per_process();
        let color = |process| options.variables.split.map_or(0, |split| split.color(process));
        let members = |wanted| (0..processes).filter(move |&other| color(other) == wanted);
        let mine = color(process);
        let before = members(mine).take_while(|&other| other < process).count() as u32;
        let sizes = (0..processes).map(|process| members(color(process)).count() as u32);
        Self {
            rank: before * per_process + index,
            nranks: members(mine).count() as u32 * per_process,
            leader: members(mine).next().unwrap_or(process) * per_process,
            smallest: sizes.min().unwrap_or(1) * per_process,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::TestVariables;
    use crate::options::variables::ProcessSplit;

    #[test]
    fn processes_of_one_color_form_a_group() {
        let variables =
            TestVariables { split: Some(ProcessSplit::Mod(2)), ..TestVariables::default() };
        let options = Options { threads: 2, variables, ..Options::default() };
        let group = |process, index| RankGroup::new(&options, process, 5, index);
        assert_eq!(group(3, 1), RankGroup { rank: 3, nranks: 4, leader: 2, smallest: 4 });
        assert_eq!(group(4, 0), RankGroup { rank: 4, nranks: 6, leader: 0, smallest: 4 });
        let whole = RankGroup::new(&Options::default(), 3, 5, 0);
        assert_eq!(whole, RankGroup { rank: 3, nranks: 5, leader: 0, smallest: 5 });
    }
}
