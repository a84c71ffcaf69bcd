//! The variables of `srun` without PMI: `SLURM_PROCID` and `SLURM_STEP_NUM_TASKS`. (With
//! `--mpi=pmix`, [`pmix`](super::pmix) reads them.)
//!
//! A batch script that calls a program without srun has `SLURM_PROCID` and `SLURM_NTASKS` too. Only
//! a step that srun made counts.

use super::job::{LauncherJob, RendezvousMethod, VariableLookup, number, rank_of_nranks};
use crate::config::HostPort;

const NAME: &str = "srun";

/// The steps that Slurm makes itself (batch, extern, interactive) have numbers from here on.
const FIRST_SPECIAL_STEP: u32 = 0xffff_fff0;

pub(super) fn job(lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    let Some(step) = number(lookup, "SLURM_STEP_ID")?.filter(|&step| step < FIRST_SPECIAL_STEP)
    else {
        return Ok(None);
    };
    let tasks = match lookup("SLURM_STEP_NUM_TASKS") {
        Some(_) => "SLURM_STEP_NUM_TASKS",
        None => "SLURM_NTASKS",
    };
    let Some((rank, nranks)) = rank_of_nranks(lookup, "SLURM_PROCID", tasks)? else {
        return Ok(None);
    };
    let nodes = match number(lookup, "SLURM_STEP_NUM_NODES")? {
        Some(nodes) => nodes,
        None => number(lookup, "SLURM_NNODES")?.unwrap_or(0),
    };
    let job = lookup("SLURM_JOB_ID").unwrap_or_default();
    let host_socket = format!("{job}.{step}");
    let method = match (lookup("NCCL_COMM_ID").as_deref().and_then(HostPort::parse), nodes) {
        (_, 1) => RendezvousMethod::HostSocket(host_socket),
        // The bootstrap root listens at the port itself.
        (Some(HostPort { host, port }), _) => {
            RendezvousMethod::Port { host, port: port.saturating_add(1), host_socket }
        }
        (None, _) if nranks == 1 => RendezvousMethod::HostSocket(host_socket),
        (None, _) => {
            return Err(format!(
                "srun started {nranks} processes on {nodes} hosts, and they have no means to find \
                 each other; looked for PMI_FD (not set), PMIX_NAMESPACE (srun --mpi=pmix sets it; \
                 srun --mpi=list shows whether this Slurm has it) and NCCL_COMM_ID=HOST:PORT with \
                 MAYPOLE_SECRET_FILE"
            ));
        }
    };
    Ok(Some(LauncherJob { launcher: NAME, rank, nranks, method }))
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::variables;
    use super::*;

    fn job_in(set: &[(&str, &str)]) -> Result<Option<LauncherJob>, String> {
        job(&variables(set))
    }

    const STEP: [(&str, &str); 4] = [
        ("SLURM_JOB_ID", "77"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "3"),
        ("SLURM_NTASKS", "4"),
    ];

    #[test]
    fn a_step_on_one_host_needs_nothing_else() {
        let job = job_in(&[&STEP[..], &[("SLURM_NNODES", "1")]].concat()).unwrap().unwrap();
        assert_eq!(
            (job.rank, job.nranks, job.method),
            (3, 4, RendezvousMethod::HostSocket("77.0".into()))
        );
    }

    #[test]
    fn several_hosts_need_an_address() {
        let two = [&STEP[..], &[("SLURM_NNODES", "2")]].concat();
        let error = job_in(&two).unwrap_err();
        assert!(error.contains("NCCL_COMM_ID") && error.contains("PMIX_NAMESPACE"), "{error}");
        let job = job_in(&[&two[..], &[("NCCL_COMM_ID", "n1:4000")]].concat()).unwrap().unwrap();
        let port =
            RendezvousMethod::Port { host: "n1".into(), port: 4001, host_socket: "77.0".into() };
        assert_eq!(job.method, port);
    }

    #[test]
    fn a_batch_script_is_not_a_step_of_srun() {
        let mut batch = STEP;
        batch[1].1 = "4294967291";
        assert_eq!(job_in(&batch), Ok(None));
    }
}
