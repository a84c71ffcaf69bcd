//! What happens in a world in which ranks join.

use std::time::Duration;

use maypole_algorithms::Rank;

use super::random::Random;
use crate::root_share::RootShare;

/// How long ranks wait for each other.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a shrink, which must end long before, whatever happens.
const SHRINK_TIMEOUT: Duration = Duration::from_secs(300);

/// What happens in one world.
#[derive(Clone, Debug)]
pub(super) struct JoinScript {
    pub(super) seed: u64,
    pub(super) nranks: u32,
    pub(super) nroots: usize,
    /// The ranks are survivors of a communicator.
    pub(super) shrinks: bool,
    pub(super) delay: Duration,
    /// When each process starts, and as which rank.
    pub(super) processes: Vec<(Duration, Rank)>,
    /// What disturbs the world.
    pub(super) flaws: Vec<JoinFlaw>,
}

/// What disturbs a world. Processes are named by their position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinFlaw {
    /// A process ends at this time.
    Kill(usize, Duration),
    /// The user of a process aborts at this time.
    Abort(usize, Duration),
    /// A process says that there are more ranks.
    OtherCount(usize),
    /// A survivor leaves the communicator, and does not come to the shrink.
    Leave(usize),
}

impl JoinScript {
    /// How long the ranks wait for each other.
    pub(super) fn timeout(&self) -> Duration {
        if self.shrinks { SHRINK_TIMEOUT } else { TIMEOUT }
    }

    pub(super) fn random(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x101);
        let most = if random.one_in(8) { 62 } else { 9 };
        let nranks = 2 + random.below(most) as u32;
        let shrinks = random.one_in(3);
        let nroots = if shrinks || random.one_in(2) { 1 } else { 1 + random.below(3) as usize };
        let is_late = random.one_in(2);
        let mut processes: Vec<(Duration, Rank)> = (0..nranks)
            .map(|rank| {
                let late =
                    if is_late { random.up_to(Duration::from_secs(6)) } else { Duration::ZERO };
                (late, rank)
            })
            .collect();
        let mut flaws = Vec::new();
        let any = |random: &mut Random| random.below(u64::from(nranks)) as usize;
        match random.below(7) {
            0 | 1 | 5 if shrinks => flaws.push(JoinFlaw::Leave(any(&mut random))),
            0 => drop(processes.remove(any(&mut random))),
            1 => {
                let at = Duration::from_secs(1) + random.up_to(Duration::from_secs(4));
                processes.push((at, any(&mut random) as Rank));
            }
            2 | 3 => {
                let time = random.up_to(Duration::from_secs(4));
                flaws.push(JoinFlaw::Kill(any(&mut random), time));
            }
            4 => {
                let time = random.up_to(Duration::from_secs(4));
                // Sometimes a rank does not come, so that all others wait.
                if random.one_in(2) && !shrinks {
                    processes.remove(any(&mut random));
                }
                let by = random.below(processes.len() as u64) as usize;
                flaws.push(JoinFlaw::Abort(by, time));
            }
            5 => flaws.push(JoinFlaw::OtherCount(any(&mut random))),
            _ => {}
        }
        let delay = Duration::from_micros(50 << random.below(16));
        let nroots = nroots.min(nranks as usize);
        Self { seed, nranks, nroots, shrinks, delay, processes, flaws }
    }

    /// The ranks that a root serves.
    pub(super) fn share(&self, root: usize) -> RootShare {
        RootShare { index: root as u32, count: self.nroots as u32, fingerprint: 7 }
    }

    /// Scripts that are a little shorter than this one.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        for keep in [self.nranks / 2, self.nranks - 1] {
            if keep >= 2 && keep < self.nranks {
                shorter.push(self.with_ranks(keep));
            }
        }
        for at in 0..self.flaws.len() {
            let mut script = self.clone();
            script.flaws.remove(at);
            shorter.push(script);
        }
        if self.nroots > 1 {
            shorter.push(Self { nroots: self.nroots - 1, ..self.clone() });
        }
        let late = |at: &usize| !self.processes[*at].0.is_zero();
        for at in (0..self.processes.len()).filter(late) {
            let mut script = self.clone();
            script.processes[at].0 = Duration::ZERO;
            shorter.push(script);
        }
        shorter
    }

    /// The same with fewer ranks.
    fn with_ranks(&self, nranks: u32) -> Self {
        let mut script = self.clone();
        script.nranks = nranks;
        script.nroots = self.nroots.min(nranks as usize);
        script.processes.retain(|(_, rank)| *rank < nranks);
        let stays = |process: usize| {
            let position =
                |at: usize| self.processes[..at].iter().filter(|(_, rank)| *rank < nranks).count();
            let (_, rank) = *self.processes.get(process)?;
            (rank < nranks).then(|| position(process))
        };
        let moved = |flaw: &JoinFlaw| {
            Some(match *flaw {
                JoinFlaw::Kill(process, time) => JoinFlaw::Kill(stays(process)?, time),
                JoinFlaw::Abort(process, time) => JoinFlaw::Abort(stays(process)?, time),
                JoinFlaw::OtherCount(process) => JoinFlaw::OtherCount(stays(process)?),
                JoinFlaw::Leave(process) => JoinFlaw::Leave(stays(process)?),
            })
        };
        script.flaws = self.flaws.iter().filter_map(moved).collect();
        script
    }
}
