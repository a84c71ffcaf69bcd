//! A signal by which another thread ends an init, and later the communicator.
//!
//! A signal is a descriptor that becomes readable when the signal is raised, and stays readable.
//! Every wait of the bootstrap polls it together with its sockets. Once the communicator exists,
//! raising the signal aborts it.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::BootstrapError;
use super::poll::{new_event, poll_fd, signal_event};

/// Ends inits and communicators that were given this signal in their [`Options`](super::Options).
///
/// An init that runs, or that begins later, ends with [`Error::Aborted`](crate::Error::Aborted); a
/// communicator is aborted as by its [`AbortHandle`](crate::AbortHandle). The other ranks learn
/// which rank aborted. Clones are the same signal. A signal cannot be lowered again.
///
/// ```
/// use maypole::{AbortSignal, Communicator, Error, UniqueId};
///
/// let id = UniqueId::create()?;
/// let signal = AbortSignal::new()?;
/// let builder = Communicator::builder(&id).rank(1, 2).abort_signal(signal.clone());
/// let waiting = std::thread::spawn(move || {
///     builder.build().err()
/// });
/// signal.abort(); // Rank 0 does not come.
/// assert_eq!(waiting.join().expect("the rank ran"), Some(Error::Aborted { by: 1 }));
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct AbortSignal(Arc<AbortSignalInner>);

struct AbortSignalInner {
    /// Readable from the abort on.
    event: OwnedFd,
    state: Mutex<AbortSignalState>,
}

#[derive(Default)]
struct AbortSignalState {
    raised: bool,
    /// What the signal aborts, each with the number of its registration.
    registered: Vec<(u64, Arc<dyn Abortable>)>,
    next_number: u64,
}

/// Something that a signal can end.
pub(crate) trait Abortable: Send + Sync {
    /// Ends it, without waiting.
    fn abort(&self);
}

impl AbortSignal {
    /// Makes a signal that is not raised.
    ///
    /// # Errors
    /// [`BootstrapError::System`] if the process has no descriptor left.
    pub fn new() -> Result<Self, BootstrapError> {
        let event = new_event().map_err(|error| BootstrapError::system("eventfd", &error))?;
        Ok(Self(Arc::new(AbortSignalInner { event, state: Mutex::default() })))
    }

    /// Raises the signal, from any thread and at any moment, without waiting.
    pub fn abort(&self) {
        let mut state = self.state();
        state.raised = true;
        signal_event(&self.0.event);
        state.registered.iter().for_each(|(_, target)| target.abort());
    }

    /// Whether the signal was raised.
    pub fn is_raised(&self) -> bool {
        self.state().raised
    }

    /// The entry with which to poll the signal.
    pub(super) fn poll_fd(&self) -> libc::pollfd {
        poll_fd(self.0.event.as_raw_fd(), libc::POLLIN)
    }

    /// Makes the signal abort `target` until the result is dropped; at once if the signal is
    /// raised. After the drop no abort of `target` is in progress.
    pub(crate) fn register(&self, target: Arc<dyn Abortable>) -> AbortRegistration {
        let mut state = self.state();
        if state.raised {
            target.abort();
        }
        let number = state.next_number;
        state.next_number += 1;
        state.registered.push((number, target));
        drop(state);
        AbortRegistration { signal: self.clone(), number }
    }

    /// The state is valid at every moment, so a panic under the lock does no harm.
    fn state(&self) -> MutexGuard<'_, AbortSignalState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortSignal").field("raised", &self.is_raised()).finish_non_exhaustive()
    }
}

/// Keeps something registered with a signal, until it is dropped.
pub(crate) struct AbortRegistration {
    signal: AbortSignal,
    number: u64,
}

impl Drop for AbortRegistration {
    fn drop(&mut self) {
        self.signal.state().registered.retain(|(number, _)| *number != self.number);
    }
}

/// The error of an abort by `rank`, if there is a signal and it was raised.
pub(super) fn check(signal: Option<&AbortSignal>, rank: u32) -> Result<(), BootstrapError> {
    match signal {
        Some(signal) if signal.is_raised() => Err(BootstrapError::Aborted { by: rank }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use maypole_transport::sync::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct AbortCounter(AtomicU32);

    impl Abortable for AbortCounter {
        fn abort(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_signal_aborts_what_is_registered_and_nothing_that_was() {
        let signal = AbortSignal::new().unwrap();
        let [early, gone, late] = [(); 3].map(|()| Arc::<AbortCounter>::default());
        let _early = signal.register(early.clone());
        drop(signal.register(gone.clone()));
        assert!(check(Some(&signal), 3).is_ok() && check(None, 3).is_ok());
        signal.clone().abort();
        assert_eq!(check(Some(&signal), 3), Err(BootstrapError::Aborted { by: 3 }));
        let _late = signal.register(late.clone());
        let counts = [early, gone, late].map(|it| it.0.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 0, 1]);
    }
}
