//! Which launcher started this process, read from the environment alone: nothing is opened here, so that every launcher's
//! variables can be tested without it.

use std::os::fd::RawFd;

use super::{pmi, pmix, slurm, torchrun};

/// What a launcher says of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Who says so, for people.
    pub(super) launcher: &'static str,
    /// This process' number.
    pub(super) rank: u32,
    /// How many processes there are.
    pub(super) nranks: u32,
    /// How they find one another.
    pub(super) way: Way,
}

/// How the processes of a job find one another, and so how the job's secret gets about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Rank 0 publishes address and secret over the launcher's own channel: PMI-1 at this descriptor.
    Pmi(RawFd),
    /// The same by way of PMIx. Where libpmix is missing and all processes are on this host, at this abstract socket.
    Pmix(Option<String>),
    /// Rank 0 listens at this abstract socket; the kernel vouches for who is at the other end. All are on this host.
    Host(String),
    /// Rank 0 listens at the first free one of these ports; everyone knows the secret from a file. As an address may turn
    /// out to be this host's, where none is needed, the socket to use then.
    Dial { host: String, port: u16, here: String },
}

/// Reads a variable; an empty one is not set.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The job that a launcher's variables describe, if it has set them.
type Reader = fn(Lookup) -> Result<Option<Job>, String>;

/// Whose choice it is where several launchers have left their variables.
pub(super) const CHOICE: &str = "MAYPOLE_LAUNCHER";

/// A launcher by the name that [`CHOICE`] takes. The order is that of nesting: who is started by another comes first.
const LAUNCHERS: [(&str, Reader); 4] =
    [("torchrun", torchrun::job), ("pmi", pmi::job), ("pmix", pmix::job), ("slurm", slurm::job)];

/// The job that this process is of, or None if no launcher started it.
///
/// # Errors
/// A sentence: a launcher is there and cannot be used, or was asked for and is not there.
pub(super) fn job(lookup: Lookup) -> Result<Option<Job>, String> {
    let wanted = lookup(CHOICE);
    let of_wanted = match wanted.as_deref() {
        None => None,
        Some("none") => return Ok(None),
        Some(name) => match LAUNCHERS.iter().find(|(known, _)| *known == name) {
            Some(found) => Some(found),
            None => {
                let names: Vec<_> = LAUNCHERS.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                return Err(format!("{CHOICE}={name} is no launcher; there are {names}, and none"));
            }
        },
    };
    if let Some((name, read)) = of_wanted {
        let job = read(lookup)?;
        let missing = || {
            format!(
                "{CHOICE}={name}, but {name} has set none of its variables, or not both a rank and a number of ranks; \
                 docs/launchers.md lists them"
            )
        };
        return job.map(Some).ok_or_else(missing);
    }
    for (_, read) in LAUNCHERS {
        if let Some(job) = read(lookup)? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// The number that a variable holds, if it is set.
pub(super) fn number(lookup: Lookup, name: &str) -> Result<Option<u32>, String> {
    let Some(text) = lookup(name) else { return Ok(None) };
    text.trim().parse().map(Some).map_err(|_| format!("{name}={text} is not a number"))
}

/// Rank and number of ranks, checked; None unless both are set.
pub(super) fn place(
    lookup: Lookup,
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

    /// The job under these variables.
    pub(in super::super) fn under(variables: &[(&str, &str)]) -> Result<Option<Job>, String> {
        job(&|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned()).filter(|value| !value.is_empty())
        })
    }

    const TORCH: [(&str, &str); 5] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ];

    #[test]
    fn nobody_is_no_launcher() {
        assert_eq!(under(&[]), Ok(None));
        assert_eq!(under(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn the_inner_launcher_counts_unless_another_is_asked_for() {
        let both = [&TORCH[..], &[("PMI_FD", "6"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")]].concat();
        assert_eq!(under(&both).unwrap().unwrap().launcher, "torchrun");
        let pmi = [&both[..], &[(CHOICE, "pmi")]].concat();
        let job = under(&pmi).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.way), (0, 2, Way::Pmi(6)));
        assert_eq!(under(&[&both[..], &[(CHOICE, "none")]].concat()), Ok(None));
        assert!(under(&[(CHOICE, "slurm")]).unwrap_err().contains("none of its variables"));
        assert!(under(&[(CHOICE, "x")]).unwrap_err().contains("torchrun, pmi, pmix, slurm"));
    }

    #[test]
    fn a_rank_beyond_the_end_is_refused() {
        let mut variables = TORCH;
        variables[0].1 = "4";
        assert_eq!(under(&variables).unwrap_err(), "RANK=4 is not below WORLD_SIZE=4");
        variables[0].1 = "x";
        assert_eq!(under(&variables).unwrap_err(), "RANK=x is not a number");
    }
}
