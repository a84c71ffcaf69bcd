//! What the variables of a launcher say about this process, and how such variables are read.
//!
//! Only the environment is read here and nothing is opened, so the variables of every launcher can
//! be tested without the launcher.

use std::os::fd::RawFd;

/// What a launcher says about this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LauncherJob {
    /// The launcher's name in messages.
    pub(super) launcher: &'static str,
    /// The rank of this process.
    pub(super) rank: u32,
    /// The number of processes of the job.
    pub(super) nranks: u32,
    /// How the processes find each other.
    pub(super) method: RendezvousMethod,
}

/// The interface of an MPI launcher to the processes that it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessManagement {
    /// PMI-1, of MPICH and Intel MPI.
    Pmi1,
    /// PMIx, of Open MPI.
    Pmix,
}

impl LauncherJob {
    /// The launcher's name, for messages.
    pub fn launcher(&self) -> &'static str {
        self.launcher
    }

    /// The rank of this process.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// The number of processes of the job.
    pub fn nranks(&self) -> u32 {
        self.nranks
    }

    /// The interface of the MPI launcher that started this process; None for other launchers.
    pub fn process_management(&self) -> Option<ProcessManagement> {
        match self.method {
            RendezvousMethod::Pmi(_) => Some(ProcessManagement::Pmi1),
            RendezvousMethod::Pmix { .. } => Some(ProcessManagement::Pmix),
            RendezvousMethod::HostSocket(_) | RendezvousMethod::Port { .. } => None,
        }
    }
}

/// How the processes of a job find each other. This decides how they get the job's secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RendezvousMethod {
    /// Rank 0 publishes its address and a secret over the launcher's PMI-1 channel, which is this
    /// descriptor.
    Pmi(RawFd),
    /// Rank 0 publishes its address and a secret over PMIx. If libpmix is missing and all processes
    /// are on this host, rank 0 listens at the abstract socket of this name instead.
    Pmix { host_socket: Option<String> },
    /// Rank 0 listens at the abstract socket of this name. All processes are on this host, and the
    /// kernel tells each which user is at the other end, so no secret is needed.
    HostSocket(String),
    /// Rank 0 listens at the first free one of the ports from `port` on, and all ranks have the
    /// secret in a file. If `host` turns out to be this host, no secret is needed: rank 0 then
    /// listens at the abstract socket `host_socket`.
    Port { host: String, port: u16, host_socket: String },
}

/// Reads a variable. An empty variable counts as not set.
pub(super) type VariableLookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The number that a variable holds; None if it is not set.
pub(super) fn number(lookup: VariableLookup, name: &str) -> Result<Option<u32>, String> {
    let Some(text) = lookup(name) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| format!("{name}={text} is not a number"))
}

/// The rank and the number of ranks in these two variables; None unless both are set.
pub(super) fn rank_of_nranks(
    lookup: VariableLookup,
    rank: &str,
    nranks: &str,
) -> Result<Option<(u32, u32)>, String> {
    let (Some(mine), Some(all)) = (number(lookup, rank)?, number(lookup, nranks)?) else {
        return Ok(None);
    };
    if mine >= all {
        return Err(format!("{rank}={mine} is not below {nranks}={all}"));
    }
    Ok(Some((mine, all)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads from these variables, as if they were the environment.
    pub(in super::super) fn variables(
        variables: &[(&str, &str)],
    ) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned()).filter(|value| !value.is_empty())
        }
    }

    #[test]
    fn a_rank_beyond_the_end_is_refused() {
        let read = |rank| rank_of_nranks(&variables(&[("R", rank), ("N", "4")]), "R", "N");
        assert_eq!(read("3"), Ok(Some((3, 4))));
        assert_eq!(read("4").unwrap_err(), "R=4 is not below N=4");
        assert_eq!(read("x").unwrap_err(), "R=x is not a number");
        assert_eq!(read(""), Ok(None));
    }
}
