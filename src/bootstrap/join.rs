//! A rank's way in: register at the root, link to the parent, let the children link, exchange cards.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::abort::{self, AbortSignal};
use super::accept::Gate;
use super::address::{self, Reach};
use super::dial::{Dial, Dialed};
use super::error::{BootstrapError, Options};
use super::hello::{Hello, Role};
use super::id::{Contents, UniqueId};
use super::multi_root::Ids;
use super::root;
use super::secret::Secret;
use super::stream::{self, Broken, Framed};
use super::tree::{ControlTree, children, parent};
use super::wire::{Frame, Registration};

/// Most bytes of a card.
pub const MOST_CARD: usize = 4096;

/// Longest time without reaching the root at all.
const REACH_PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than its own deadline a rank waits for the root's verdict, which names the missing.
const GRACE: Duration = Duration::from_secs(3);
/// For the root to close after the last rank has left.
const FAREWELL: Duration = Duration::from_secs(1);
/// For a rank that gives up without a connection to reach the root and say so.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// For the previous root at an address given by `NCCL_COMM_ID` to go away.
const REBIND: Duration = Duration::from_secs(5);

/// A rank that knows all others.
pub struct Joined {
    /// This rank.
    pub rank: u32,
    /// How many there are.
    pub nranks: u32,
    /// What each rank said of itself, in the order of the ranks.
    pub cards: Vec<Vec<u8>>,
    /// The connections that were made on the way.
    pub control: ControlTree,
    secret: Secret,
}

impl Joined {
    /// A key that only the ranks of this communicator can make: the same for the same label, unrelated for another.
    pub fn derive(&self, label: &str) -> [u8; 32] {
        self.keys().derive(label)
    }

    /// The source of further keys, for a communicator that outlives its bootstrap.
    pub fn keys(&self) -> CommunicatorKeys {
        CommunicatorKeys(self.secret.clone())
    }
}

/// Makes keys from a communicator's secret.
pub struct CommunicatorKeys(Secret);

impl CommunicatorKeys {
    /// As [`Joined::derive`].
    pub fn derive(&self, label: &str) -> [u8; 32] {
        self.0.prove("derive", &[label.as_bytes()])
    }
}

/// Joins as `rank` of `nranks`, bringing a card of up to [`MOST_CARD`] bytes, with the configured timeout. Returns when
/// all ranks have joined.
///
/// # Errors
/// Each names the rank at fault and is logged here, once.
pub fn join(id: &UniqueId, rank: u32, nranks: u32, card: &[u8]) -> Result<Joined, BootstrapError> {
    join_with(id, rank, nranks, card, &Options::default())
}

/// As [`join`], bounded as `options` says.
pub fn join_with(
    id: &UniqueId,
    rank: u32,
    nranks: u32,
    card: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    join_among(std::slice::from_ref(id), rank, nranks, card, options)
}

/// As [`join_with`], with one or several ids, the same in the same order on all ranks; their roots share the work.
///
/// # Errors
/// As for [`join`]; also if there are more ids than ranks, two are the same, or ranks differ in them.
pub fn join_among(
    ids: &[UniqueId],
    rank: u32,
    nranks: u32,
    card: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    admit(ids, rank, nranks, card, options).inspect_err(|error| log::warn!("{error}"))
}

fn admit(
    ids: &[UniqueId],
    rank: u32,
    nranks: u32,
    card: &[u8],
    options: &Options,
) -> Result<Joined, BootstrapError> {
    if rank >= nranks {
        return Err(BootstrapError::NoSuchRank { rank, nranks });
    }
    if card.len() > MOST_CARD {
        return Err(BootstrapError::TooLong { rank, len: card.len(), most: MOST_CARD });
    }
    let ids = Ids::new(ids, nranks)?;
    if nranks == 1 {
        release(&ids.roots[0]);
        return Ok(Joined {
            rank,
            nranks,
            cards: vec![card.to_vec()],
            control: ControlTree::new(0, 1, None),
            secret: ids.secret,
        });
    }
    if rank == 0 {
        for contents in ids.roots.iter().filter(|contents| contents.fixed) {
            start_fixed(contents, options)?;
        }
    }
    match Arrival::new(&ids, rank, nranks, options) {
        Ok(mut arrival) => match arrival.register() {
            Ok(()) => arrival.run(card),
            Err(error) => Err(arrival.give_up(error)),
        },
        Err(error) => {
            tell_roots(&ids, &[], rank, nranks, &error);
            Err(error)
        }
    }
}

/// Tells the roots to which this rank comes, but for those that were `told`, that it will not come.
fn tell_roots(ids: &Ids, told: &[usize], rank: u32, nranks: u32, error: &BootstrapError) {
    for at in ids.visited(rank, nranks) {
        if !told.contains(&at) && (rank == 0 || at == ids.home(rank, nranks)) {
            give_up(&ids.roots[at], rank, nranks, error);
        }
    }
}

/// Tells the root that this rank, which has no connection to it, will not come. Best effort.
fn give_up(contents: &Contents, rank: u32, nranks: u32, error: &BootstrapError) {
    let until = Instant::now() + LAST_WORDS;
    let hello = Hello { role: Role::Root, from: rank, to: 0, nranks, nonce: [0; 32] };
    let mut dial = Dial::new(contents.secret.clone(), hello, contents.reach.reachable_here());
    let stream = loop {
        match dial.advance() {
            Ok(Dialed::Connected(stream)) => break stream,
            Ok(Dialed::NotYet) if Instant::now() < until => {
                stream::wait(&mut [dial.poll_fd()], until.min(dial.wake()));
            }
            Ok(Dialed::NotYet | Dialed::WrongId(_)) | Err(_) => return,
        }
    };
    let mut root = Framed::new(stream, 0);
    root.send(&Frame::Verdict(error.verdict(rank)));
    stream::drain(std::iter::once(&mut root), until);
}

/// The root of an id with an address of the user's choice runs at rank 0.
fn start_fixed(contents: &Contents, options: &Options) -> Result<(), BootstrapError> {
    let until = Instant::now() + REBIND;
    loop {
        match address::listen_at(&contents.reach.addresses) {
            Ok((listeners, _)) => {
                return root::start(contents.secret.clone(), listeners, options, None).map(drop);
            }
            Err(BootstrapError::System { errno: libc::EADDRINUSE, .. })
                if Instant::now() < until =>
            {
                abort::check(options.abort.as_ref(), 0)?;
                let mut fds: Vec<_> = options.abort.iter().map(AbortSignal::poll_fd).collect();
                stream::wait(&mut fds, Instant::now() + Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
}

/// A rank that is alone needs no root; the one that its id has started, if it is on this host, may end at once. If it
/// cannot be reached it ends by itself later. No abort ends this: it is short.
fn release(contents: &Contents) {
    if contents.fixed || contents.reach.host_tag != address::host_tag() {
        return;
    }
    let options = Options { timeout: FAREWELL, ..Options::default() };
    let ids = Ids::one(contents.clone());
    let left = Arrival::new(&ids, 0, 1, &options).and_then(|mut arrival| {
        arrival.register()?;
        let roots = arrival.take_roots();
        arrival.leave(roots, true);
        Ok(())
    });
    if let Err(error) = left {
        log::info!("a root that is not needed was not told to end: {error}");
    }
}

/// A rank on its way in.
struct Arrival<'a> {
    ids: &'a Ids,
    rank: u32,
    nranks: u32,
    started: Instant,
    deadline: Instant,
    /// Until the parent is linked, the root of this rank's block, and of rank 0 all roots; with their numbers.
    roots: Vec<(usize, Framed)>,
    /// The parent being dialed.
    dial: Option<Dial>,
    /// Where the children come in.
    gate: Gate,
    reach: Reach,
    tree: ControlTree,
    abort: Option<AbortSignal>,
    /// The root that was tried last.
    unreached: Option<usize>,
}

impl<'a> Arrival<'a> {
    fn new(
        ids: &'a Ids,
        rank: u32,
        nranks: u32,
        options: &Options,
    ) -> Result<Self, BootstrapError> {
        let (listeners, reach) = if children(rank, nranks).next().is_some() {
            address::listen()?
        } else {
            (Vec::new(), Reach { host_tag: 0, addresses: Vec::new() })
        };
        let started = Instant::now();
        Ok(Self {
            ids,
            rank,
            nranks,
            started,
            deadline: started + options.timeout,
            roots: Vec::new(),
            dial: None,
            gate: Gate::new(listeners, ids.secret.clone(), Role::Tree, rank),
            reach,
            tree: ControlTree::new(rank, nranks, options.abort.clone()),
            abort: options.abort.clone(),
            unreached: None,
        })
    }

    /// With the root reached.
    fn run(mut self, card: &[u8]) -> Result<Joined, BootstrapError> {
        if let Err(error) = self.link() {
            // Some wait at the root, some at us; and the parent may be about to.
            let above = self.dial.take().and_then(Dial::abandon).map(|it| Framed::new(it, 0));
            let others: Vec<Framed> = above.into_iter().chain(self.take_roots()).collect();
            return Err(self.tree.fail_at(error, others));
        }
        self.gate.close();
        if self.rank == 0 {
            let roots = self.take_roots();
            self.tree.set_roots(roots);
        }
        let cards = self.tree.all_gather(card, self.deadline + GRACE)?;
        if self.rank == 0 {
            let roots = self.tree.take_roots();
            self.leave(roots, true);
        }
        log::debug!(
            "rank {} joined {} ranks in {:?}",
            self.rank,
            self.nranks,
            self.started.elapsed()
        );
        let Self { ids, rank, nranks, tree, .. } = self;
        Ok(Joined { rank, nranks, cards, control: tree, secret: ids.secret.clone() })
    }

    /// The roots that this rank is with.
    fn take_roots(&mut self) -> Vec<Framed> {
        std::mem::take(&mut self.roots).into_iter().map(|(_, root)| root).collect()
    }

    /// With some of the roots reached, or none. Whoever waits for this rank learns that it will not come; a root that could not
    /// be reached is not tried again.
    fn give_up(mut self, error: BootstrapError) -> BootstrapError {
        let mut told: Vec<usize> = self.roots.iter().map(|(at, _)| *at).collect();
        if matches!(error, BootstrapError::RootUnreachable { .. } | BootstrapError::WrongId { .. })
        {
            told.extend(self.unreached);
        }
        let roots = self.take_roots();
        let error = self.tree.fail_at(error, roots);
        tell_roots(self.ids, &told, self.rank, self.nranks, &error);
        error
    }

    fn hello(&self, role: Role, to: u32) -> Hello {
        Hello { role, from: self.rank, to, nranks: self.nranks, nonce: [0; 32] }
    }

    /// Says to the roots who and where this rank is: to that of its block, and to those of its children's blocks.
    fn register(&mut self) -> Result<(), BootstrapError> {
        let home = self.ids.home(self.rank, self.nranks);
        for at in self.ids.visited(self.rank, self.nranks) {
            self.unreached = Some(at);
            let mut root = Framed::new(self.reach_root(at)?, 0);
            root.send(&Frame::Register(Registration {
                host: crate::logger::host_name().to_owned(),
                pid: std::process::id(),
                patience: self.deadline.saturating_duration_since(Instant::now()),
                reach: self.reach.clone(),
                share: self.ids.share(at),
            }));
            if at == home || self.rank == 0 {
                self.roots.push((at, root));
            } else {
                self.announced(root)?;
            }
        }
        Ok(())
    }

    /// Connects to a root.
    fn reach_root(&self, at: usize) -> Result<TcpStream, BootstrapError> {
        let Contents { secret, reach, follows, .. } = &self.ids.roots[at];
        let addresses = reach.reachable_here();
        let hello = self.hello(Role::Root, 0);
        // Before the others' deadlines, so that they are told why and do not only miss this rank.
        let patience = self.deadline.saturating_duration_since(self.started) * 9 / 10;
        let until = self.started + patience.min(REACH_PATIENCE);
        let mut dial = Dial::new(secret.clone(), hello, addresses.clone());
        let mut wrong = None;
        loop {
            abort::check(self.abort.as_ref(), self.rank)?;
            let dialed = dial.advance()?;
            if let Dialed::WrongId(address) = dialed {
                wrong = Some(address);
            }
            let over = Instant::now() >= until;
            match (dialed, wrong) {
                (Dialed::Connected(stream), _) => return Ok(stream),
                // Unless the root of an earlier id may still be there.
                (_, Some(address)) if over || !follows => {
                    return Err(BootstrapError::WrongId { rank: self.rank, address });
                }
                _ if over => {
                    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                    return Err(BootstrapError::RootUnreachable {
                        rank: self.rank,
                        addresses: texts.join(", "),
                        waited: self.started.elapsed(),
                        last: dial.last().to_owned(),
                    });
                }
                _ => {
                    let mut fds = vec![dial.poll_fd()];
                    fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
                    stream::wait(&mut fds, until.min(dial.wake()));
                }
            }
        }
    }

    /// Leaves a root that has only to know where this rank is, as soon as it does.
    fn announced(&mut self, mut root: Framed) -> Result<(), BootstrapError> {
        root.send(&Frame::Leave);
        root.finish();
        let until = Instant::now() + FAREWELL;
        loop {
            root.fill();
            match root.next() {
                Ok(Some(Frame::Verdict(verdict))) => return Err(verdict),
                // Others are told of who is missing.
                Ok(Some(_)) => continue,
                Ok(None) if Instant::now() < until => {}
                _ => break,
            }
            abort::check(self.abort.as_ref(), self.rank)?;
            let mut fds = vec![root.poll_fd()];
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            stream::wait(&mut fds, until);
        }
        self.tree.closing(&root);
        Ok(())
    }

    /// Returns when parent and children are linked.
    fn link(&mut self) -> Result<(), BootstrapError> {
        let mut linked = self.rank == 0;
        loop {
            abort::check(self.abort.as_ref(), self.rank)?;
            self.hear_roots()?;
            if let Some(dial) = &mut self.dial
                && let Dialed::Connected(stream) = dial.advance()?
            {
                self.dial = None;
                self.tree.set_above(Framed::new(stream, 0));
                linked = true;
                let roots = self.take_roots();
                self.leave(roots, false);
            }
            if linked && self.tree.absent().next().is_none() {
                return Ok(());
            }
            if Instant::now() >= self.deadline + GRACE {
                return Err(self.late(linked));
            }

            let mut fds = Vec::new();
            self.gate.poll_fds(&mut fds);
            let gates = fds.len();
            self.tree.poll_fds(&mut fds);
            fds.extend(self.roots.iter().map(|(_, root)| root.poll_fd()));
            fds.extend(self.dial.iter().map(Dial::poll_fd));
            fds.extend(self.abort.iter().map(AbortSignal::poll_fd));
            let wake = [self.gate.wake(), self.dial.as_ref().map(Dial::wake)];
            let until = wake.into_iter().flatten().fold(self.deadline + GRACE, Instant::min);
            stream::wait(&mut fds, until);

            let (passed, _) = self.gate.advance(&fds[..gates]);
            for (hello, stream) in passed {
                self.adopt(hello, stream);
            }
            self.tree.hear(false)?;
        }
    }

    fn hear_roots(&mut self) -> Result<(), BootstrapError> {
        for at in 0..self.roots.len() {
            self.roots[at].1.fill();
            self.roots[at].1.flush();
            loop {
                match self.roots[at].1.next() {
                    Ok(Some(Frame::Parent(reach))) => {
                        let Some(above) = parent(self.rank) else { continue };
                        let hello = self.hello(Role::Tree, above);
                        let secret = self.ids.secret.clone();
                        self.dial = Some(Dial::new(secret, hello, reach.reachable_here()));
                    }
                    Ok(Some(Frame::Status { missing, waited })) => {
                        self.tree.status(&missing, waited);
                    }
                    Ok(Some(Frame::Verdict(verdict))) => return Err(verdict),
                    Ok(None) => break,
                    Err(Broken::Ended) => {
                        let (number, root) = &self.roots[at];
                        let known = &self.ids.roots[*number].reach.addresses;
                        let Some(address) = root.peer().or(known.first().copied()) else { break };
                        return Err(BootstrapError::RootLost { rank: self.rank, address });
                    }
                    Ok(Some(_)) | Err(Broken::Malformed) => {
                        return Err(BootstrapError::Protocol {
                            rank: self.rank,
                            peer: String::from("the root"),
                            what: "a frame",
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn adopt(&mut self, hello: Hello, stream: TcpStream) {
        let ours = children(self.rank, self.nranks).any(|child| child == hello.from);
        if ours && hello.nranks == self.nranks {
            self.tree.add_child(hello.from, Framed::new(stream, 0));
        } else {
            log::warn!("rank {} dialed rank {}, which is not its parent", hello.from, self.rank);
        }
    }

    /// Tells roots that they are not needed any more; `wait`s until they know, or a little.
    fn leave(&mut self, mut roots: Vec<Framed>, wait: bool) {
        for root in &mut roots {
            root.send(&Frame::Leave);
            root.finish();
        }
        if wait {
            stream::drain(roots.iter_mut(), Instant::now() + FAREWELL);
        }
        roots.iter().for_each(|root| self.tree.closing(root));
    }

    /// Who it is that does not come, after the root has failed to say so.
    fn late(&self, linked: bool) -> BootstrapError {
        let above = parent(self.rank).filter(|_| !linked);
        let (waiting_for, what) = match (above, self.tree.absent().next()) {
            (Some(above), _) => (above, "to take its connection"),
            (None, absent) => (absent.unwrap_or(self.rank), "to connect"),
        };
        BootstrapError::TimedOut {
            rank: self.rank,
            waiting_for,
            what: String::from(what),
            waited: self.started.elapsed(),
        }
    }
}
