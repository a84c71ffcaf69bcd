//! Calls by a schedule of the caller's own, in place of the one that the tuner would choose.

use maypole_algorithms::verify::Proved;

use super::Communicator;
use crate::call::{Call, Task};
use crate::element::Element;
use crate::error::Error;
use crate::plan::PlanKey;
use crate::reduce::Reduction;

impl Communicator {
    /// Runs the collective of `schedule` on `send` and `recv`, by `schedule`: blocks of equal length, as many in each buffer as
    /// [`Collective`](crate::Collective) says. All ranks must bring the same schedule, see [`run_by`](Self::run_by).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the slices are not so many blocks; else what `run_by` returns.
    pub fn collective_by<T: Element>(
        &mut self,
        schedule: &Proved,
        send: &[T],
        recv: &mut [T],
        reduction: impl Into<Reduction>,
    ) -> Result<(), Error> {
        let collective = schedule.schedule().collective;
        let sent = collective.input_chunks(self.nranks, 1) as usize;
        let received = collective.output_chunks(self.nranks, 1) as usize;
        let count = recv.len() / received;
        if (send.len(), recv.len()) != (count * sent, count * received) {
            return Err(Error::InvalidArgument {
                what: format!(
                    "{collective} from {} to {} elements; it needs {sent} blocks to send and {received} to receive, all of one length",
                    send.len(),
                    recv.len()
                ),
            });
        }
        let call = Call {
            collective,
            send: send.as_ptr().cast(),
            recv: recv.as_mut_ptr().cast(),
            count,
            dtype: T::DTYPE,
            reduction: reduction.into(),
        };
        // SAFETY: both slices are as long as the collective asks for, of a type without invalid values, and borrowed for the call.
        unsafe { self.run_by(schedule, &call) }
    }

    /// As [`run`](Self::run), by `schedule` whatever its class: [`prove`](maypole_algorithms::verify::prove) it once, and keep the proof for
    /// further calls. All ranks must bring the same schedule; names that differ are noticed, steps that differ under one
    /// name are not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, for a schedule of another collective or rank count, or one that needs more channels or slots
    /// than this communicator has; else what `run` returns.
    ///
    /// # Safety
    /// As for `run`.
    pub unsafe fn run_by(&mut self, schedule: &Proved, call: &Call) -> Result<(), Error> {
        self.watch.check_fork()?;
        let key = PlanKey::new(call);
        let number = match self.plans.find_by_schedule(schedule, &key) {
            Some(number) if self.broken.is_none() => number,
            _ => {
                let task = Task::from(call);
                let choice = self.tuner.admit(schedule.schedule(), &task)?;
                let proved = schedule.clone();
                let planned = self.prepare_with(
                    &task,
                    |comm, task| comm.plan_proved(&proved, &choice, task),
                    |plans, plan| plans.insert_by_schedule(proved.clone(), key, plan),
                )?;
                match planned {
                    Some(number) => number,
                    None => return Ok(()),
                }
            }
        };
        // SAFETY: the caller's promise.
        unsafe { self.run_plan(number, call) }
    }
}
