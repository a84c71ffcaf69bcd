//! The root: a rendezvous. It learns where each rank listens and tells each rank where its parent does; cards and
//! everything after go through the tree of ranks. A rank leaves as soon as it is linked to its parent, so the
//! root holds connections only for those that wait for somebody; it ends when all have left.
//!
//! It is one thread in the process that made the unique id. It never waits for any one connection.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::abort::AbortSignal;
use super::accept::Gate;
use super::address::Reach;
use super::error::{BootstrapError, Options, RankSet};
use super::hello::{Hello, Role};
use super::multi_root::Share;
use super::secret::Secret;
use super::stream::{self, Broken, Framed};
use super::traffic::ControlTraffic;
use super::tree::{children, parent};
use super::wire::{Frame, Registration};
use crate::config::Config;
use crate::process;

/// How long the root stays when no rank is connected to it.
const IDLE: Duration = Duration::from_secs(3600);
/// How long a rank that proved the secret may take to say who it is.
const REGISTER_PATIENCE: Duration = Duration::from_secs(10);
/// Doubling must get somewhere.
const SHORTEST_NOTICE: Duration = Duration::from_millis(10);
/// For the ranks to decide who keeps a complete communicator waiting.
const VERDICT_PATIENCE: Duration = Duration::from_secs(10);
/// For last words to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// What roots of this process have served: those that have ended, by a proof of their secrets.
#[cfg(test)]
pub(super) static ENDED: std::sync::Mutex<Vec<([u8; 32], ControlTraffic)>> =
    std::sync::Mutex::new(Vec::new());

/// Starts the root of a unique id behind these listeners. It ends early when `stop` is raised.
pub(super) fn start(
    secret: Secret,
    listeners: Vec<TcpListener>,
    options: &Options,
    stop: Option<AbortSignal>,
) -> Result<JoinHandle<()>, BootstrapError> {
    #[cfg(test)]
    let proof = secret.prove("ended", &[]);
    let root = Root {
        gate: Gate::new(listeners, secret, Role::Root, 0),
        stop,
        fresh: Vec::new(),
        members: BTreeMap::new(),
        nranks: None,
        share: None,
        started: None,
        deadline: None,
        verdict: None,
        next_notice: options.notice.max(SHORTEST_NOTICE),
        idle_since: Instant::now(),
        traffic: ControlTraffic::default(),
    };
    let run = move || {
        let _traffic = root.serve();
        #[cfg(test)]
        ENDED.lock().expect("nobody panics with it").push((proof, _traffic));
    };
    process::spawn_thread("maypole-root", None, run)
        .map_err(|error| BootstrapError::system("pthread_create", &error))
}

struct Root {
    gate: Gate,
    /// Ends it without a word to anybody.
    stop: Option<AbortSignal>,
    /// Let in, but not yet registered.
    fresh: Vec<Fresh>,
    members: BTreeMap<u32, Member>,
    /// As the first comer says.
    nranks: Option<u32>,
    /// Which ranks this root serves, as the first comer says, and how many come.
    share: Option<(Share, usize)>,
    /// Arrival of the first comer.
    started: Option<Instant>,
    /// The earliest of the ranks' deadlines.
    deadline: Option<Instant>,
    /// What a rank that gave up said: who comes now is told that.
    verdict: Option<BootstrapError>,
    /// Time since the start at which missing ranks are named next.
    next_notice: Duration,
    idle_since: Instant,
    /// With ranks that have left.
    traffic: ControlTraffic,
}

struct Fresh {
    hello: Hello,
    framed: Framed,
    until: Instant,
}

/// A registered rank.
struct Member {
    host: String,
    pid: u32,
    reach: Reach,
    /// None after it has left.
    framed: Option<Framed>,
}

impl Member {
    /// One that needs nothing any more.
    fn gone() -> Self {
        let reach = Reach { host_tag: 0, addresses: Vec::new() };
        Self { host: String::new(), pid: 0, reach, framed: None }
    }
}

impl Root {
    /// Until nobody needs it any more; what it has served.
    fn serve(mut self) -> ControlTraffic {
        loop {
            let mut fds = Vec::new();
            self.gate.poll_fds(&mut fds);
            fds.extend(self.fresh.iter().map(|fresh| fresh.framed.poll_fd()));
            fds.extend(self.members.values().filter_map(|it| Some(it.framed.as_ref()?.poll_fd())));
            let polled = fds.len();
            fds.extend(self.stop.iter().map(AbortSignal::poll_fd));
            stream::wait(&mut fds, self.wake());
            if self.stop.as_ref().is_some_and(AbortSignal::is_raised) {
                return self.traffic;
            }

            // Members first: those who have left free the way for what comes next.
            let gates = polled - self.fresh.len() - self.connected();
            self.hear_members(&fds[gates + self.fresh.len()..]);
            self.hear_fresh(&fds[gates..gates + self.fresh.len()]);
            let (passed, _) = self.gate.advance(&fds);
            self.welcome(passed);

            if self.is_served() {
                match self.verdict {
                    None => log::info!(
                        "all {} ranks that come to this root have joined in {:.2} s; it ends after {} connections, {} messages sent and {} received",
                        self.members.len(),
                        self.waited().as_secs_f64(),
                        self.traffic.connections,
                        self.traffic.sent,
                        self.traffic.received
                    ),
                    Some(_) => log::info!("all ranks know of the failure; the root ends"),
                }
                return self.traffic;
            }
            if self.is_over() {
                return self.traffic;
            }
            self.notify();
        }
    }

    /// When the root gives up. If all are here but somebody is not linked, or its card does not come, the ranks know
    /// better who: they are given time to say so.
    fn end(&self) -> Option<Instant> {
        let grace = if self.is_complete() { VERDICT_PATIENCE } else { Duration::ZERO };
        self.deadline.map(|deadline| deadline + grace)
    }

    fn connected(&self) -> usize {
        self.members.values().filter(|member| member.framed.is_some()).count()
    }

    fn wake(&self) -> Instant {
        let notice = self.started.filter(|_| self.verdict.is_none());
        let notice = notice.map(|started| started + self.next_notice);
        let fresh = self.fresh.iter().map(|fresh| fresh.until).min();
        [notice, fresh, self.end(), self.gate.wake()]
            .into_iter()
            .flatten()
            .fold(self.idle_since + IDLE, Instant::min)
    }

    fn welcome(&mut self, passed: Vec<(Hello, TcpStream)>) {
        for (hello, stream) in passed {
            let framed = Framed::new(stream, 0);
            let until = Instant::now() + REGISTER_PATIENCE;
            self.fresh.push(Fresh { hello, framed, until });
        }
        // Their registrations are often here already.
        self.hear_fresh(&[]);
    }

    /// Reads from those not yet registered; those without an entry in `fds` are looked at in any case.
    fn hear_fresh(&mut self, fds: &[libc::pollfd]) {
        let now = Instant::now();
        for (at, mut fresh) in std::mem::take(&mut self.fresh).into_iter().enumerate() {
            if fds.get(at).is_none_or(|fd| fd.revents != 0) {
                fresh.framed.fill();
            }
            match fresh.framed.next() {
                Ok(Some(Frame::Register(registration))) => {
                    self.register(fresh.hello, registration, fresh.framed);
                }
                // It does not even come. Unless another has come in its place: then the job goes on without it.
                Ok(Some(Frame::Verdict(verdict))) => {
                    let Hello { from: rank, nranks, .. } = fresh.hello;
                    let ours = *self.nranks.get_or_insert(nranks) == nranks;
                    if ours && !self.members.contains_key(&rank) {
                        self.members.insert(rank, Member::gone());
                        self.condemn(rank, verdict);
                    }
                }
                Ok(None) if now < fresh.until => self.fresh.push(fresh),
                _ => log::info!("rank {} did not register", fresh.hello.from),
            }
        }
    }

    fn register(&mut self, hello: Hello, registration: Registration, mut framed: Framed) {
        let (rank, now) = (hello.from, Instant::now());
        let nranks = *self.nranks.get_or_insert(hello.nranks);
        let ours = || {
            let share = registration.share;
            (share, share.expected(nranks))
        };
        let (share, _) = *self.share.get_or_insert_with(ours);
        let first = self.members.get(&rank);
        let objection = if nranks != hello.nranks {
            Some(BootstrapError::WrongWorld { rank, ours: hello.nranks, theirs: nranks })
        } else if share != registration.share {
            Some(BootstrapError::Disagreement {
                what: String::from("the unique ids, their number or their order"),
                ranks: RankSet::new([rank]),
            })
        } else {
            first.map(|first| BootstrapError::DuplicateRank {
                rank,
                host: first.host.clone(),
                pid: first.pid,
            })
        };
        if let Some(objection) = objection {
            log::warn!(
                "refused process {} on {}: {objection}",
                registration.pid,
                registration.host
            );
            framed.send(&Frame::Verdict(objection));
            framed.finish();
            return;
        }
        self.started.get_or_insert(now);
        if let Some(verdict) = &self.verdict {
            framed.send(&Frame::Verdict(verdict.clone()));
            framed.finish();
            self.members.insert(rank, Member { framed: Some(framed), ..Member::gone() });
            return;
        }
        let deadline = now + registration.patience;
        self.deadline = Some(self.deadline.map_or(deadline, |earliest| earliest.min(deadline)));

        let served = |rank: &u32| share.serves(*rank, nranks);
        let above = parent(rank).filter(|_| served(&rank));
        if let Some(above) = above.and_then(|above| self.members.get(&above)) {
            framed.send(&Frame::Parent(above.reach.clone()));
        }
        let parent_here = Frame::Parent(registration.reach.clone());
        for child in children(rank, nranks).filter(served) {
            if let Some(framed) = self.members.get_mut(&child).and_then(|it| it.framed.as_mut()) {
                framed.send(&parent_here);
            }
        }
        let Registration { host, pid, reach, .. } = registration;
        log::debug!("rank {rank} of {nranks} came: process {pid} on {host}");
        self.members.insert(rank, Member { host, pid, reach, framed: Some(framed) });
        // What came together with its registration wakes nobody again.
        self.hear_member(rank);
    }

    fn hear_members(&mut self, fds: &[libc::pollfd]) {
        let connected = self.members.iter().filter(|(_, member)| member.framed.is_some());
        let ready: Vec<u32> = connected
            .zip(fds)
            .filter(|(_, fd)| fd.revents != 0)
            .map(|((&rank, _), _)| rank)
            .collect();
        for rank in ready {
            self.hear_member(rank);
        }
        if self.connected() + self.fresh.len() > 0 {
            self.idle_since = Instant::now();
        }
        // Only rank 0 is left, collecting cards: who comes now comes for another communicator.
        if self.is_complete() && self.connected() <= 1 {
            self.gate.close();
        }
    }

    /// A rank gave up: nobody waits any longer.
    fn condemn(&mut self, rank: u32, verdict: BootstrapError) {
        if self.verdict.is_some() {
            return;
        }
        log::info!("rank {rank} gave up: {verdict}");
        self.tell(&Frame::Verdict(verdict.clone()));
        self.members.values_mut().filter_map(|it| it.framed.as_mut()).for_each(Framed::finish);
        self.verdict = Some(verdict);
        // Those that have not come yet are told when they do, until the root would have given up.
        let now = Instant::now();
        self.started.get_or_insert(now);
        self.deadline.get_or_insert(now + Config::get().init_timeout);
    }

    fn hear_member(&mut self, rank: u32) {
        let Some(member) = self.members.get_mut(&rank) else { return };
        let Some(framed) = &mut member.framed else { return };
        framed.fill();
        framed.flush();
        match framed.next() {
            Ok(Some(Frame::Leave)) => {
                self.traffic.add(framed);
                member.framed = None;
            }
            Ok(Some(Frame::Verdict(verdict))) => {
                member.framed = None;
                self.condemn(rank, verdict);
            }
            Ok(None) => {}
            // It was told.
            Err(Broken::Ended) if self.verdict.is_some() => member.framed = None,
            // It may come again; its children will be told where it is then.
            Err(Broken::Ended) => {
                log::info!("rank {rank} went away before it was linked");
                self.members.remove(&rank);
            }
            Ok(Some(_)) | Err(Broken::Malformed) => {
                log::warn!("rank {rank} breaks the protocol of the root; dropped");
                self.members.remove(&rank);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.share.is_some_and(|(_, expected)| self.members.len() == expected)
    }

    fn is_served(&self) -> bool {
        self.is_complete() && self.connected() == 0
    }

    /// Whether time is up; then everybody has been told.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        if self.end().is_some_and(|end| end <= now) {
            if !self.is_complete() && self.verdict.is_none() {
                let verdict = BootstrapError::MissingRanks {
                    ranks: self.missing(),
                    nranks: self.nranks.unwrap_or(0),
                    waited: self.waited(),
                };
                log::warn!("{verdict}");
                self.tell(&Frame::Verdict(verdict));
            }
            self.farewell();
            return true;
        }
        if now >= self.idle_since + IDLE {
            log::info!("no rank came for {} s; the root ends", IDLE.as_secs());
            return true;
        }
        false
    }

    /// Names the missing ranks when it is time.
    fn notify(&mut self) {
        if self.verdict.is_some() || self.started.is_none() || self.waited() < self.next_notice {
            return;
        }
        let (missing, waited) = (self.missing(), self.waited());
        while self.next_notice <= waited {
            self.next_notice *= 2;
        }
        if !missing.is_empty() {
            log::warn!(
                "after {:.0} s {} of {} ranks have not joined: {missing}",
                waited.as_secs_f64(),
                missing.len(),
                self.nranks.unwrap_or(0)
            );
            self.tell(&Frame::Status { missing, waited });
        }
    }

    fn tell(&mut self, frame: &Frame) {
        for framed in self.members.values_mut().filter_map(|it| it.framed.as_mut()) {
            framed.send(frame);
        }
    }

    /// Lets the last frames get out before the connections are closed.
    fn farewell(&mut self) {
        let until = Instant::now() + FAREWELL;
        let mut left: Vec<Framed> =
            self.members.values_mut().filter_map(|member| member.framed.take()).collect();
        stream::drain(left.iter_mut(), until);
    }

    /// Of the ranks that come here; only other roots know of others.
    fn missing(&self) -> RankSet {
        let (Some((share, _)), Some(nranks)) = (self.share, self.nranks) else {
            return RankSet::new([]);
        };
        let mut missing = RankSet::new([]);
        for range in share.visitors(nranks) {
            let here = self.members.range(range.clone()).map(|(rank, _)| *rank);
            missing.add_missing(here, range);
        }
        missing
    }

    fn waited(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }
}
