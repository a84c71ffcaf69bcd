//! The service thread: one thread per process, which serves the control trees of all communicators.
//!
//! The thread starts with the first communicator and ends with the last. It sleeps in `poll` and
//! never blocks elsewhere, so the threads of communicators, which send it commands, never wait for
//! more than its next turn.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use maypole_transport::sync::{AtomicBool, Ordering};

use crate::bootstrap::poll::{new_event, poll_fd, signal_event, take_event, wait};
use crate::control::ras::RasServer;
use crate::control::served_communicator::ServedCommunicator;
use crate::control::status::StatusServer;
use crate::control::{CommunicatorCommand, ControlShared, dump};
use crate::error::Error;
use crate::process::{PerProcess, spawn_thread};

/// Bytes of the stack: enough for any logger. Pages that are not used cost nothing.
const STACK: usize = 512 << 10;
/// How long the end of the process waits for the thread to leave all communicators.
const LEAVE_ALL_TIME: Duration = Duration::from_secs(1);

/// A command to the service thread. Communicators are named by their number in this process.
pub(super) enum ServiceCommand {
    /// Serve another communicator.
    Add(Box<ServedCommunicator>),
    /// Leave a communicator.
    Remove(u64),
    /// A command of a communicator.
    Communicator(u64, CommunicatorCommand),
    /// Send what is shared of all communicators to the sender.
    List(Sender<Vec<Arc<ControlShared>>>),
    /// Leave all communicators, because the process ends without having dropped them; then signal
    /// the sender.
    LeaveAll(Sender<()>),
    /// End, because the last communicator was removed.
    Stop,
}

/// The commands that the thread has not taken.
pub(super) struct CommandQueue {
    commands: Mutex<Vec<ServiceCommand>>,
    /// Signalled when a command is added.
    event: OwnedFd,
}

impl CommandQueue {
    pub(super) fn send(&self, command: ServiceCommand) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        signal_event(&self.event);
    }

    fn take(&self) -> Vec<ServiceCommand> {
        take_event(&self.event);
        std::mem::take(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The thread of this process, if it runs.
#[derive(Default)]
struct ServiceThread {
    running: Option<(Arc<CommandQueue>, JoinHandle<()>)>,
    /// The number of communicators that it serves.
    communicators: usize,
}

static SERVICE: PerProcess<Mutex<ServiceThread>> = PerProcess::new();

/// Hands a communicator to the thread, which is started if it does not run. `make` makes the
/// communicator once it is certain that the thread runs.
///
/// # Errors
/// The process has no descriptor or thread left.
pub(super) fn add(make: impl FnOnce() -> Option<ServedCommunicator>) -> Result<(), Error> {
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
            let event = new_event().map_err(failed("eventfd"))?;
            let queue = Arc::new(CommandQueue { commands: Mutex::default(), event });
            let theirs = queue.clone();
            let thread = spawn_thread("maypole-watch", Some(STACK), move || run(&theirs))
                .map_err(failed("pthread_create"))?;
            service.running = Some((queue.clone(), thread));
            queue
        }
    };
    service.communicators += 1;
    if let Some(communicator) = make() {
        // The queue is set once, here.
        let _ = communicator.shared().queue.set(queue.clone());
        queue.send(ServiceCommand::Add(Box::new(communicator)));
    }
    Ok(())
}

/// Makes the thread leave a communicator.
pub(super) fn leave(shared: &ControlShared) {
    if let Some((queue, _)) = &service().running {
        queue.send(ServiceCommand::Remove(shared.id));
    }
}

/// Counts a communicator that was left, and ends the thread after the last.
pub(super) fn remove() {
    let mut service = service();
    service.communicators -= 1;
    if service.communicators > 0 {
        return;
    }
    if let Some((queue, thread)) = service.running.take() {
        drop(service);
        queue.send(ServiceCommand::Stop);
        // A panic of the thread has been printed already.
        let _ = thread.join();
    }
}

/// Makes a process that ends by `exit` leave its communicators, so that its peers do not regard it
/// as dead: at the end of a job some ranks are still busy with the last call when others have
/// ended, and do not need these.
pub(super) fn notice_exit() {
    static NOTICED: AtomicBool = AtomicBool::new(false);
    if !NOTICED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handler is a function of this library and may run at any time. If it cannot
        // be registered, peers see the death of a process.
        unsafe { libc::atexit(at_exit) };
    }
}

extern "C" fn at_exit() {
    // A child made by fork has no service, or one of its own.
    let Some(service) = SERVICE.get_if_made() else { return };
    let queue = lock(service).running.as_ref().map(|(queue, _)| queue.clone());
    if let Some(queue) = queue {
        let (send, all) = channel();
        queue.send(ServiceCommand::List(send));
        let all = all.recv_timeout(LEAVE_ALL_TIME).unwrap_or_default();
        // The communicators wait for their peers at the same time.
        let until = all.iter().map(|shared| shared.flush_deadline()).max();
        all.iter().zip(until.iter().cycle()).for_each(|(shared, until)| shared.flush(*until));
        let (done, all) = channel();
        queue.send(ServiceCommand::LeaveAll(done));
        let _ = all.recv_timeout(LEAVE_ALL_TIME);
    }
}

fn service() -> MutexGuard<'static, ServiceThread> {
    lock(SERVICE.get())
}

/// The state is whole at all times, so a panic elsewhere under the lock does no harm.
fn lock(service: &Mutex<ServiceThread>) -> MutexGuard<'_, ServiceThread> {
    service.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread.
fn run(queue: &CommandQueue) {
    let mut communicators: Vec<ServedCommunicator> = Vec::new();
    let mut status = StatusServer::open();
    let _ras = RasServer::open();
    loop {
        let commands = queue.take();
        let all: Vec<Arc<ControlShared>> =
            communicators.iter().map(ServedCommunicator::shared).collect();
        for command in commands {
            let position = |id| communicators.iter().position(|other| other.id() == id);
            match command {
                ServiceCommand::Stop => return,
                ServiceCommand::Add(communicator) => communicators.push(*communicator),
                ServiceCommand::Remove(id) => {
                    if let Some(at) = position(id) {
                        communicators.swap_remove(at).leave(&all);
                    }
                }
                ServiceCommand::Communicator(id, command) => {
                    if let Some(at) = position(id) {
                        communicators[at].guard(&all, |it, all| it.obey(command, all));
                    }
                }
                ServiceCommand::List(send) => {
                    // The receiver is gone if it has waited long enough.
                    let _ = send.send(all.clone());
                }
                ServiceCommand::LeaveAll(done) => {
                    communicators.drain(..).for_each(|it| it.leave(&all));
                    // The receiver is gone if it has waited long enough.
                    let _ = done.send(());
                }
            }
        }
        drop(all);
        let all: Vec<Arc<ControlShared>> =
            communicators.iter().map(ServedCommunicator::shared).collect();
        if dump::is_requested() {
            dump::dump(all.iter().map(|shared| &**shared));
        }
        let turn = ServedCommunicator::turn;
        communicators.iter_mut().for_each(|communicator| communicator.guard(&all, turn));
        drop(all);
        // A panic has been printed already. Nothing waits for an answer of this server.
        let all = || communicators.iter().map(ServedCommunicator::status).collect();
        let _ = catch_unwind(AssertUnwindSafe(|| status.serve(all)));
        let events = [queue.event.as_raw_fd(), dump::fd(), status.fd()];
        let mut fds = events.map(|fd| poll_fd(fd, libc::POLLIN)).to_vec();
        communicators.iter().for_each(|communicator| communicator.poll_fds(&mut fds));
        let wake = communicators.iter().filter_map(ServedCommunicator::wake).min();
        wait(&mut fds, wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)));
    }
}
