//! The communicator: a group of ranks that call collectives together.

mod card;
mod element;
mod offspring;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use maypole_algorithms::verify::{Proved, prove};
use maypole_algorithms::{Class, Collective, DType, Rank, RedOp, Schedule};
use maypole_transport::endpoint::{Endpoint, EndpointConfig, Media};
use maypole_transport::fault::{Faults, Recipe};
use maypole_transport::inbox::InboxLayout;
use maypole_transport::lines::CAPACITY;
use maypole_transport::tcp::TcpConfig;

use crate::bootstrap::{
    self, AbortSignal, Enrolled, Joined, Keys, Meeting, Options, Traffic, UniqueId,
};
use crate::call::Call;
use crate::config::{self, Bits, Config};
use crate::engine::Buffers;
use crate::engine::links::Links;
use crate::engine::scratch::Scratch;
use crate::engine::straight::{Staging, Straight};
use crate::engine::wait::{Patience, Wait};
use crate::engine::walk::Walk;
use crate::error::Error;
use crate::plan::exchange::{self, Transfer};
use crate::plan::{Body, Key, Plan, Plans, STREAM_FROM};
use crate::reduce::{Isa, Kernel, Reduction};
use crate::tune::{AlgorithmFilter, Choice, Protocol, Tuner};
use crate::watch::process::Process;
use crate::watch::{Peer, Report, Shared, Signature, Watch};
use card::{Card, Host};

pub use element::Element;

#[cfg(test)]
mod tests;

/// Links between every ordered pair of ranks: more than any generator uses, and one for sends and receives.
const CHANNELS: u16 = exchange::CHANNEL + 1;

/// A group of ranks over which collectives are called. One thread at a time uses it; [`AbortHandle`] is for the others.
///
/// Every rank must make the same calls in the same order. A call returns when its result is in the receive buffer. After an
/// error of a call the communicator is broken on all ranks: drop it.
///
/// ```
/// use maypole::{Communicator, RedOp, UniqueId};
///
/// let id = UniqueId::create()?;
/// let ranks: Vec<_> = (0..4)
///     .map(|rank| {
///         std::thread::spawn(move || -> Result<f32, maypole::Error> {
///             let mut comm = Communicator::init(&id, 4, rank)?;
///             let mut sum = [0.0f32; 3];
///             comm.all_reduce(&[rank as f32; 3], &mut sum, RedOp::Sum)?;
///             Ok(sum[0])
///         })
///     })
///     .collect();
/// for rank in ranks {
///     assert_eq!(rank.join().expect("the rank ran")?, 0.0 + 1.0 + 2.0 + 3.0);
/// }
/// # Ok::<(), maypole::Error>(())
/// ```
pub struct Communicator {
    rank: Rank,
    nranks: u32,
    /// Before all that an abort needs.
    _enrolled: Option<Enrolled>,
    /// Before the endpoint, so that it leaves first.
    watch: Watch,
    endpoint: Arc<Endpoint>,
    addresses: Vec<Vec<u8>>,
    links: Links,
    plans: Plans,
    proofs: HashMap<(Collective, &'static str), Proved>,
    tuner: Tuner,
    isa: Isa,
    patience: Patience,
    scratch: Scratch,
    staging: Box<Staging>,
    /// The first error of a call; all later ones fail with it.
    broken: Option<Error>,
    /// What it was made with, for its offspring.
    config: Config,
    options: Options,
    keys: Keys,
    meeting: Meeting,
    /// Of all ranks.
    meetings: Vec<Vec<u8>>,
    /// How often it was shrunk.
    shrunk: u64,
    init_traffic: Traffic,
}

impl Communicator {
    /// Joins the communicator of `id` as `rank` of `nranks`; returns when all ranks have joined.
    ///
    /// # Errors
    /// Missing ranks after `MAYPOLE_INIT_TIMEOUT`, a rank number used twice, an id of another job, settings that differ between
    /// ranks.
    pub fn init(id: &UniqueId, nranks: u32, rank: u32) -> Result<Self, Error> {
        Self::init_with(id, nranks, rank, Config::get(), &Options::default())
    }

    /// As [`init`](Self::init), with settings and time limits other than those of the environment.
    pub fn init_with(
        id: &UniqueId,
        nranks: u32,
        rank: u32,
        config: &Config,
        options: &Options,
    ) -> Result<Self, Error> {
        crate::logger::install();
        let mut joined = bootstrap::join_with(id, rank, nranks, &[], options)?;
        let layout = layout(config, nranks);
        let introduced = introduce(&mut joined, config, layout, options);
        let (endpoint, meeting, cards, addresses, tcp) = introduced.inspect_err(|error| {
            // The others wait for this rank: they are told why it does not go on.
            joined.control.give_up(error.to_string());
        })?;
        let here = cards[rank as usize].host.clone();
        let peers = (&cards[..], addresses, tcp);
        let comm = Self::assemble(config, joined, endpoint, meeting, layout, peers, options)?;
        if options.abort.as_ref().is_some_and(AbortSignal::is_raised) {
            return Err(Error::Aborted { by: rank });
        }
        log::info!(
            target: "INIT",
            "comm {:p} rank {rank} nranks {nranks} host memory, {} ranks on this host, {:.1} ranks per core, {} - Init COMPLETE",
            Arc::as_ptr(&comm.endpoint),
            cards.iter().filter(|c| c.host.same_machine(&here)).count(),
            comm.tuner.ranks_per_core,
            if tcp { "over TCP where memory is not shared" } else { "all memory shared" },
        );
        Ok(comm)
    }

    fn assemble(
        config: &Config,
        joined: Joined,
        endpoint: Arc<Endpoint>,
        meeting: Meeting,
        layout: InboxLayout,
        (cards, addresses, tcp): (&[Card], Vec<Vec<u8>>, bool),
        options: &Options,
    ) -> Result<Self, Error> {
        let (rank, nranks) = (joined.rank, joined.nranks);
        let on_host = |host: &Host| cards.iter().filter(|c| c.host.same_machine(host)).count();
        let crowding = |card: &Card| on_host(&card.host) as f64 / f64::from(card.host.cores);
        let tuner = Tuner {
            nranks,
            slot_bytes: layout.slot_bytes,
            depth: layout.depth,
            lines: !tcp,
            ranks_per_core: cards.iter().map(crowding).fold(1.0, f64::max),
            class: match config.bits {
                Bits::Fast => Class::Fast,
                Bits::Default | Bits::Canonical => Class::Canonical,
            },
            explicit_class: config.bits == Bits::Canonical,
            algorithms: AlgorithmFilter::parse(config.algorithms.as_deref().unwrap_or("")),
            protocol: match config.protocol {
                // Faults are on slots alone.
                _ if config.fault.is_some() => Some(Protocol::Slots),
                config::Protocol::Auto => None,
                config::Protocol::Line => Some(Protocol::Line),
                config::Protocol::Slots => Some(Protocol::Slots),
            },
        };
        let here = &cards[rank as usize].host;
        let key = u64::from_le_bytes(*joined.derive("watch").first_chunk().expect("32 bytes"));
        let peer = |card: &Card| Peer {
            host: card.host.name.clone(),
            process: card.process,
            near: card.host.same_machine(here),
        };
        let ranks = cards.iter().map(peer).collect();
        let keys = joined.keys();
        let init_traffic = joined.control.traffic();
        let watch = Watch::start(joined.control, &endpoint, key, ranks, config)?;
        let enrolled = options.abort.as_ref().map(|signal| signal.enroll(watch.shared()));
        let abort = AbortHandle { shared: watch.shared(), _endpoint: Arc::clone(&endpoint) };
        let faults = config
            .fault
            .clone()
            .map(|recipe| Faults::new(recipe, Arc::clone(&endpoint), move || abort.abort()));
        Ok(Self {
            rank,
            nranks,
            _enrolled: enrolled,
            watch,
            endpoint,
            addresses,
            links: Links::new(faults),
            plans: Plans::default(),
            proofs: HashMap::new(),
            tuner,
            isa: isa(config.isa),
            patience: Patience::new(on_host(here), here.cores as usize, config.spin),
            scratch: Scratch::default(),
            staging: Box::default(),
            broken: None,
            config: Config {
                fault: config.fault.as_ref().map(Recipe::without_ends),
                ..config.clone()
            },
            options: options.clone(),
            keys,
            meeting,
            meetings: cards.iter().map(|c| c.meeting.clone()).collect(),
            shrunk: 0,
            init_traffic,
        })
    }

    /// This process' number in the communicator.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks the communicator has.
    pub fn nranks(&self) -> u32 {
        self.nranks
    }

    /// What it took this rank to find all others.
    pub fn init_traffic(&self) -> Traffic {
        self.init_traffic
    }

    /// Reduces `send` of all ranks, element by element; every rank gets the result in `recv`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the slices differ in length; else what [`run`](Self::run) returns.
    pub fn all_reduce<T: Element>(
        &mut self,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        if send.len() != recv.len() {
            return Err(Error::InvalidArgument {
                what: format!(
                    "all_reduce of {} elements into a buffer of {}",
                    send.len(),
                    recv.len()
                ),
            });
        }
        let call = Call {
            collective: Collective::AllReduce,
            send: send.as_ptr().cast(),
            recv: recv.as_mut_ptr().cast(),
            count: recv.len(),
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: both slices hold `count` elements of a type without invalid values, and are borrowed for the call.
        unsafe { self.run(&call) }
    }

    /// As [`all_reduce`](Self::all_reduce), with the result in place of the contribution.
    ///
    /// # Errors
    /// What [`run`](Self::run) returns.
    pub fn all_reduce_in_place<T: Element>(
        &mut self,
        data: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let recv = data.as_mut_ptr();
        let call = Call {
            collective: Collective::AllReduce,
            send: recv.cast_const().cast(),
            recv: recv.cast(),
            count: data.len(),
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: as in `all_reduce`; in place is allowed.
        unsafe { self.run(&call) }
    }

    /// Runs a collective call; returns when its result is there. A call of no elements does nothing, not even wait.
    ///
    /// # Errors
    /// Mismatched calls, dead or aborted peers, an algorithm that the settings exclude. The communicator is then broken, on all
    /// ranks, except where the call was refused before anything was sent ([`Error::is_harmless`]).
    ///
    /// # Safety
    /// Send and receive buffers are valid for the extents that the call implies (see [`Call`]), and nobody else writes
    /// them, or reads the receive buffer, during the call. They are the same memory where `nccl.h` calls that in place,
    /// and do not overlap otherwise.
    #[inline]
    pub unsafe fn run(&mut self, call: &Call) -> Result<(), Error> {
        self.watch.check_fork()?;
        let number = match self.plans.find(&Key::new(call)) {
            Some(number) if self.broken.is_none() => number,
            _ => match self.prepare(call) {
                Ok(Some(number)) => number,
                Ok(None) => {
                    self.watch.end(Signature::of(call));
                    return Ok(());
                }
                Err(error) => return Err(self.refuse(call, error)),
            },
        };
        // SAFETY: the caller's promise.
        match unsafe { self.execute(number, call) } {
            Ok(()) => {
                self.watch.end(self.plans.get(number).signature);
                Ok(())
            }
            Err(error) => {
                self.watch.enter(call);
                let error = self.fail(error);
                Err(self.refuse(call, error))
            }
        }
    }

    /// The call ends with `error`, which counts as a call if others may have heard of it.
    #[cold]
    fn refuse(&mut self, call: &Call, error: Error) -> Error {
        if error.is_harmless() {
            self.watch.retract();
        } else {
            self.watch.end(Signature::of(call));
        }
        error
    }

    /// Sends and receives, all at once: returns when all are done, whatever the order in which they and their partners on the
    /// other ranks are listed. Transfers between two ranks are matched in their order. A transfer to this rank
    /// itself needs its partner in the same list.
    ///
    /// # Errors
    /// A rank that does not exist, transfers to itself without a partner (both harmless); a partner of another length, a dead or
    /// aborted peer.
    ///
    /// # Safety
    /// The memory of each transfer is valid for its length, nobody else writes it or reads what is received during the call, and no
    /// received range overlaps another range.
    pub unsafe fn exchange(&mut self, transfers: &[Transfer]) -> Result<(), Error> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if let Some(bad) = transfers.iter().find(|t| t.peer() >= self.nranks) {
            return Err(Error::InvalidArgument {
                what: format!("peer {} in a communicator of {} ranks", bad.peer(), self.nranks),
            });
        }
        let mut transfers = transfers.to_vec();
        for (from, to, bytes) in exchange::take_own(&mut transfers, self.rank)? {
            // SAFETY: the caller's promise; `take_own` matched equal lengths.
            unsafe { std::ptr::copy(from, to, bytes) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.exchange_with_peers(&transfers) }.map_err(|e| self.fail(e))
    }

    unsafe fn exchange_with_peers(&mut self, transfers: &[Transfer]) -> Result<(), Error> {
        let deadline = self.link_deadline();
        let Self { endpoint, addresses, links, watch, .. } = self;
        let tile = self.tuner.slot_bytes;
        let program = exchange::bind(transfers, tile, |peer| {
            links.open(endpoint, addresses, peer, exchange::CHANNEL, deadline, watch)
        })?;
        let bytes = |t: &Transfer| match *t {
            Transfer::Send { bytes, .. } | Transfer::Receive { bytes, .. } => bytes,
        };
        let mut walk = Walk {
            program: &program,
            // The program's extents are addresses.
            buffers: Buffers { send: std::ptr::null(), recv: std::ptr::null_mut() },
            kernel: Kernel::select(DType::Uint8, RedOp::Max.into(), self.nranks, self.isa),
            size: 1,
            scaled: false,
            stream: transfers.iter().map(bytes).sum::<usize>() >= STREAM_FROM,
            // Transfers are no calls of all ranks.
            history: 0,
            links: &mut self.links,
            scratch: &mut self.scratch,
        };
        // SAFETY: the caller's promise.
        unsafe { walk.run(Wait::new(&self.endpoint, self.patience, &self.watch)) }
    }

    /// What `run` would choose for `call`, and why.
    ///
    /// # Errors
    /// If no algorithm is allowed for it.
    pub fn explain(&self, call: &Call) -> Result<Choice, Error> {
        Ok(self.tuner.choose(call)?.1)
    }

    /// A handle by which any thread can end this communicator's waits, on all ranks.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle { shared: self.watch.shared(), _endpoint: Arc::clone(&self.endpoint) }
    }

    /// The error that broke the communicator, if one did, or a peer's abort.
    pub fn async_error(&self) -> Option<Error> {
        self.broken.clone().or_else(|| self.watch.ended())
    }

    /// What was found out about waits that took longer than `MAYPOLE_REPORT`, oldest first; the last 64. Each was logged as
    /// a warning too. A report is no error: the call goes on.
    pub fn reports(&self) -> Vec<Report> {
        self.watch.reports()
    }

    unsafe fn execute(&mut self, number: usize, call: &Call) -> Result<(), Error> {
        let plan = self.plans.get(number);
        let history = self.watch.history();
        // Ranks whose calls ever differed meet with different tags, whatever the calls of today.
        let tag = plan.tag ^ history;
        let buffers = Buffers { send: call.send, recv: call.recv };
        let rescaled;
        let kernel = if plan.key.brings_scalar() {
            let Reduction { op, .. } = call.reduction;
            debug_assert_eq!(op, RedOp::PreMulSum);
            rescaled = Kernel::select(call.dtype, call.reduction, self.nranks, self.isa);
            &rescaled
        } else {
            &plan.kernel
        };
        match &plan.body {
            Body::Straight(line) => {
                let mut straight = Straight {
                    buffers,
                    kernel,
                    tag,
                    links: &mut self.links,
                    scratch: self.scratch.base(line.scratch, CAPACITY),
                    staging: &mut self.staging,
                    endpoint: &self.endpoint,
                    patience: self.patience,
                    watch: &self.watch,
                    call,
                };
                // SAFETY: the caller's promise; scratch was just made large enough.
                unsafe { straight.run(line) }
            }
            Body::Walk(program) => {
                self.watch.enter(call);
                let size = call.dtype.size();
                self.scratch.prepare(program.scratch, program.tile * size);
                let mut walk = Walk {
                    program,
                    buffers,
                    kernel: *kernel,
                    size,
                    scaled: plan.scaled,
                    stream: plan.stream,
                    history,
                    links: &mut self.links,
                    scratch: &mut self.scratch,
                };
                // SAFETY: the caller's promise.
                unsafe { walk.run(Wait::new(&self.endpoint, self.patience, &self.watch)) }
            }
        }
    }

    /// Makes the plan for `call`, or says why there can be none. A call of no elements needs none.
    #[cold]
    fn prepare(&mut self, call: &Call) -> Result<Option<usize>, Error> {
        if call.count == 0 {
            return Ok(None);
        }
        self.watch.enter(call);
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if let Some(root) = call.collective.root().filter(|&r| r >= self.nranks) {
            return Err(Error::InvalidArgument {
                what: format!("root {root} in a communicator of {} ranks", self.nranks),
            });
        }
        let (schedule, choice) = self.tuner.choose(call)?;
        self.plan(schedule, &choice, call).map(Some)
    }

    /// Proves `schedule` and binds it for calls like `call`.
    fn plan(&mut self, schedule: Schedule, choice: &Choice, call: &Call) -> Result<usize, Error> {
        let Call { collective, count, dtype, reduction, .. } = call;
        log::info!(target: "TUNING", "{collective} of {count} {dtype}, {}: {choice}", reduction.op);
        let proved = self.proved(schedule)?;
        let deadline = self.link_deadline();
        let Self { rank, isa, endpoint, addresses, links, watch, .. } = self;
        let plan = Plan::new(&proved, choice, call, *rank, *isa, links, |links, peer, channel| {
            links.open(endpoint, addresses, peer, channel, deadline, watch)
        });
        match plan {
            Ok(plan) => Ok(self.plans.insert(plan)),
            // The other ranks wait for this one's links.
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Until when a link must be open.
    fn link_deadline(&self) -> Instant {
        let timeout = self.config.timeout.unwrap_or(Duration::MAX).min(self.options.timeout);
        Instant::now() + timeout
    }

    fn proved(&mut self, schedule: Schedule) -> Result<Proved, Error> {
        let key = (schedule.collective, schedule.name);
        if let Some(proved) = self.proofs.get(&key) {
            return Ok(proved.clone());
        }
        let proved = prove(schedule).map_err(|c| Error::Internal { what: c.to_string() })?;
        self.proofs.insert(key, proved.clone());
        Ok(proved)
    }

    /// A call failed: tell all ranks, log it, remember it. What others saw first is the error here too.
    #[cold]
    fn fail(&mut self, error: Error) -> Error {
        let error = self.watch.fail(error);
        log::warn!("rank {}: {error}", self.rank);
        self.watch.abort_peers(&error);
        self.links.withdraw(&self.endpoint);
        self.broken.get_or_insert(error).clone()
    }
}

/// Ends a communicator's waits from any thread, on all ranks.
#[derive(Clone)]
pub struct AbortHandle {
    shared: Arc<Shared>,
    /// It must outlive the abort.
    _endpoint: Arc<Endpoint>,
}

impl AbortHandle {
    /// Makes every present and future wait of the communicator end with an error, here and on all other ranks.
    pub fn abort(&self) {
        self.shared.abort();
    }
}

/// The rank's endpoint and meeting place, what all ranks say of themselves, where they are, and whether they meet over TCP.
type Introduced = (Arc<Endpoint>, Meeting, Vec<Card>, Vec<Vec<u8>>, bool);

/// Makes what the other ranks must know of, and exchanges that with them.
fn introduce(
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
    let cards = exchange(joined, &card, Instant::now() + options.timeout)?;
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
fn layout(config: &Config, nranks: u32) -> InboxLayout {
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

fn exchange(joined: &mut Joined, card: &Card, deadline: Instant) -> Result<Vec<Card>, Error> {
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

fn isa(wanted: config::Isa) -> Isa {
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
