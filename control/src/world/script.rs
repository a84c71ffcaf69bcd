//! What happens in a simulated world: the programs of the ranks, and what disturbs them.

use std::time::Duration;

use super::random::Random;

/// What happens in one world.
#[derive(Clone, Debug)]
pub(super) struct Script {
    /// The seed of all delays.
    pub(super) seed: u64,
    /// The host of each rank.
    pub(super) hosts: Vec<u32>,
    /// What each rank does. After its last action it leaves.
    pub(super) programs: Vec<Vec<Action>>,
    pub(super) disturbances: Vec<(Duration, Disturbance)>,
    /// After how long a wait is an error.
    pub(super) timeout: Option<Duration>,
    /// The longest delay of a frame or a message.
    pub(super) delay: Duration,
}

/// An action of the program of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Computes, or is idle.
    Compute(Duration),
    /// Makes a call of this many elements.
    Call(CallKind, u64),
    /// Takes part in an exchange over the control tree, as a split does.
    Exchange,
    /// Aborts the communicator.
    Abort,
    /// Ends the process with `exit`, which leaves the communicator.
    Exit,
}

/// Which ranks a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallKind {
    /// Every rank waits for all others.
    AllReduce,
    /// Every rank but the root waits for the root.
    Broadcast(u32),
    /// A broadcast in which every rank says that it is the root, so that no rank waits.
    OwnBroadcast,
}

/// Something that a program does not expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// The process of a rank ends without leaving. A child that it forked holds its connections for
    /// this time.
    Kill(u32, Duration),
    /// The process of a rank stands still.
    Stop(u32, Duration),
    /// The clock of a rank jumps by this many milliseconds.
    JumpClock(u32, i64),
    /// Nothing passes between a rank and its parent in the tree.
    Stall(u32, Duration),
    /// The connection of a rank to its parent in the tree breaks.
    Break(u32),
    /// A rank sends its neighbours frames that are well-formed and wrong.
    Lie(u32),
}

impl Script {
    /// The world of this seed, of up to `most_ranks` ranks.
    pub(super) fn random(seed: u64, most_ranks: u32) -> Self {
        let mut random = Random::new(seed);
        let nranks = match random.below(4) {
            0 => 2 + random.below(3),
            1 => 2 + random.below(u64::from(most_ranks - 1)),
            _ => 2 + random.below(u64::from(most_ranks.min(9) - 1)),
        } as u32;
        let per_host = 1 + random.below(u64::from(nranks)) as u32;
        let mut program = Vec::new();
        for _ in 0..1 + random.below(12) {
            program.push(match random.below(8) {
                0 => Action::Compute(random.up_to(Duration::from_secs(4))),
                1 => Action::Exchange,
                2 | 3 => {
                    let root = random.below(u64::from(nranks)) as u32;
                    Action::Call(CallKind::Broadcast(root), random.below(9))
                }
                _ => Action::Call(CallKind::AllReduce, random.below(9)),
            });
        }
        let mut script = Self {
            seed,
            hosts: (0..nranks).map(|rank| rank / per_host).collect(),
            programs: vec![program; nranks as usize],
            disturbances: Vec::new(),
            timeout: random.one_in(4).then(|| Duration::from_secs(5 + random.below(20))),
            delay: Duration::from_micros(50 << random.below(12)),
        };
        for rank in 0..nranks as usize {
            if random.one_in(3) {
                let late = random.up_to(Duration::from_secs(8));
                script.programs[rank].insert(0, Action::Compute(late));
            }
        }
        match random.below(6) {
            0 => script.add_flaw(&mut random),
            1 => {
                script.add_flaw(&mut random);
                script.add_disturbances(&mut random);
            }
            2..5 => script.add_disturbances(&mut random),
            _ => {}
        }
        script
    }

    /// The number of ranks.
    pub(super) fn nranks(&self) -> u32 {
        self.programs.len() as u32
    }

    /// Gives the world this many ranks: those to come do what the first ones do.
    pub(super) fn resize(&mut self, nranks: usize) {
        let (first, hosts) = (self.programs.clone(), self.hosts.clone());
        self.programs = first.iter().cycle().take(nranks).cloned().collect();
        self.hosts = hosts.iter().cycle().take(nranks).copied().collect();
        // A call of all ranks has a million messages, so there are few.
        self.programs.iter_mut().for_each(|program| program.truncate(3));
    }

    /// Lets one rank differ from the others.
    fn add_flaw(&mut self, random: &mut Random) {
        let rank = random.below(self.programs.len() as u64) as usize;
        let idle = Action::Compute(Duration::from_secs(3));
        let at = random.below(self.programs[rank].len() as u64 + 1) as usize;
        match random.below(6) {
            0 => self.programs[rank].insert(at, Action::Abort),
            1 => self.programs[rank].insert(at, Action::Exit),
            2 => self.programs[rank].truncate(at),
            3 => {
                // No rank waits, and all differ.
                let own = Action::Call(CallKind::OwnBroadcast, 7);
                self.programs.iter_mut().for_each(|program| program.extend([own, idle]));
            }
            4 => {
                let call = Action::Call(CallKind::AllReduce, 100);
                self.programs[rank].insert(at, call);
            }
            _ => {
                let is_call = |action: &Action| matches!(action, Action::Call(..));
                if let Some(at) = self.programs[rank].iter().rposition(is_call) {
                    self.programs[rank].remove(at);
                    self.programs.iter_mut().for_each(|program| program.push(idle));
                }
            }
        }
    }

    fn add_disturbances(&mut self, random: &mut Random) {
        let nranks = u64::from(self.nranks());
        for _ in 0..1 + random.below(4) {
            let rank = random.below(nranks) as u32;
            let time = random.up_to(Duration::from_secs(8));
            let disturbance = match random.below(16) {
                0..5 => Disturbance::Kill(rank, Duration::ZERO),
                5 => Disturbance::Kill(rank, random.up_to(Duration::from_secs(20))),
                6..9 => Disturbance::Stop(rank, random.up_to(Duration::from_secs(30))),
                9 | 10 => {
                    let jump = random.below(120_000) as i64 - 60_000;
                    Disturbance::JumpClock(rank, jump)
                }
                11 | 12 => Disturbance::Stall(rank, random.up_to(Duration::from_secs(10))),
                13 => Disturbance::Break(rank),
                14 if random.one_in(3) => Disturbance::Lie(rank),
                _ => Disturbance::Stop(rank, random.up_to(Duration::from_secs(3))),
            };
            self.disturbances.push((time, disturbance));
        }
    }

    /// Scripts that are a little shorter than this one.
    pub(super) fn shorter(&self) -> Vec<Self> {
        let mut shorter = Vec::new();
        let nranks = self.programs.len();
        for keep in [nranks / 2, nranks - 1] {
            if keep >= 2 && keep < nranks {
                let mut script = self.clone();
                script.programs.truncate(keep);
                script.hosts.truncate(keep);
                script.disturbances.retain(|(_, it)| (it.rank() as usize) < keep);
                for action in script.programs.iter_mut().flatten() {
                    if let Action::Call(CallKind::Broadcast(root), _) = action {
                        *root %= keep as u32;
                    }
                }
                shorter.push(script);
            }
        }
        for at in 0..self.disturbances.len() {
            let mut script = self.clone();
            script.disturbances.remove(at);
            shorter.push(script);
        }
        let longest = self.programs.iter().map(Vec::len).max().unwrap_or(0);
        for at in 0..longest {
            let mut script = self.clone();
            for program in script.programs.iter_mut().filter(|program| program.len() > at) {
                program.remove(at);
            }
            shorter.push(script);
        }
        for (rank, program) in self.programs.iter().enumerate() {
            for (at, action) in program.iter().enumerate() {
                if matches!(action, Action::Compute(_)) {
                    let mut script = self.clone();
                    script.programs[rank].remove(at);
                    shorter.push(script);
                }
            }
        }
        shorter
    }
}

impl Disturbance {
    /// The rank that is disturbed.
    pub(super) fn rank(self) -> u32 {
        match self {
            Self::Kill(rank, _)
            | Self::Stop(rank, _)
            | Self::JumpClock(rank, _)
            | Self::Stall(rank, _)
            | Self::Break(rank)
            | Self::Lie(rank) => rank,
        }
    }
}
