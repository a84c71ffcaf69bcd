//! Proving which ranks share a host, before links or anything else rely on it.
//!
//! Ranks that seem to be on one host form a binary tree in the order of their numbers. Each proves
//! that it shares the host of its parent. One that cannot tries all lower ranks, so that a rank
//! whose proofs all fail is the lowest of its host. Every rank learns what all have proven; ranks
//! from which proofs lead to the same lowest rank share a host.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::{Endpoint, EndpointParts, decode_all};
use crate::Rank;
use crate::address::EndpointAddress;
use crate::error::LinkError;
use crate::host::HostId;
use crate::shm::connect::prove_host;

/// How long a rank tries to prove it. What takes longer is slow and not impossible, but the other
/// ranks wait for it.
const PROOF_TIME: Duration = Duration::from_secs(30);
/// How often a proof is begun that the other end does not complete, because it has too many
/// connections.
const ATTEMPTS: usize = 3;

impl Endpoint {
    /// Whether ranks must [prove](Self::prove_host) that they share a host: two of them, in
    /// different processes, seem to. `addresses` are those of all ranks, which all get the same
    /// answer.
    ///
    /// # Errors
    /// An address is invalid.
    pub fn hosts_need_proof(addresses: &[Vec<u8>]) -> Result<bool, LinkError> {
        let mut all = decode_all(addresses)?;
        all.sort_by_key(|address| (*address.host.bytes(), address.token));
        let differ = |pair: &[EndpointAddress]| {
            pair[0].host == pair[1].host && pair[0].token != pair[1].token
        };
        Ok(all.windows(2).any(differ))
    }

    /// Proves that this rank shares the host of a lower rank that seems to be on it, by a random
    /// word that each reads from memory of the other. Returns that rank, or this one if there is
    /// none. `addresses` are those of all ranks, of which none need do anything meanwhile.
    /// `give_up` is asked during waits.
    ///
    /// # Errors
    /// An address is invalid, or the communicator is aborted. A proof that fails is none.
    pub fn prove_host(
        &self,
        addresses: &[Vec<u8>],
        deadline: Instant,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Rank, LinkError> {
        let EndpointParts { peers, credentials, address: own, .. } = &*self.parts;
        let (rank, all) = (peers.rank, decode_all(addresses)?);
        let seems_near = |other: &Rank| all[*other as usize].host == own.host;
        let near: Vec<Rank> = (0..rank.min(all.len() as Rank)).filter(seems_near).collect();
        let Some(parent) = near.len().checked_sub(1).map(|before| near[before / 2]) else {
            return Ok(rank);
        };
        let until = deadline.min(Instant::now() + PROOF_TIME);
        let mut failed = None;
        let others = near.into_iter().filter(|other| *other != parent);
        for other in std::iter::once(parent).chain(others) {
            let EndpointAddress { token, socket, .. } = &all[other as usize];
            if *token == own.token {
                return Ok(other);
            }
            if own.socket.is_empty() || socket.is_empty() {
                continue;
            }
            let prove = || prove_host(peers, credentials, (other, socket), until, give_up);
            let unfinished =
                |result: &Result<(), LinkError>| matches!(result, Err(LinkError::Refused { .. }));
            let mut result = prove();
            for _ in 1..ATTEMPTS {
                if unfinished(&result) {
                    result = prove();
                }
            }
            match result {
                Ok(()) => return Ok(other),
                Err(error @ LinkError::Aborted { .. }) => return Err(error),
                Err(error) => failed = failed.or(Some((other, error))),
            }
            if give_up() || Instant::now() >= until {
                break;
            }
        }
        if let Some((other, error)) = failed {
            log::warn!(
                "rank {rank} seems to be on the host of rank {other}, but they share no memory \
                 ({error}); they use TCP"
            );
        }
        Ok(rank)
    }

    /// Writes to the addresses of all ranks which of them share a host. `proofs` is what
    /// [`prove_host`](Self::prove_host) has returned on each rank. Returns the hosts of the ranks.
    ///
    /// # Errors
    /// An address is invalid.
    pub fn set_hosts(
        &self,
        addresses: &mut [Vec<u8>],
        proofs: &[Rank],
    ) -> Result<Vec<HostId>, LinkError> {
        let mut all = decode_all(addresses)?;
        let mut lowest: Vec<Rank> = Vec::with_capacity(all.len());
        for rank in 0..all.len() {
            let proven = proofs.get(rank).map(|proof| *proof as usize);
            let proven = proven.filter(|&lower| lower < rank && all[lower].host == all[rank].host);
            lowest.push(proven.map_or(rank as Rank, |lower| lowest[lower]));
        }
        for ((address, lowest), bytes) in all.iter_mut().zip(&lowest).zip(addresses) {
            address.host = HostId::proven(*lowest);
            *bytes = address.encode();
        }
        let hosts: Vec<HostId> = lowest.into_iter().map(HostId::proven).collect();
        if let Some(own) = hosts.get(self.rank() as usize) {
            // This is done once.
            let _ = self.parts.host.set(*own);
        }
        // All proofs are made.
        drop(self.parts.prover.lock().unwrap_or_else(PoisonError::into_inner).take());
        Ok(hosts)
    }

    /// The lowest rank of the process of each rank: what takes the place of proofs where
    /// [none are needed](Self::hosts_need_proof).
    ///
    /// # Errors
    /// An address is invalid.
    pub fn hosts_by_process(addresses: &[Vec<u8>]) -> Result<Vec<Rank>, LinkError> {
        let all = decode_all(addresses)?;
        let mut first = std::collections::HashMap::new();
        let lowest = (0..).zip(&all).map(|(rank, it)| *first.entry(it.token).or_insert(rank));
        Ok(lowest.collect())
    }

    /// The address of this rank, with its proven host.
    pub(super) fn own_address(&self) -> EndpointAddress {
        let mut address = self.parts.address.clone();
        if let Some(host) = self.parts.host.get() {
            address.host = *host;
        }
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{EnabledLinks, EndpointConfig, any_pair_uses_tcp};
    use crate::inbox::InboxLayout;
    use crate::noise::Key;
    use crate::tcp::TcpConfig;

    /// Endpoints that do as if each were in a process of its own.
    fn endpoints(nranks: u32, shm: bool) -> Vec<Endpoint> {
        let layout = InboxLayout { nranks, channels: 1, slot_bytes: 64, depth: 1 };
        let addresses = vec!["127.0.0.1".parse().unwrap()];
        let tcp = Some(TcpConfig { addresses, streams: 1 });
        let links = EnabledLinks { local: false, shm, verbs: None, tcp };
        let secret = Key::new([7; 32]);
        let config = |rank| EndpointConfig { rank, nranks, secret: secret.clone(), layout };
        (0..nranks).map(|rank| Endpoint::with_links(config(rank), &links).unwrap()).collect()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn ranks_that_share_memory_prove_it_and_others_use_tcp() {
        for shm in [true, false] {
            let endpoints = endpoints(5, shm);
            let mut addresses: Vec<_> = endpoints.iter().map(Endpoint::address).collect();
            // Nobody listens at the sockets of ranks 0 and 3, as if they were on another machine.
            for far in [0, 3] {
                let mut address = EndpointAddress::decode(&addresses[far]).unwrap();
                address.socket = b"maypole-nobody".to_vec();
                addresses[far] = address.encode();
            }
            assert!(Endpoint::hosts_need_proof(&addresses).unwrap());
            let prove =
                |endpoint: &Endpoint| endpoint.prove_host(&addresses, soon(), &|| false).unwrap();
            let mut proofs: Vec<_> = endpoints.iter().map(prove).collect();
            assert_eq!([proofs[0], proofs[1], proofs[2]], [0, 1, 1]);
            assert!([1, 2].contains(&proofs[4]), "{proofs:?}");
            // Rank 3 is on this host and finds the others; as if it were not:
            proofs[3] = 0;
            let mut hosts = Vec::new();
            for endpoint in &endpoints {
                let mut addresses = addresses.clone();
                hosts = endpoint.set_hosts(&mut addresses, &proofs).unwrap();
                let decoded = decode_all(&addresses).unwrap();
                assert_eq!(decoded[endpoint.rank() as usize].host, endpoint.own_address().host);
                assert!(any_pair_uses_tcp(&decoded));
            }
            assert!(hosts[0] == hosts[3] && hosts[1] == hosts[2] && hosts[2] == hosts[4]);
            assert!(hosts[0] != hosts[1]);
        }
    }

    #[test]
    fn a_wrong_claim_joins_no_hosts() {
        let endpoints = endpoints(3, true);
        let mut addresses: Vec<_> = endpoints.iter().map(Endpoint::address).collect();
        let mut other = EndpointAddress::decode(&addresses[0]).unwrap();
        other.host = HostId::from_bytes([9; 16]);
        addresses[0] = other.encode();
        let hosts = endpoints[2].set_hosts(&mut addresses, &[2, 0, 77]).unwrap();
        assert!(hosts[0] != hosts[1] && hosts[1] != hosts[2] && hosts[0] != hosts[2]);
    }
}
