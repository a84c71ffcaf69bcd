//! A rank's listening sockets, and the handle of the thread that serves its streams.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::pair::upgrade::UpgradeQueue;
use super::poller::{EventFlags, Poller};
use super::service::{DialRequest, LISTENER_EVENT, ServiceRequests, TcpService, WAKE_EVENT};
use super::watch::SocketWatch;
use super::{MOST_STREAMS, TcpConfig};
use crate::Rank;
use crate::credentials::Credentials;
use crate::error::LinkError;
use crate::net;
use crate::peers::PeerTable;
use crate::thread;

/// A rank's listening sockets and the thread that serves its streams. Dropping it sends what is
/// queued, for at most a short time, and ends the thread.
#[derive(Debug)]
pub(crate) struct TcpLinkListener {
    addresses: Vec<SocketAddr>,
    streams: u32,
    poller: Arc<Poller>,
    watch: Arc<SocketWatch>,
    requests: Arc<Mutex<ServiceRequests>>,
    thread: Mutex<ServiceThread>,
}

/// The thread starts when it is first needed. Until then, callers queue in the kernel.
enum ServiceThread {
    NotStarted(Box<TcpService>),
    Running(JoinHandle<()>),
    Ended,
}

impl std::fmt::Debug for ServiceThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotStarted(_) => "NotStarted",
            Self::Running(_) => "Running",
            Self::Ended => "Ended",
        })
    }
}

impl TcpLinkListener {
    /// Listens, and does nothing more until [`start`](Self::start).
    pub(crate) fn new(
        config: &TcpConfig,
        peers: Arc<PeerTable>,
        credentials: Credentials,
        upgrade: Option<Arc<UpgradeQueue>>,
    ) -> Result<Self, LinkError> {
        if config.streams == 0 || config.streams > MOST_STREAMS || config.addresses.is_empty() {
            return Err(LinkError::Misuse {
                what: "TCP needs an address and from 1 to 64 streams per peer",
            });
        }
        let system = |call| move |error: io::Error| LinkError::system(call, error);
        let poller = Arc::new(Poller::new(WAKE_EVENT).map_err(system("epoll_create1"))?);
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        let wanted = config.addresses.iter().map(|&ip| SocketAddr::new(ip, 0));
        let bound = net::listen_at_each(wanted).map_err(system("listen"))?;
        for (number, (listener, address)) in bound.into_iter().enumerate() {
            addresses.push(address);
            let data = LISTENER_EVENT | number as u64;
            poller.add(&listener, EventFlags::IN, data).map_err(system("epoll_ctl"))?;
            listeners.push(listener);
        }
        let requests = Arc::<Mutex<ServiceRequests>>::default();
        let watch = Arc::new(SocketWatch::new(poller.clone(), peers.inbox.clone()));
        let (sets, asked) = ((poller.clone(), watch.clone()), requests.clone());
        let service = TcpService::new(sets, asked, listeners, peers, credentials, upgrade);
        let thread = Mutex::new(ServiceThread::NotStarted(Box::new(service)));
        Ok(Self { addresses, streams: config.streams, poller, watch, requests, thread })
    }

    /// The addresses at which it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Number of streams that this rank wants per peer.
    pub(crate) fn streams(&self) -> u32 {
        self.streams
    }

    /// The sockets on which the rank can sleep.
    pub(crate) fn watch(&self) -> &SocketWatch {
        &self.watch
    }

    /// Starts the thread if it does not run.
    pub(crate) fn start(&self) -> Result<(), LinkError> {
        let mut state = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, ServiceThread::Ended) {
            ServiceThread::NotStarted(service) => {
                let thread = thread::spawn("maypole-tcp", move || service.run_guarded())?;
                *state = ServiceThread::Running(thread);
            }
            other => *state = other,
        }
        Ok(())
    }

    /// Stops listening if the thread does not run, because no peer will use TCP.
    pub(crate) fn stop_unless_started(&self) {
        let mut state = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, ServiceThread::NotStarted(_)) {
            *state = ServiceThread::Ended;
        }
    }

    /// Dials a peer if that is this rank's part. The peer table gets the connection when all its
    /// streams are there, or the error.
    pub(crate) fn dial(
        &self,
        peer: Rank,
        addresses: Vec<SocketAddr>,
        streams: u32,
        deadline: Instant,
    ) {
        let request = DialRequest { peer, addresses, streams, deadline };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).dial.push(request);
        self.poller.wake();
    }
}

impl Drop for TcpLinkListener {
    fn drop(&mut self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).end = true;
        self.poller.wake();
        let state = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let ServiceThread::Running(thread) = std::mem::replace(state, ServiceThread::Ended) {
            // A panic of the thread was already printed.
            let _ = thread.join();
        }
    }
}
