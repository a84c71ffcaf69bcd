//! The variables of `torchrun` and of other programs that set PyTorch's: `RANK`, `WORLD_SIZE`,
//! `MASTER_ADDR`, `MASTER_PORT`.
//!
//! torchrun's own store listens at the port itself, so rank 0 listens at one of the ports after it.

use super::job::{LauncherJob, RendezvousMethod, VariableLookup, number, rank_of_nranks};

const NAME: &str = "torchrun";

pub(super) fn job(lookup: VariableLookup) -> Result<Option<LauncherJob>, String> {
    let Some((rank, nranks)) = rank_of_nranks(lookup, "RANK", "WORLD_SIZE")? else {
        return Ok(None);
    };
    let (host, port) = (lookup("MASTER_ADDR"), lookup("MASTER_PORT"));
    let (Some(host), Some(port)) = (&host, &port) else {
        let missing = if host.is_none() { "MASTER_ADDR" } else { "MASTER_PORT" };
        return Err(format!(
            "RANK={rank} and WORLD_SIZE={nranks} are set, as torchrun does, but {missing} is not: \
             set it, or set MAYPOLE_LAUNCHER=none to run as the only rank"
        ));
    };
    let parsed = port.trim().parse().ok().filter(|&number| number > 0);
    let port: u16 = parsed.ok_or_else(|| format!("MASTER_PORT={port} is not a port"))?;
    let run = lookup("TORCHELASTIC_RUN_ID").unwrap_or_default();
    let restart = lookup("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
    let host_socket = format!("{host}:{port}/{run}/{restart}");
    // If it is known that all ranks are on this host, neither address nor secret is needed.
    let method = match number(lookup, "LOCAL_WORLD_SIZE")? {
        Some(local) if local == nranks => RendezvousMethod::HostSocket(host_socket),
        _ => {
            RendezvousMethod::Port { host: host.clone(), port: port.saturating_add(1), host_socket }
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

    #[test]
    fn ranks_on_one_host_need_no_address() {
        let common =
            [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", "29500")];
        let job = job_in(&common).unwrap().unwrap();
        let host_socket = "n1:29500//".to_owned();
        let port = RendezvousMethod::Port {
            host: "n1".into(),
            port: 29501,
            host_socket: host_socket.clone(),
        };
        assert_eq!(job.method, port);
        let local = job_in(&[&common[..], &[("LOCAL_WORLD_SIZE", "4")]].concat()).unwrap().unwrap();
        assert_eq!(local.method, RendezvousMethod::HostSocket(host_socket));
        let restarted = [("TORCHELASTIC_RESTART_COUNT", "2"), ("LOCAL_WORLD_SIZE", "4")];
        let restarted = job_in(&[&common[..], &restarted].concat()).unwrap().unwrap();
        assert_ne!(restarted.method, local.method);
    }

    #[test]
    fn missing_variables_are_an_error() {
        let error = job_in(&[("RANK", "1"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert!(error.contains("MASTER_ADDR is not"), "{error}");
        let error =
            job_in(&[("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "n1")]).unwrap_err();
        assert!(error.contains("MASTER_PORT is not"), "{error}");
        assert_eq!(job_in(&[("RANK", "1")]), Ok(None));
    }
}
