//! The end of a group: its creations and its calls run.

use std::sync::{Arc, Mutex, PoisonError};

use maypole::ResultCode;
use maypole::stream::{self, Work, WorkTicket};

use super::comm_calls::CommCalls;
use super::contents::{GroupContents, close, keep_memory};
use crate::boundary::log_error;
use crate::cuda::{self, CommLaunch};
use crate::registry::{CommHandle, acquire, acquire_exclusive, queue_on_streams};
use crate::request::{CreationBatch, JoinedBatch, Siblings, run_transfers};

/// Closes the innermost group. The contents of the outermost one run.
pub(crate) fn end() -> Result<(), ResultCode> {
    close("ncclGroupEnd")?.map_or(Ok(()), run)
}

/// Closes the innermost group. Drops the contents of the outermost one, and returns how many
/// microseconds they would have taken: as many as those of the slowest communicator.
pub(crate) fn predict_and_drop() -> Result<Option<f64>, ResultCode> {
    close("ncclGroupSimulateEnd")?.map(predict).transpose()
}

fn run(contents: GroupContents) -> Result<(), ResultCode> {
    let GroupContents { creations, calls, error, blocking } = contents;
    if let ([(comm, only)], [], None, Some(true)) = (&*calls, &*creations, error, blocking)
        && let Some(transfers) = only.only_transfers()
    {
        // The usual group of sends and receives. It allocates nothing, if groups like it came
        // before.
        let result = acquire_exclusive(*comm)
            .and_then(|mut comm| run_transfers(transfers, &mut comm.call_context()));
        keep_memory(calls);
        return result;
    }
    if let Some(code) = error {
        creations.into_iter().for_each(CreationBatch::cancel);
        return Err(code);
    }
    let siblings = Siblings::default();
    let joined = creations.into_iter().map(|batch| batch.join(&siblings)).collect::<Vec<_>>();
    let created = if blocking == Some(false) {
        start_all(joined.into_iter().map(JoinedBatch::start))
    } else {
        let result = run_side_by_side(joined, JoinedBatch::run, JoinedBatch::abandon);
        siblings.restore_error();
        result
    };
    match created {
        Ok(()) | Err(ResultCode::InProgress) => {}
        Err(code) => return Err(code),
    }
    match run_calls(calls, blocking != Some(false)) {
        Ok(()) => created,
        result => result,
    }
}

fn predict(contents: GroupContents) -> Result<f64, ResultCode> {
    let GroupContents { creations, calls, error, .. } = contents;
    creations.into_iter().for_each(CreationBatch::cancel);
    if let Some(code) = error {
        return Err(code);
    }
    let mut slowest: f64 = 0.0;
    for (comm, calls) in calls {
        slowest = slowest.max(calls.predict(&acquire_exclusive(comm)?)?);
    }
    Ok(slowest)
}

/// Runs the calls of all communicators: first those on devices, then those on host streams, then
/// the rest.
///
/// The calls on host streams are queued before the rest runs, and all at once, because they may be
/// ranks for which the rest waits. The calls of communicators that do not block all run after the
/// function has returned, unless windows are registered: the client waits for their handles.
fn run_calls(calls: Vec<(CommHandle, CommCalls)>, blocking: bool) -> Result<(), ResultCode> {
    let (on_devices, calls): (Vec<_>, _) =
        calls.into_iter().partition(|(_, calls)| !calls.cuda_streams().is_empty());
    if !on_devices.is_empty() {
        launch_on_devices(&on_devices)?;
    }
    let waits = blocking || calls.iter().any(|(_, calls)| calls.registers_windows());
    let (on_streams, on_default): (Vec<_>, _) =
        calls.into_iter().partition(|(_, calls)| calls.is_on_host_streams());
    let mut deferred = Vec::new();
    if !waits {
        // Before any call begins: if one of the communicators cannot be used, none does.
        for (comm, _) in &on_default {
            deferred.push(acquire(*comm)?);
        }
    }
    let (mut stream_calls, mut guards) = (Vec::new(), Vec::new());
    for (comm, mut calls) in on_streams {
        let guard = acquire(comm)?;
        let streams = calls.take_host_streams();
        let is_waited_for = calls.is_on_default_stream();
        stream_calls.push(guard.stream_call(streams, move |context| calls.run(context)));
        guards.push((guard, is_waited_for));
    }
    let tickets =
        if stream_calls.is_empty() { Vec::new() } else { queue_on_streams(stream_calls)? };
    let waited_for = guards.into_iter().zip(tickets).filter(|((_, waited_for), _)| *waited_for);
    if waits {
        // The guards are dropped here, so that the communicators can be used.
        let tickets: Vec<_> = waited_for.map(|(_, ticket)| ticket).collect();
        let run = |(comm, calls): (CommHandle, CommCalls)| {
            calls.run(&mut acquire_exclusive(comm)?.call_context())
        };
        let result = run_side_by_side(on_default, run, |_, _| {});
        return result.and(wait_for_all(&tickets));
    }
    let on_streams =
        waited_for.map(|((guard, _), ticket)| guard.defer().start(move |_| ticket.wait()));
    let on_default = deferred.into_iter().zip(on_default).map(|(guard, (_, calls))| {
        guard.defer().start(move |comm| calls.run(&mut comm.call_context()))
    });
    start_all(on_streams.chain(on_default))
}

fn launch_on_devices(calls: &[(CommHandle, CommCalls)]) -> Result<(), ResultCode> {
    let launches = calls.iter().map(|(comm, calls)| CommLaunch {
        comm: *comm,
        calls: calls.device_calls(),
        streams: calls.cuda_streams(),
    });
    cuda::launch_group(launches.collect())
}

/// Waits for calls on host streams; returns the first error in the order of the tickets.
fn wait_for_all(tickets: &[WorkTicket]) -> Result<(), ResultCode> {
    tickets.iter().map(WorkTicket::wait).fold(Ok(()), Result::and)
}

/// Starts all pieces of work, even if one cannot be started. Returns the first failure, else
/// `ncclInProgress` if one of them is in progress.
fn start_all(started: impl Iterator<Item = Result<(), ResultCode>>) -> Result<(), ResultCode> {
    let mut first = Ok(());
    for next in started {
        if next.is_err() && matches!(first, Ok(()) | Err(ResultCode::InProgress)) {
            first = next;
        }
    }
    first
}

/// Runs every item on its own thread, the first on this one. Returns the first error in the order
/// of the items. If there are too few threads, no item runs, and all are abandoned.
fn run_side_by_side<T: Send + 'static>(
    mut items: Vec<T>,
    run: impl Fn(T) -> Result<(), ResultCode> + Copy + Send + 'static,
    abandon: impl Fn(T, ResultCode),
) -> Result<(), ResultCode> {
    if items.len() <= 1 {
        return items.pop().map_or(Ok(()), run);
    }
    let take = |slot: &Mutex<Option<T>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    let slots: Vec<_> = items.into_iter().map(|item| Arc::new(Mutex::new(Some(item)))).collect();
    let work = |slot: &Arc<Mutex<Option<T>>>| {
        let slot = slot.clone();
        Box::new(move || take(&slot).map_or(Ok(()), run)) as Work
    };
    let results = stream::side_by_side(slots.iter().map(work).collect()).map_err(|error| {
        let code = log_error(&error);
        slots.iter().filter_map(|slot| take(slot)).for_each(|item| abandon(item, code));
        code
    })?;
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, LazyLock};

    use super::super::contents::{check_blocking, is_open, keep_first_error, start};
    use super::*;

    #[test]
    fn ends_match_starts() {
        assert_eq!(end(), Err(ResultCode::InvalidUsage));
        start();
        start();
        assert_eq!(end(), Ok(()));
        assert!(is_open());
        assert_eq!(end(), Ok(()));
        assert!(!is_open());
    }

    #[test]
    fn the_end_of_a_group_returns_its_first_error() {
        start();
        assert!(keep_first_error(Err(ResultCode::InvalidArgument)).is_err());
        assert!(keep_first_error(Err(ResultCode::InvalidUsage)).is_err());
        assert_eq!(end(), Err(ResultCode::InvalidArgument));
        assert!(keep_first_error(Err(ResultCode::SystemError)).is_err());
        start();
        assert_eq!(end(), Ok(()));
    }

    #[test]
    fn blocking_and_nonblocking_communicators_do_not_mix_in_a_group() {
        assert!(check_blocking(true).is_ok() && check_blocking(false).is_ok());
        start();
        assert!(check_blocking(false).is_ok() && check_blocking(false).is_ok());
        assert_eq!(check_blocking(true), Err(ResultCode::InvalidArgument));
        assert_eq!(end(), Ok(()));
    }

    #[test]
    fn the_first_failure_is_returned_and_else_progress() {
        use ResultCode::{InProgress, SystemError, Timeout};
        let start = |codes: &[Option<ResultCode>]| {
            start_all(codes.iter().map(|code| code.map_or(Ok(()), Err)))
        };
        assert_eq!(start(&[]), Ok(()));
        assert_eq!(start(&[None, Some(InProgress), None]), Err(InProgress));
        assert_eq!(start(&[Some(InProgress), Some(Timeout), Some(SystemError)]), Err(Timeout));
    }

    #[test]
    fn items_run_side_by_side_and_the_first_error_is_returned() {
        static BARRIER: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(3));
        let run = |code: Option<ResultCode>| {
            BARRIER.wait();
            code.map_or(Ok(()), Err)
        };
        let codes = vec![None, Some(ResultCode::Timeout), Some(ResultCode::SystemError)];
        assert_eq!(run_side_by_side(codes, run, |_, _| {}), Err(ResultCode::Timeout));
    }
}
