//! The service thread: one per process, for all its communicators; it sleeps in `poll` until something happens.
//!
//! It starts with the first communicator and ends with the last. It owns the control trees; the communicators' threads
//! send it commands and never wait for it for more than its next turn, for it never blocks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_algorithms::Rank;

use crate::bootstrap::stream::{event, poll_fd, ring, wait};
use crate::control::member::Member;
use crate::control::status::StatusServer;
use crate::control::verdict::Verdict;
use crate::control::{ControlShared, dump};
use crate::error::Error;
use crate::process::{PerProcess, spawn_thread};

/// Enough for any logger; pages that are not used cost nothing.
const STACK: usize = 512 << 10;
/// The most that the end of a process is delayed; the thread never blocks, so this is for its next turn.
const FAREWELL_PATIENCE: Duration = Duration::from_secs(1);

/// What a communicator's thread asks for; by the number of the communicator.
pub(crate) enum Command {
    Add(Box<Member>),
    /// Leave in peace.
    Remove(u64),
    /// Find out why this rank waits so long for that one.
    Suspect(u64, Rank, Instant),
    /// A connection to this rank is being made.
    Opening(u64, Rank),
    /// There is work on the rank's device.
    Look(u64),
    /// It is over.
    Decide(u64, Verdict),
    /// This rank's message belongs to another call: find out which. The text is for want of something better.
    Accuse(u64, Rank, String),
    /// Take part in the next exchange over the tree.
    Exchange(u64, Vec<u8>, Instant),
    /// The process ends without having dropped its communicators: they leave, and it is told when they have.
    Farewell(Sender<()>),
    /// The last communicator is gone.
    Stop,
}

/// How commands reach the thread.
pub(crate) struct Queue {
    commands: Mutex<Vec<Command>>,
    event: OwnedFd,
}

impl Queue {
    pub(crate) fn send(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        ring(&self.event);
    }

    fn take(&self) -> Vec<Command> {
        dump::drain(&self.event);
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The thread of this process, if it runs.
#[derive(Default)]
struct Service {
    running: Option<(Arc<Queue>, JoinHandle<()>)>,
    /// Communicators that it serves.
    members: usize,
}

static SERVICE: PerProcess<Mutex<Service>> = PerProcess::new();

/// Hands a communicator's tree over to the thread, which is started if need be.
pub(crate) fn add(member: impl FnOnce() -> Option<Member>) -> Result<Arc<Queue>, Error> {
    let mut service = service();
    let queue = match &service.running {
        Some((queue, _)) => queue.clone(),
        None => {
            let failed = |call| {
                move |error: io::Error| Error::System {
                    call,
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                }
            };
            let event = event().map_err(failed("eventfd"))?;
            let queue = Arc::new(Queue { commands: Mutex::default(), event });
            let theirs = queue.clone();
            let thread = spawn_thread("maypole-watch", Some(STACK), move || run(&theirs))
                .map_err(failed("pthread_create"))?;
            service.running = Some((queue.clone(), thread));
            queue
        }
    };
    service.members += 1;
    member().into_iter().for_each(|member| queue.send(Command::Add(Box::new(member))));
    Ok(queue)
}

/// A communicator has been removed; the last one takes the thread with it.
pub(crate) fn remove() {
    let mut service = service();
    service.members -= 1;
    if service.members > 0 {
        return;
    }
    if let Some((queue, thread)) = service.running.take() {
        drop(service);
        queue.send(Command::Stop);
        // A panic there has been printed; there is nothing to add.
        let _ = thread.join();
    }
}

/// From now on a process that ends by `exit` with communicators leaves them in peace, as far as its peers are concerned: at
/// the end of a job some ranks are still busy with the last call when others have gone, and do not need them.
pub(crate) fn notice_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler may run at any time after this. If it cannot be had, peers see a death.
        unsafe { libc::atexit(at_exit) };
    });
}

extern "C" fn at_exit() {
    // In a child made by fork there is no service but one of its own.
    let Some(service) = SERVICE.get_if_made() else { return };
    let queue = lock(service).running.as_ref().map(|(queue, _)| queue.clone());
    if let Some(queue) = queue {
        let (done, all) = channel();
        queue.send(Command::Farewell(done));
        let _ = all.recv_timeout(FAREWELL_PATIENCE);
    }
}

fn service() -> MutexGuard<'static, Service> {
    lock(SERVICE.get())
}

/// The state is whole at all times, so a panic elsewhere under the lock does no harm.
fn lock(service: &Mutex<Service>) -> MutexGuard<'_, Service> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(queue: &Queue) {
    let mut members: Vec<Member> = Vec::new();
    let mut desk = StatusServer::open();
    loop {
        for command in queue.take() {
            let id = match &command {
                Command::Add(_) | Command::Stop | Command::Farewell(_) => None,
                Command::Remove(id)
                | Command::Suspect(id, ..)
                | Command::Opening(id, _)
                | Command::Look(id)
                | Command::Decide(id, _)
                | Command::Accuse(id, ..)
                | Command::Exchange(id, ..) => Some(*id),
            };
            let at = id.and_then(|id| members.iter().position(|member| member.id() == id));
            match command {
                Command::Add(member) => members.push(*member),
                Command::Stop => return,
                Command::Farewell(done) => {
                    members.drain(..).for_each(Member::depart);
                    // It may have waited long enough.
                    let _ = done.send(());
                }
                Command::Remove(_) => {
                    if let Some(at) = at {
                        members.swap_remove(at).leave();
                    }
                }
                other => {
                    if let Some(at) = at {
                        members[at].obey(other);
                    }
                }
            }
        }
        let roster: Vec<Arc<ControlShared>> =
            members.iter().map(|member| member.shared()).collect();
        if dump::asked() {
            dump::dump(roster.iter().map(|shared| &**shared));
        }
        let now = Instant::now();
        for member in &mut members {
            member.turn(now, &roster);
        }
        desk.serve(&roster);
        drop(roster);
        let events = [queue.event.as_raw_fd(), dump::fd(), desk.fd()];
        let mut fds = events.map(|fd| poll_fd(fd, libc::POLLIN)).to_vec();
        members.iter().for_each(|member| member.poll_fds(&mut fds));
        let wake = members.iter().filter_map(Member::wake).min();
        wait(&mut fds, wake.unwrap_or_else(|| now + Duration::from_secs(3600)));
    }
}
