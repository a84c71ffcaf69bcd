//! `srun` without PMI: `SLURM_PROCID` and `SLURM_STEP_NUM_TASKS`. (With `--mpi=pmix` it is [`pmix`](super::pmix)'s.)
//!
//! A batch script that calls a program without srun has `SLURM_PROCID` and `SLURM_NTASKS` too; only a step that srun made counts.

use super::job::{Job, Lookup, Way, number, place};
use maypole::config::HostPort;

const NAME: &str = "srun";

/// Slurm's own steps (batch, extern, interactive) are numbered from here on.
const FIRST_SPECIAL_STEP: u32 = 0xffff_fff0;

pub(super) fn job(lookup: Lookup) -> Result<Option<Job>, String> {
    let Some(step) = number(lookup, "SLURM_STEP_ID")?.filter(|&step| step < FIRST_SPECIAL_STEP)
    else {
        return Ok(None);
    };
    let tasks = match lookup("SLURM_STEP_NUM_TASKS") {
        Some(_) => "SLURM_STEP_NUM_TASKS",
        None => "SLURM_NTASKS",
    };
    let Some((rank, nranks)) = place(lookup, "SLURM_PROCID", tasks)? else { return Ok(None) };
    let nodes = match number(lookup, "SLURM_STEP_NUM_NODES")? {
        Some(nodes) => nodes,
        None => number(lookup, "SLURM_NNODES")?.unwrap_or(0),
    };
    let job = lookup("SLURM_JOB_ID").unwrap_or_default();
    let here = format!("{job}.{step}");
    let way = match (lookup("NCCL_COMM_ID").as_deref().and_then(HostPort::parse), nodes) {
        (_, 1) => Way::Host(here),
        // The port itself is the bootstrap root's.
        (Some(HostPort { host, port }), _) => {
            Way::Dial { host, port: port.saturating_add(1), here }
        }
        (None, _) if nranks == 1 => Way::Host(here),
        (None, _) => {
            return Err(format!(
                "srun started {nranks} processes on {nodes} hosts and gives them no way to find one another; looked for PMI_FD \
                 (none), PMIX_NAMESPACE (srun --mpi=pmix sets it; list what there is by srun --mpi=list) and NCCL_COMM_ID=HOST:PORT \
                 with MAYPOLE_SECRET_FILE"
            ));
        }
    };
    Ok(Some(Job { launcher: NAME, rank, nranks, way }))
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::under;
    use super::*;

    const STEP: [(&str, &str); 4] = [
        ("SLURM_JOB_ID", "77"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "4"),
    ];

    #[test]
    fn a_step_of_one_host_needs_nothing_else() {
        let job = under(&[&STEP[..], &[("SLURM_NNODES", "1")]].concat()).unwrap().unwrap();
        assert_eq!((job.rank, job.nranks, job.way), (3, 4, Way::Host("77.0".into())));
    }

    #[test]
    fn several_hosts_need_an_address() {
        let two = [&STEP[..], &[("SLURM_NNODES", "2")]].concat();
        let error = under(&two).unwrap_err();
        assert!(error.contains("NCCL_COMM_ID") && error.contains("PMIX_NAMESPACE"), "{error}");
        let job = under(&[&two[..], &[("NCCL_COMM_ID", "n1:4000")]].concat()).unwrap().unwrap();
        assert_eq!(job.way, Way::Dial { host: "n1".into(), port: 4001, here: "77.0".into() });
    }

    #[test]
    fn a_batch_script_is_no_step() {
        let mut batch = STEP;
        batch[1].1 = "4294967291";
        assert_eq!(under(&batch), Ok(None));
    }
}
