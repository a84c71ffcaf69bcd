//! From what a launcher says of this process to its place: the processes find rank 0, each proves that it belongs, and what
//! they exchange then goes over connections to it.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Instant;

use maypole::config::Config;

use super::job::{Job, Way};
use super::rendezvous::{Door, Party, visit_any, visit_host, visit_port};
use super::sealed::{SECRET_BYTES, mac, random};
use super::star::Star;
use super::{Alone, Exchange, Place, pmi, pmix};

/// Fewest bytes of `MAYPOLE_SECRET_FILE`, as for a unique id.
const LEAST_SECRET: usize = 16;

/// The place of a process of this job.
pub(super) fn place(job: Job) -> io::Result<Place> {
    let Job { rank, nranks, .. } = job;
    let exchange: io::Result<Box<dyn Exchange>> =
        if nranks == 1 { Ok(Box::new(Alone)) } else { exchange(&job) };
    let exchange = exchange.map_err(|error| {
        let what = format!("process {rank} of {nranks} of {}: {error}", job.launcher);
        io::Error::new(error.kind(), what)
    })?;
    Ok(Place { rank, nranks, exchange })
}

fn exchange(job: &Job) -> io::Result<Box<dyn Exchange>> {
    #[cfg(feature = "mpi")]
    if super::mpi::serves(&job.way) {
        return Ok(Box::new(super::mpi::exchange(job.rank, job.nranks)?));
    }
    let until = Instant::now() + Config::get().init_timeout;
    let party = Party { rank: job.rank, nranks: job.nranks, until };
    let file = secret_file()?;
    let star = match &job.way {
        Way::Pmi(fd) => published(party, file, |mine| pmi::broadcast(*fd, party.rank, mine)),
        Way::Pmix(here) => match (pmix::load(), here) {
            (Ok(()), _) => published(party, file, |mine| pmix::broadcast(party.rank, mine)),
            (Err(_), Some(name)) => on_host(name, party),
            (Err(error), None) => Err(io::Error::other(format!(
                "{error}; without it only processes of one host find one another, and these are on several"
            ))),
        },
        Way::Host(name) => on_host(name, party),
        Way::Dial { host, port, here } => match file {
            Some(secret) if party.rank == 0 => Door::at_port(*port, secret)?.gather(party),
            Some(secret) => visit_port(host, *port, &secret, party),
            None if is_here(host) => on_host(here, party),
            None => Err(io::Error::other(format!(
                "rank 0 is on another host, {host}, and strangers must not hear what the ranks tell each other: set \
                 MAYPOLE_SECRET_FILE to a file of at least {LEAST_SECRET} secret bytes, the same for all ranks"
            ))),
        },
    };
    Ok(Box::new(star?))
}

/// All processes are on this host.
fn on_host(name: &str, party: Party) -> io::Result<Star> {
    if party.rank == 0 { Door::host(name)?.gather(party) } else { visit_host(name, party) }
}

/// Rank 0 makes a secret and publishes it with its addresses over the launcher's channel. Who has a secret file too relies on
/// both.
fn published(
    party: Party,
    file: Option<[u8; SECRET_BYTES]>,
    broadcast: impl FnOnce(Option<&str>) -> io::Result<String>,
) -> io::Result<Star> {
    let mixed = |secret: &[u8; SECRET_BYTES]| match &file {
        Some(file) => mac(file, &[b"maypole launch file", secret]),
        None => *secret,
    };
    if party.rank == 0 {
        let secret = random()?;
        let addresses = maypole::bootstrap::addresses(Config::get()).map_err(io::Error::other)?;
        let (door, at) = Door::anywhere(&addresses, mixed(&secret))?;
        broadcast(Some(&write(&secret, &at)))?;
        return door.gather(party);
    }
    let text = broadcast(None)?;
    let (secret, at) = read(&text).ok_or_else(|| {
        io::Error::other("what rank 0 published is not understood: is it the same program?")
    })?;
    visit_any(&at, &mixed(&secret), party)
}

/// The secret in hexadecimal digits, an at sign, the addresses with commas between them. No blanks: PMI-1 has none.
fn write(secret: &[u8; SECRET_BYTES], at: &[SocketAddr]) -> String {
    let digits: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let places: Vec<_> = at.iter().map(ToString::to_string).collect();
    format!("{digits}@{}", places.join(","))
}

fn read(text: &str) -> Option<([u8; SECRET_BYTES], Vec<SocketAddr>)> {
    let (digits, places) = text.split_once('@')?;
    let mut secret = [0; SECRET_BYTES];
    if digits.len() != 2 * SECRET_BYTES || !digits.is_ascii() {
        return None;
    }
    for (at, byte) in secret.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..][..2], 16).ok()?;
    }
    Some((secret, places.split(',').map(str::parse).collect::<Result<_, _>>().ok()?))
}

/// What `MAYPOLE_SECRET_FILE` holds, as a key.
fn secret_file() -> io::Result<Option<[u8; SECRET_BYTES]>> {
    let Some(path) = &Config::get().secret_file else { return Ok(None) };
    let complain =
        |why: String| io::Error::other(format!("MAYPOLE_SECRET_FILE: {}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| complain(error.to_string()))?;
    if bytes.len() < LEAST_SECRET {
        return Err(complain(format!("{} bytes; at least {LEAST_SECRET} are needed", bytes.len())));
    }
    Ok(Some(mac(b"maypole launch", &[&bytes])))
}

/// Whether a host's name or address is this host's: only such an address can be bound.
fn is_here(host: &str) -> bool {
    let addresses = (host, 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    addresses.is_ok_and(|found| found.iter().any(|address| UdpSocket::bind(address).is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_one_word_that_can_be_read() {
        let at: Vec<SocketAddr> =
            vec!["10.0.0.1:80".parse().unwrap(), "[fd00::1]:81".parse().unwrap()];
        let secret: [u8; 32] = std::array::from_fn(|i| (i * 8) as u8);
        let text = write(&secret, &at);
        assert!(text.len() < 256 && !text.contains(' '), "{text}");
        assert_eq!(read(&text), Some((secret, at)));
        for damaged in ["", "@", &text[1..], &text.replace('@', ""), "zz@1.2.3.4:5"] {
            assert_eq!(read(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn this_host_is_here_and_a_documentation_address_is_not() {
        assert!(is_here("127.0.0.1") && is_here("localhost"));
        assert!(!is_here("203.0.113.254"));
    }

    #[test]
    fn an_error_says_who_and_under_which_launcher() {
        let way = Way::Dial { host: "203.0.113.254".into(), port: 1, here: String::new() };
        let job = Job { launcher: "torchrun", rank: 1, nranks: 2, way };
        let error = place(job).err().unwrap().to_string();
        assert!(
            error.starts_with("process 1 of 2 of torchrun: rank 0 is on another host"),
            "{error}"
        );
        assert!(error.contains("MAYPOLE_SECRET_FILE"));
    }
}
