//! Runs calls by a schedule of the caller, instead of the one that the tuner would choose.

use maypole_algorithms::verify::Proved;
use maypole_reduce::Reduction;
use maypole_reduce::environment::DefaultEnvironment;

use super::Communicator;
use crate::call::{Call, Task};
use crate::element::Element;
use crate::error::Error;
use crate::plan::PlanKey;

impl Communicator {
    /// Runs the collective of `schedule` by `schedule`. Each buffer has as many blocks as
    /// [`Collective`](crate::Collective) says, all of one length. All ranks must pass the same
    /// schedule, see [`run_by`](Self::run_by).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, if the lengths are not so many blocks; else those of
    /// [`run_by`](Self::run_by).
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
                    "{collective} from {} to {} elements; it needs {sent} blocks to send and \
                     {received} to receive, all of one length",
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
        // SAFETY: both slices are as long as the collective needs, of a type without invalid
        // values, and borrowed for the call.
        unsafe { self.run_by(schedule, &call) }
    }

    /// The same as [`run`](Self::run), by `schedule`, whatever its class.
    /// [`prove`](maypole_algorithms::verify::prove) a schedule once and keep the proof for further
    /// calls. All ranks must pass the same schedule: different names are noticed, different steps
    /// under one name are not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], harmless, for a schedule of another collective or number of
    /// ranks, or one that needs more channels or slots than this communicator has; else those of
    /// [`run`](Self::run).
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    pub unsafe fn run_by(&mut self, schedule: &Proved, call: &Call) -> Result<(), Error> {
        self.host.control.check_fork()?;
        let key = PlanKey::new(call);
        let number = match self.plans.find_by_schedule(schedule, &key) {
            Some(number) if self.broken.is_none() => number,
            _ => {
                let _environment = DefaultEnvironment::enter();
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
