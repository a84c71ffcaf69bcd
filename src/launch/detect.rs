//! Detects which launcher started this process.
//!
//! A launcher may be started by another one, and variables of an earlier one may be left in the
//! environment. Then the innermost launcher counts: the one whose variables an ancestor of this
//! process near to it did not have yet. If that cannot be known and the launchers disagree, it is
//! an error, since a process that took the wrong ones would run alone without a word.

use super::job::{LauncherJob, VariableLookup};
use super::{pmi, pmix, slurm, torchrun};

/// The variable by which the user chooses a launcher if the variables of several are set.
const CHOICE: &str = "MAYPOLE_LAUNCHER";

/// A launcher that can be detected.
struct KnownLauncher {
    /// The name that [`CHOICE`] takes.
    name: &'static str,
    /// Reads its variables: None if the launcher did not set them.
    read: fn(VariableLookup) -> Result<Option<LauncherJob>, String>,
    /// The variables that say the rank and the number of ranks, or the job.
    variables: &'static [&'static str],
}

/// The launchers. Of two that agree the first one is used, whose channel is the better one.
const LAUNCHERS: [KnownLauncher; 4] = [
    KnownLauncher {
        name: "torchrun",
        read: torchrun::job,
        variables: &["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"],
    },
    KnownLauncher {
        name: "pmi",
        read: pmi::job,
        variables: &["PMI_RANK", "PMI_SIZE", "PMI_FD", "PMI_PORT"],
    },
    KnownLauncher {
        name: "pmix",
        read: pmix::job,
        variables: &[
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "PMIX_NAMESPACE",
            "PMIX_RANK",
            "OMPI_MCA_ess_base_jobid",
        ],
    },
    KnownLauncher {
        name: "slurm",
        read: slurm::job,
        variables: &["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID"],
    },
];

/// A variable of an ancestor of this process, by the number of generations between them, from 1
/// for its parent. The outer None: there is no such ancestor, or its variables cannot be read.
pub(super) type AncestorLookup<'a> = &'a dyn Fn(u32, &str) -> Option<Option<String>>;

/// What one launcher's variables say.
struct Candidate {
    launcher: &'static KnownLauncher,
    job: Result<LauncherJob, String>,
    /// The nearest ancestor that did not have these variables; None if none is known.
    generation: Option<u32>,
}

/// The job that this process belongs to; None if no launcher started it.
///
/// # Errors
/// A sentence for the user: a launcher's variables cannot be used, those of several launchers
/// contradict each other, or the launcher that [`CHOICE`] names did not start this process.
pub(super) fn detect(
    lookup: VariableLookup,
    ancestors: AncestorLookup,
) -> Result<Option<LauncherJob>, String> {
    if let Some(name) = lookup(CHOICE) {
        return chosen(&name, lookup);
    }
    let candidates = LAUNCHERS.iter().filter_map(|launcher| {
        let job = (launcher.read)(lookup).transpose()?;
        Some(Candidate { launcher, job, generation: None })
    });
    let mut candidates: Vec<Candidate> = candidates.collect();
    if candidates.len() > 1 {
        for candidate in &mut candidates {
            candidate.generation = set_after(candidate.launcher, lookup, ancestors);
        }
        let nearest = candidates.iter().filter_map(|candidate| candidate.generation).min();
        candidates.retain(|candidate| candidate.generation == nearest);
        check_agreement(&candidates)?;
    }
    candidates.into_iter().next().map(|candidate| candidate.job).transpose()
}

/// The nearest ancestor that does not have the launcher's variables as this process has them.
fn set_after(
    launcher: &KnownLauncher,
    lookup: VariableLookup,
    ancestors: AncestorLookup,
) -> Option<u32> {
    for generation in 1.. {
        for name in launcher.variables {
            if ancestors(generation, name)? != lookup(name) {
                return Some(generation);
            }
        }
    }
    None
}

/// Checks that launchers of which none is known to be the innermost say the same.
fn check_agreement(candidates: &[Candidate]) -> Result<(), String> {
    let place =
        |candidate: &Candidate| candidate.job.as_ref().ok().map(|job| (job.rank(), job.nranks()));
    let Some(first) = candidates.first().map(place) else { return Ok(()) };
    if candidates.iter().all(|candidate| place(candidate) == first) {
        return Ok(());
    }
    let said = candidates.iter().map(|candidate| match &candidate.job {
        Ok(job) => {
            let name = candidate.launcher.name;
            format!("{name} says rank {} of {}", job.rank(), job.nranks())
        }
        Err(text) => format!("{} says: {text}", candidate.launcher.name),
    });
    Err(format!(
        "the variables of several launchers are set, and contradict each other ({}): set {CHOICE} \
         to the one that counts, or to none to run as the only rank",
        said.collect::<Vec<_>>().join("; ")
    ))
}

/// A variable that an ancestor of this process was started with, as [`AncestorLookup`] wants it.
pub(super) fn variable_of_ancestor(generation: u32, name: &str) -> Option<Option<String>> {
    let mut pid = std::process::id();
    for _ in 0..generation {
        pid = parent(pid).filter(|&parent| parent > 0)?;
    }
    let variables = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let found = variables
        .split(|&byte| byte == 0)
        .find_map(|variable| variable.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
    let value = found.map(|value| String::from_utf8_lossy(value).into_owned());
    Some(value.filter(|value| !value.is_empty()))
}

fn parent(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may contain anything.
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The job of the launcher that the user chose.
fn chosen(name: &str, lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    if name == "none" {
        return Ok(None);
    }
    let Some(launcher) = LAUNCHERS.iter().find(|known| known.name == name) else {
        let names = LAUNCHERS.map(|launcher| launcher.name).join(", ");
        return Err(format!(
            "{CHOICE}={name} does not name a launcher; use one of {names}, or none"
        ));
    };
    let job = (launcher.read)(lookup)?;
    let missing = || {
        format!(
            "{CHOICE}={name}, but {name} has set none of its variables, or not both a rank and a \
             number of ranks; docs/launchers.md lists them"
        )
    };
    job.map(Some).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::super::job::RendezvousMethod;
    use super::super::job::tests::variables;
    use super::*;

    type Variables<'a> = &'a [(&'a str, &'a str)];

    /// Detects among these variables, for a process whose ancestors had those, parents first.
    fn detect_among(
        set: Variables,
        ancestors: &[Variables],
    ) -> Result<Option<LauncherJob>, String> {
        detect(&variables(set), &|generation, name| {
            let of = ancestors.get(generation as usize - 1)?;
            Some(variables(of)(name))
        })
    }

    fn detect_in(set: Variables) -> Result<Option<LauncherJob>, String> {
        detect_among(set, &[])
    }

    const TORCH: [(&str, &str); 5] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ];

    const PMI: [(&str, &str); 3] = [("PMI_FD", "6"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")];

    #[test]
    fn a_process_without_a_launcher_has_no_job() {
        assert_eq!(detect_in(&[]), Ok(None));
        assert_eq!(detect_in(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn the_innermost_launcher_is_used() {
        let both = [&TORCH[..], &PMI].concat();
        let launcher =
            |ancestors: &[Variables]| detect_among(&both, ancestors).map(|job| job.unwrap().method);
        let pmi = Ok(RendezvousMethod::Pmi(6));
        let torchrun = Ok(RendezvousMethod::HostSocket("127.0.0.1:29500//".into()));
        // mpirun in an environment with torchrun's variables, and torchrun under mpirun.
        assert_eq!(launcher(&[&TORCH, &TORCH]), pmi);
        assert_eq!(launcher(&[&PMI, &PMI]), torchrun);
        // The same with a shell between the launcher and this process.
        assert_eq!(launcher(&[&both, &TORCH, &[]]), pmi);
        assert_eq!(launcher(&[&both, &both, &PMI]), torchrun);
        // Ranks of a launcher in a job of another size: what is inherited has another value.
        let outer = [("PMI_FD", "5"), ("PMI_RANK", "0"), ("PMI_SIZE", "1")];
        assert_eq!(launcher(&[&[&TORCH[..], &outer].concat()]), pmi);
    }

    #[test]
    fn launchers_that_contradict_each_other_are_an_error_if_neither_is_known_to_be_inside() {
        let both = [&TORCH[..], &PMI].concat();
        for ancestors in [&[][..], &[&both[..]], &[&[]]] {
            let error = detect_among(&both, ancestors).unwrap_err();
            assert!(error.contains("torchrun says rank 1 of 4; pmi says rank 0 of 2"), "{error}");
            assert!(error.contains("set MAYPOLE_LAUNCHER"), "{error}");
        }
        // Those that agree are used in the order of the table.
        let same = [("PMI_FD", "6"), ("PMI_RANK", "1"), ("PMI_SIZE", "4")];
        let job = detect_in(&[&TORCH[..], &same].concat()).unwrap().unwrap();
        assert_eq!(job.launcher, "torchrun");
    }

    #[test]
    fn what_is_wrong_with_an_outer_launcher_does_not_matter() {
        let stale = [("RANK", "0"), ("WORLD_SIZE", "1")];
        let both = [&stale[..], &PMI].concat();
        let job = detect_among(&both, &[&stale]).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks), (0, 2));
        let error = detect_among(&both, &[&PMI]).unwrap_err();
        assert!(error.contains("MASTER_ADDR"), "{error}");
    }

    #[test]
    fn the_user_may_choose_a_launcher() {
        let both = [&TORCH[..], &PMI].concat();
        let pmi = [&both[..], &[(CHOICE, "pmi")]].concat();
        let job = detect_in(&pmi).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.method), (0, 2, RendezvousMethod::Pmi(6)));
        assert_eq!(detect_in(&[&both[..], &[(CHOICE, "none")]].concat()), Ok(None));
        assert!(detect_in(&[(CHOICE, "slurm")]).unwrap_err().contains("none of its variables"));
        assert!(detect_in(&[(CHOICE, "x")]).unwrap_err().contains("torchrun, pmi, pmix, slurm"));
    }

    #[test]
    fn variables_of_ancestors_are_those_that_they_were_started_with() {
        // The path of cargo is in the environment of the process that runs the tests, or this test
        // was started by hand; both ancestors have a PATH.
        let path = variable_of_ancestor(1, "PATH");
        assert!(path.is_none_or(|value| value.is_some()), "a parent without a PATH");
        assert_eq!(variable_of_ancestor(1, "NO_SUCH_VARIABLE").flatten(), None);
        assert_eq!(variable_of_ancestor(10_000, "PATH"), None);
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
    }

    #[test]
    fn a_rank_beyond_the_end_is_refused() {
        let mut variables = TORCH;
        variables[0].1 = "4";
        assert_eq!(detect_in(&variables).unwrap_err(), "RANK=4 is not below WORLD_SIZE=4");
    }
}
