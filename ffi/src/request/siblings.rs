//! The creations of one group: when one fails, the others end at once, because they may wait for
//! its rank.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use maypole::internal::logger;
use maypole::{AbortSignal, ResultCode};

/// The creations of a group that have not ended. Clones are the same group.
#[derive(Clone, Default)]
pub(crate) struct Siblings(Arc<Mutex<SiblingState>>);

#[derive(Default)]
struct SiblingState {
    /// The signals that end the creations, each with the number of its creation.
    signals: Vec<(usize, AbortSignal)>,
    added: usize,
    /// The result of the creation that failed first, and the text of its error.
    failure: Option<(ResultCode, String)>,
}

impl Siblings {
    /// Adds a creation, which this signal ends. Returns its number.
    pub(crate) fn add(&self, signal: Option<AbortSignal>) -> usize {
        let mut state = self.state();
        let number = state.added;
        state.added += 1;
        if let Some(signal) = signal {
            if state.failure.is_some() {
                signal.abort();
            }
            state.signals.push((number, signal));
        }
        number
    }

    /// A creation was successful. A later failure of another does not end its communicator.
    pub(crate) fn succeed(&self, number: usize) {
        self.state().signals.retain(|(other, _)| *other != number);
    }

    /// A creation has failed. If it is the first, it ends all others; else this returns the result
    /// of the first, which is the cause.
    pub(crate) fn fail(
        &self,
        number: usize,
        code: ResultCode,
        text: &str,
    ) -> Result<(), ResultCode> {
        let mut state = self.state();
        if let Some((first, _)) = state.failure {
            return Err(first);
        }
        state.failure = Some((code, text.to_owned()));
        let signals = std::mem::take(&mut state.signals);
        drop(state);
        signals.iter().filter(|(other, _)| *other != number).for_each(|(_, it)| it.abort());
        Ok(())
    }

    /// The result of the creation that failed first.
    pub(crate) fn failure(&self) -> Option<ResultCode> {
        self.state().failure.as_ref().map(|(code, _)| *code)
    }

    /// Makes the error of the creation that failed first be the last error again: those that it
    /// ended have logged only that.
    pub(crate) fn restore_error(&self) {
        if let Some((_, text)) = &self.state().failure
            && !text.is_empty()
        {
            logger::set_last_error(text);
        }
    }

    /// The state is valid at every moment, so a panic under the lock does no harm.
    fn state(&self) -> MutexGuard<'_, SiblingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_ends_all_creations_that_have_not_ended() {
        let siblings = Siblings::default();
        let signals = [(); 4].map(|()| AbortSignal::new().unwrap());
        for (number, signal) in signals[..3].iter().enumerate() {
            assert_eq!(siblings.add(Some(signal.clone())), number);
        }
        siblings.succeed(1);
        assert_eq!(siblings.fail(2, ResultCode::InvalidUsage, "twice"), Ok(()));
        siblings.add(Some(signals[3].clone()));
        let raised = signals.each_ref().map(AbortSignal::is_raised);
        assert_eq!(raised, [true, false, false, true]);
        assert_eq!(siblings.failure(), Some(ResultCode::InvalidUsage));
        let later = siblings.fail(0, ResultCode::RemoteError, "ended");
        assert_eq!(later, Err(ResultCode::InvalidUsage));
    }
}
