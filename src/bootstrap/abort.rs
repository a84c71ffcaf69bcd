//! Ending a rank's waits from another thread, from before there is a communicator.
//!
//! A signal is a descriptor that becomes readable when it is raised and stays so. Every wait of the bootstrap polls it beside
//! its sockets, so that it wakes at once whatever it waits for. Once there is a communicator, raising the signal aborts that.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::BootstrapError;
use super::stream::{self, poll_fd};

/// Aborts what it was given to, in [`Options`](super::Options): an init under way ends with
/// [`Error::Aborted`](crate::Error::Aborted), one that begins later too, and a communicator that came of one as by its
/// [`AbortHandle`](crate::AbortHandle). The other ranks learn who did it. Clones are the same signal; it cannot be taken back.
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
pub struct AbortSignal(Arc<Inner>);

struct Inner {
    /// Readable from the abort on.
    event: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    raised: bool,
    /// What runs and is to be aborted, by number.
    running: Vec<(u64, Arc<dyn Abortable>)>,
    next: u64,
}

/// What a signal can end.
pub(crate) trait Abortable: Send + Sync {
    /// Ends it. Does not wait.
    fn abort(&self);
}

impl AbortSignal {
    /// A signal that is not raised.
    ///
    /// # Errors
    /// [`BootstrapError::System`] where no descriptor can be had.
    pub fn new() -> Result<Self, BootstrapError> {
        let event = stream::event().map_err(|error| BootstrapError::system("eventfd", &error))?;
        Ok(Self(Arc::new(Inner { event, state: Mutex::default() })))
    }

    /// Raises it, from any thread and at any moment. Waits for nobody.
    pub fn abort(&self) {
        let mut state = self.state();
        state.raised = true;
        stream::ring(&self.0.event);
        state.running.iter().for_each(|(_, it)| it.abort());
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.state().raised
    }

    /// What to poll for.
    pub(super) fn poll_fd(&self) -> libc::pollfd {
        poll_fd(self.0.event.as_raw_fd(), libc::POLLIN)
    }

    /// While the result lives, the signal aborts `it`; at once if it is raised. When the result is dropped no abort is under way.
    pub(crate) fn register(&self, it: Arc<dyn Abortable>) -> AbortRegistration {
        let mut state = self.state();
        if state.raised {
            it.abort();
        }
        let number = state.next;
        state.next += 1;
        state.running.push((number, it));
        drop(state);
        AbortRegistration { signal: self.clone(), number }
    }

    /// The state is valid at every moment, so a panic under the lock does no harm.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AbortSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortSignal").field("raised", &self.is_raised()).finish_non_exhaustive()
    }
}

/// A place on a signal's list.
pub(crate) struct AbortRegistration {
    signal: AbortSignal,
    number: u64,
}

impl Drop for AbortRegistration {
    fn drop(&mut self) {
        self.signal.state().running.retain(|(number, _)| *number != self.number);
    }
}

/// Ends with the error of `rank`'s abort if the signal, where there is one, was raised.
pub(super) fn check(signal: Option<&AbortSignal>, rank: u32) -> Result<(), BootstrapError> {
    match signal {
        Some(signal) if signal.is_raised() => Err(BootstrapError::Aborted { by: rank }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Abortable for Count {
        fn abort(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_signal_reaches_what_is_enrolled_and_nothing_that_was() {
        let signal = AbortSignal::new().unwrap();
        let [early, gone, late] = [(); 3].map(|()| Arc::<Count>::default());
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
