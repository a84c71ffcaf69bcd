//! `torchrun`, and whatever else sets PyTorch's variables: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`.
//!
//! The port itself is taken, or soon will be, by torchrun's own store: ours is one of those behind it.

use super::job::{Job, Lookup, Way, number, place};

const NAME: &str = "torchrun";

pub(super) fn job(lookup: Lookup) -> Result<Option<Job>, String> {
    let Some((rank, nranks)) = place(lookup, "RANK", "WORLD_SIZE")? else { return Ok(None) };
    let (host, port) = (lookup("MASTER_ADDR"), lookup("MASTER_PORT"));
    let (Some(host), Some(port)) = (&host, &port) else {
        let missing = if host.is_none() { "MASTER_ADDR" } else { "MASTER_PORT" };
        return Err(format!(
            "RANK={rank} and WORLD_SIZE={nranks} are set as by torchrun, but {missing} is not: set it, or \
             MAYPOLE_LAUNCHER=none to run alone"
        ));
    };
    let port = port.trim().parse().ok().filter(|&port| port > 0);
    let port: u16 = port.ok_or_else(|| format!("MASTER_PORT={} is no port", port_text(lookup)))?;
    let run = lookup("TORCHELASTIC_RUN_ID").unwrap_or_default();
    let restart = lookup("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
    let here = format!("{host}:{port}/{run}/{restart}");
    // Who knows that all are here needs neither address nor secret.
    let way = match number(lookup, "LOCAL_WORLD_SIZE")? {
        Some(local) if local == nranks => Way::Host(here),
        _ => Way::Dial { host: host.clone(), port: port.saturating_add(1), here },
    };
    Ok(Some(Job { launcher: NAME, rank, nranks, way }))
}

fn port_text(lookup: Lookup) -> String {
    lookup("MASTER_PORT").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::job::tests::under;
    use super::*;

    #[test]
    fn one_host_needs_no_address() {
        let common =
            [("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "n1"), ("MASTER_PORT", "29500")];
        let job = under(&common).unwrap().unwrap();
        let here = "n1:29500//".to_owned();
        assert_eq!(job.way, Way::Dial { host: "n1".into(), port: 29501, here: here.clone() });
        let local = under(&[&common[..], &[("LOCAL_WORLD_SIZE", "4")]].concat()).unwrap().unwrap();
        assert_eq!(local.way, Way::Host(here));
        let restarted = [("TORCHELASTIC_RESTART_COUNT", "2"), ("LOCAL_WORLD_SIZE", "4")];
        let restarted = under(&[&common[..], &restarted].concat()).unwrap().unwrap();
        assert_ne!(restarted.way, local.way);
    }

    #[test]
    fn half_of_the_variables_is_an_error() {
        let error = under(&[("RANK", "1"), ("WORLD_SIZE", "4")]).unwrap_err();
        assert!(error.contains("MASTER_ADDR is not"), "{error}");
        let error =
            under(&[("RANK", "1"), ("WORLD_SIZE", "4"), ("MASTER_ADDR", "n1")]).unwrap_err();
        assert!(error.contains("MASTER_PORT is not"), "{error}");
        assert_eq!(under(&[("RANK", "1")]), Ok(None));
    }
}
