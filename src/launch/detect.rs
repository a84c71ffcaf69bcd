//! Detects which launcher started this process.

use super::job::{LauncherJob, VariableLookup};
use super::{pmi, pmix, slurm, torchrun};

/// The variable by which the user chooses a launcher if the variables of several are set.
const CHOICE: &str = "MAYPOLE_LAUNCHER";

/// Reads the variables of one launcher: None if the launcher did not set them.
type JobReader = fn(VariableLookup) -> Result<Option<LauncherJob>, String>;

/// The launchers, by the names that [`CHOICE`] takes. A launcher that is usually started by another
/// one comes before that one.
const LAUNCHERS: [(&str, JobReader); 4] =
    [("torchrun", torchrun::job), ("pmi", pmi::job), ("pmix", pmix::job), ("slurm", slurm::job)];

/// The job that this process belongs to; None if no launcher started it.
///
/// # Errors
/// A sentence for the user: a launcher's variables cannot be used, or the launcher that
/// [`CHOICE`] names did not start this process.
pub(super) fn detect(lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    if let Some(name) = lookup(CHOICE) {
        return chosen(&name, lookup);
    }
    for (_, read) in LAUNCHERS {
        if let Some(job) = read(lookup)? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// The job of the launcher that the user chose.
fn chosen(name: &str, lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    if name == "none" {
        return Ok(None);
    }
    let Some((_, read)) = LAUNCHERS.iter().find(|(known, _)| *known == name) else {
        let names = LAUNCHERS.map(|(name, _)| name).join(", ");
        return Err(format!(
            "{CHOICE}={name} does not name a launcher; use one of {names}, or none"
        ));
    };
    let job = read(lookup)?;
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

    fn detect_in(set: &[(&str, &str)]) -> Result<Option<LauncherJob>, String> {
        detect(&variables(set))
    }

    const TORCH: [(&str, &str); 5] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ];

    #[test]
    fn a_process_without_a_launcher_has_no_job() {
        assert_eq!(detect_in(&[]), Ok(None));
        assert_eq!(detect_in(&[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4")]), Ok(None));
    }

    #[test]
    fn the_inner_launcher_is_used_unless_another_is_chosen() {
        let both = [&TORCH[..], &[("PMI_FD", "6"), ("PMI_RANK", "0"), ("PMI_SIZE", "2")]].concat();
        assert_eq!(detect_in(&both).unwrap().unwrap().launcher, "torchrun");
        let pmi = [&both[..], &[(CHOICE, "pmi")]].concat();
        let job = detect_in(&pmi).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.method), (0, 2, RendezvousMethod::Pmi(6)));
        assert_eq!(detect_in(&[&both[..], &[(CHOICE, "none")]].concat()), Ok(None));
        assert!(detect_in(&[(CHOICE, "slurm")]).unwrap_err().contains("none of its variables"));
        assert!(detect_in(&[(CHOICE, "x")]).unwrap_err().contains("torchrun, pmi, pmix, slurm"));
    }

    #[test]
    fn a_rank_beyond_the_end_is_refused() {
        let mut variables = TORCH;
        variables[0].1 = "4";
        assert_eq!(detect_in(&variables).unwrap_err(), "RANK=4 is not below WORLD_SIZE=4");
    }
}
