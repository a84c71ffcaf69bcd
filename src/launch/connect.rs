//! Connects the processes of a job: they find rank 0, each proves that it belongs to the job, and
//! their exchange then uses these connections.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Instant;

use maypole_transport::noise::{KEY_BYTES, Key};

use crate::bootstrap;
use crate::config::Config;
use crate::secret_file;

use super::dial::{connect_to_addresses, connect_to_host_socket, connect_to_port};
use super::job::{LauncherJob, RendezvousMethod};
use super::rank0_exchange::Rank0Exchange;
use super::rendezvous::{Participant, Rank0Listener};
use super::{AloneExchange, LaunchError, LaunchExchange, LaunchedRank, pmi, pmix};

impl LauncherJob {
    /// Connects this process with the other processes of the job. It returns when all are there.
    ///
    /// # Errors
    /// [`LaunchError::Rendezvous`] if they cannot find each other within `MAYPOLE_INIT_TIMEOUT`, or
    /// if they would need a secret and have none.
    pub fn connect(self) -> Result<LaunchedRank, LaunchError> {
        let Self { rank, nranks, launcher, .. } = self;
        let exchange: io::Result<Box<dyn LaunchExchange>> = if nranks == 1 {
            Ok(Box::new(AloneExchange))
        } else {
            exchange(&self).map(|exchange| Box::new(exchange) as _)
        };
        let exchange = exchange.map_err(|error| LaunchError::Rendezvous {
            launcher,
            rank,
            nranks,
            kind: error.kind(),
            what: error.to_string(),
        })?;
        Ok(LaunchedRank { rank, nranks, exchange })
    }
}

fn exchange(job: &LauncherJob) -> io::Result<Rank0Exchange> {
    let deadline = Instant::now() + Config::get().init_timeout;
    let participant = Participant { rank: job.rank, nranks: job.nranks, deadline };
    let rank = job.rank;
    let file_key = secret_file_key()?;
    match &job.method {
        RendezvousMethod::Pmi(fd) => {
            let broadcast = |mine: Option<&str>| pmi::broadcast(*fd, rank, mine, deadline);
            by_publication(participant, file_key, broadcast)
        }
        RendezvousMethod::Pmix { host_socket } => match (pmix::load(), host_socket) {
            (Ok(()), _) => {
                let broadcast = |mine: Option<&str>| pmix::broadcast(rank, mine, deadline);
                by_publication(participant, file_key, broadcast)
            }
            (Err(_), Some(name)) => by_host_socket(name, participant),
            (Err(error), None) => Err(io::Error::other(format!(
                "{error}; without it only processes of one host find each other, and these are on \
                 several hosts"
            ))),
        },
        RendezvousMethod::HostSocket(name) => by_host_socket(name, participant),
        RendezvousMethod::Port { host, port, host_socket } => match file_key.or_else(public_key) {
            Some(key) if rank == 0 => Rank0Listener::at_port(*port, key)?.accept_all(participant),
            Some(key) => connect_to_port(host, *port, &key, participant),
            None if is_this_host(host)? => by_host_socket(host_socket, participant),
            None => Err(io::Error::other(format!(
                "rank 0 is on another host, {host}, and what the ranks tell each other must stay \
                 secret on the network: set MAYPOLE_SECRET_FILE to a file of 32 secret bytes, \
                 the same for all ranks, or MAYPOLE_TRUST_NETWORK=1 if everyone on the network may \
                 take part"
            ))),
        },
    }
}

/// Connects processes that are all on this host.
fn by_host_socket(name: &str, participant: Participant) -> io::Result<Rank0Exchange> {
    if participant.rank == 0 {
        Rank0Listener::at_host_socket(name)?.accept_all(participant)
    } else {
        connect_to_host_socket(name, participant)
    }
}

/// Connects processes that share a channel of their launcher: rank 0 makes a secret and publishes
/// it there with its addresses. If there is a secret file, an attacker would need both.
fn by_publication(
    participant: Participant,
    file_key: Option<Key>,
    broadcast: impl FnOnce(Option<&str>) -> io::Result<String>,
) -> io::Result<Rank0Exchange> {
    let key = |secret: &Key| match &file_key {
        Some(file_key) => file_key.derive("launch file", &[secret.bytes()]),
        None => secret.clone(),
    };
    if participant.rank == 0 {
        let secret = Key::random()?;
        let ips = bootstrap::addresses(Config::get()).map_err(io::Error::other)?;
        let (listener, addresses) = Rank0Listener::at_any_port(&ips, key(&secret))?;
        broadcast(Some(&write_publication(&secret, &addresses)))?;
        return listener.accept_all(participant);
    }
    let text = broadcast(None)?;
    let (secret, addresses) = read_publication(&text).ok_or_else(|| {
        io::Error::other(
            "rank 0 published something else than its address; do all ranks run the same version \
             of Maypole?",
        )
    })?;
    connect_to_addresses(&addresses, &key(&secret), participant)
}

/// The secret in hexadecimal digits, an at sign, and the addresses separated by commas. It has no
/// blanks, which PMI-1 would not carry.
fn write_publication(secret: &Key, addresses: &[SocketAddr]) -> String {
    let digits: String = secret.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    format!("{digits}@{}", addresses.join(","))
}

fn read_publication(text: &str) -> Option<(Key, Vec<SocketAddr>)> {
    let (digits, addresses) = text.split_once('@')?;
    let mut secret = [0; KEY_BYTES];
    if digits.len() != 2 * KEY_BYTES || !digits.is_ascii() {
        return None;
    }
    for (index, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * index..][..2], 16).ok()?;
    }
    Some((Key::new(secret), addresses.split(',').map(str::parse).collect::<Result<_, _>>().ok()?))
}

/// The key that follows from `MAYPOLE_SECRET_FILE`; None if that is not set.
fn secret_file_key() -> io::Result<Option<Key>> {
    let Some(path) = &Config::get().secret_file else { return Ok(None) };
    let key = secret_file::read(path)
        .map_err(|why| io::Error::other(format!("MAYPOLE_SECRET_FILE: {why}")))?;
    Ok(Some(key.derive("launch", &[])))
}

/// The key of a network on which everyone is trusted; None if the network is not trusted.
fn public_key() -> Option<Key> {
    Config::get().trust_network.then(|| secret_file::public_key().derive("launch", &[]))
}

/// Whether a host's name or address belongs to this host: only such an address can be bound.
///
/// # Errors
/// The name cannot be resolved.
fn is_this_host(host: &str) -> io::Result<bool> {
    let mut addresses = (host, 0).to_socket_addrs().map_err(|error| {
        let text = format!(
            "the name of the host of rank 0, {host}, cannot be resolved: {error}; see \
             MASTER_ADDR or NCCL_COMM_ID, /etc/hosts and the name server"
        );
        io::Error::new(error.kind(), text)
    })?;
    Ok(addresses.any(|address| UdpSocket::bind(address).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_one_word_that_can_be_read_back() {
        let addresses: Vec<SocketAddr> =
            vec!["10.0.0.1:80".parse().unwrap(), "[fd00::1]:81".parse().unwrap()];
        let secret = Key::new(std::array::from_fn(|i| (i * 8) as u8));
        let text = write_publication(&secret, &addresses);
        assert!(text.len() < 256 && !text.contains(' '), "{text}");
        let read = |text: &str| read_publication(text).map(|(key, to)| (*key.bytes(), to));
        assert_eq!(read(&text), Some((*secret.bytes(), addresses)));
        for damaged in ["", "@", &text[1..], &text.replace('@', ""), "zz@1.2.3.4:5"] {
            assert_eq!(read(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn only_addresses_of_this_host_are_this_host() {
        assert!(is_this_host("127.0.0.1").unwrap() && is_this_host("localhost").unwrap());
        assert!(!is_this_host("203.0.113.254").unwrap());
        // RFC 2606 keeps this name free.
        let error = is_this_host("no-such-host.invalid").unwrap_err().to_string();
        assert!(error.contains("no-such-host.invalid, cannot be resolved"), "{error}");
    }

    #[test]
    fn an_error_names_the_rank_and_the_launcher() {
        let method = RendezvousMethod::Port {
            host: "203.0.113.254".into(),
            port: 1,
            host_socket: String::new(),
        };
        let job = LauncherJob { launcher: "torchrun", rank: 1, nranks: 2, method };
        let error = job.connect().err().unwrap().to_string();
        assert!(
            error.starts_with("process 1 of 2 of torchrun: rank 0 is on another host"),
            "{error}"
        );
        assert!(error.contains("MAYPOLE_SECRET_FILE"));
    }
}
