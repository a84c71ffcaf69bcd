//! How the ranks of a communicator get to know each other: what must agree, who is where, and over what they meet.

use std::sync::Arc;
use std::time::Instant;

use maypole_transport::endpoint::{Endpoint, EndpointConfig, Media};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::tcp::TcpConfig;

use super::card::{Card, Host};
use crate::bootstrap::{self, Joined, Meeting, Options};
use crate::config::{self, Config};
use crate::error::Error;
use crate::plan::exchange;
use crate::reduce::Isa;
use crate::watch::process::Process;

/// Links between every ordered pair of ranks: more than any generator uses, and one for sends and receives.
const CHANNELS: u16 = exchange::CHANNEL + 1;

/// The rank's endpoint and meeting place, what all ranks say of themselves, where they are, and whether they meet over TCP.
type Introduced = (Arc<Endpoint>, Meeting, Vec<Card>, Vec<Vec<u8>>, bool);

/// Makes what the other ranks must know of, and exchanges that with them.
pub(super) fn introduce(
    joined: &mut Joined,
    config: &Config,
    layout: InboxLayout,
    options: &Options,
) -> Result<Introduced, Error> {
    let (rank, nranks, secret) = (joined.rank, joined.nranks, joined.derive("links"));
    let endpoint = Arc::new(endpoint(config, EndpointConfig { rank, nranks, secret, layout })?);
    let meeting = Meeting::open()?;
    let card = Card {
        host: Host::here(),
        process: Process::here(),
        address: endpoint.address(),
        meeting: meeting.address(),
        settings: settings(config, layout),
    };
    let cards = exchange_cards(joined, &card, Instant::now() + options.timeout)?;
    let addresses: Vec<Vec<u8>> = cards.iter().map(|c| c.address.clone()).collect();
    let tcp = endpoint.survey(&addresses)?;
    Ok((endpoint, meeting, cards, addresses, tcp))
}

/// The rank's end of all links, of the kinds that the settings allow.
fn endpoint(config: &Config, ends: EndpointConfig) -> Result<Endpoint, Error> {
    let tcp = |addresses| TcpConfig { addresses, streams: config.streams() };
    let alone = ends.nranks == 1;
    let media = Media {
        // Without direct access to a peer's memory, ranks of one process meet as those of several do.
        local: !config.p2p_disable,
        shm: !config.shm_disable,
        tcp: if alone { None } else { Some(tcp(bootstrap::addresses(config)?)) },
    };
    Ok(Endpoint::with(ends, &media)?)
}

/// Slots that keep what is under way in a second-level cache however many peers there are.
pub(super) fn layout(config: &Config, nranks: u32) -> InboxLayout {
    let automatic = match nranks {
        0..=4 => 64 << 10,
        5..=16 => 32 << 10,
        _ => 16 << 10,
    };
    let slot_bytes = config.slot_bytes.unwrap_or(automatic);
    InboxLayout { nranks, channels: CHANNELS, slot_bytes, depth: config.slot_depth.unwrap_or(4) }
}

/// The settings that must be the same on all ranks, as text that a person can compare.
fn settings(config: &Config, layout: InboxLayout) -> String {
    let algorithms = config.algorithms.as_deref().unwrap_or("");
    format!(
        "NCCL_ALGO={algorithms} MAYPOLE_BITS={:?} MAYPOLE_PROTO={:?} MAYPOLE_SLOT_BYTES={} MAYPOLE_SLOT_DEPTH={} MAYPOLE_FAULT={:?} version={}",
        config.bits,
        config.protocol,
        layout.slot_bytes,
        layout.depth,
        config.fault,
        env!("CARGO_PKG_VERSION"),
    )
}

fn exchange_cards(joined: &mut Joined, card: &Card, deadline: Instant) -> Result<Vec<Card>, Error> {
    let all = joined.control.all_gather(&card.to_bytes(), deadline)?;
    let mut cards = Vec::with_capacity(all.len());
    for (rank, bytes) in all.iter().enumerate() {
        let theirs = Card::from_bytes(bytes).ok_or_else(|| Error::Internal {
            what: format!("the card of rank {rank} is unreadable"),
        })?;
        if theirs.settings != card.settings {
            return Err(Error::InvalidUsage {
                what: format!(
                    "rank {} and rank {rank} differ in settings that must be the same on all ranks: here {}; there {}",
                    joined.rank, card.settings, theirs.settings
                ),
            });
        }
        cards.push(theirs);
    }
    Ok(cards)
}

pub(super) fn isa(wanted: config::Isa) -> Isa {
    let best = Isa::detect();
    let wanted = match wanted {
        config::Isa::Auto => return best,
        config::Isa::Scalar => Isa::Scalar,
        #[cfg(target_arch = "x86_64")]
        config::Isa::Avx2 => Isa::Avx2,
        #[cfg(target_arch = "x86_64")]
        config::Isa::Avx512 => Isa::Avx512,
        #[cfg(not(target_arch = "x86_64"))]
        _ => best,
    };
    if Isa::available().contains(&wanted) {
        return wanted;
    }
    log::warn!("MAYPOLE_ISA asks for {wanted:?}, which this processor lacks; {best:?} is used");
    best
}
