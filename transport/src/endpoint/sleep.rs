//! How a rank sleeps while it waits for its links.

use std::time::Duration;

use super::{Endpoint, EndpointParts};
use crate::doorbell::{Doorbell, SleepTicket};
use crate::peers::PeerTable;
use crate::tcp::pair::decode_event_data;
use crate::tcp::watch::WatchTicket;

/// The permission to sleep, issued before the last check of the condition. It may be dropped.
#[must_use = "check the condition, then sleep"]
#[derive(Debug)]
pub struct EndpointTicket<'a>(WayToSleep<'a>);

#[derive(Debug)]
enum WayToSleep<'a> {
    /// On the word of the doorbell. The service threads of the links wake the rank.
    Doorbell(&'a Doorbell, SleepTicket),
    /// On the doorbell and the sockets of TCP links.
    Sockets(&'a PeerTable, WatchTicket<'a>),
}

impl Endpoint {
    /// Announces that the caller is about to sleep. After this call, check the condition once more,
    /// then [`sleep`](EndpointTicket::sleep). Whatever rings the doorbell ends the sleep, and so
    /// does every message: where nothing but threads of this process and sockets can wake the rank,
    /// it sleeps on the sockets too, and reads them itself.
    pub fn prepare_to_sleep(&self) -> EndpointTicket<'_> {
        let EndpointParts { tcp, verbs, peers, .. } = &*self.parts;
        let sockets = tcp.as_ref().filter(|_| verbs.is_none() && !peers.rung_by_others());
        EndpointTicket(match sockets.and_then(|tcp| tcp.watch().prepare_to_sleep()) {
            Some(ticket) => WayToSleep::Sockets(peers, ticket),
            None => WayToSleep::Doorbell(self.doorbell(), self.doorbell().prepare_to_sleep()),
        })
    }
}

impl EndpointTicket<'_> {
    /// Sleeps until the doorbell has rung since the ticket was issued, something has arrived, or
    /// `timeout` has passed. It may also return for no reason.
    pub fn sleep(self, timeout: Duration) {
        match self.0 {
            WayToSleep::Doorbell(doorbell, ticket) => doorbell.sleep(ticket, Some(timeout)),
            WayToSleep::Sockets(peers, ticket) => ticket.sleep(timeout, |data| {
                let (peer, stream) = decode_event_data(data);
                if let Some(peer) = peers.get(peer) {
                    peer.read_stream(stream);
                }
            }),
        }
    }
}
