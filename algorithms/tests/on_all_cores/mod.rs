//! Runs a test on many items on all cores.

use std::sync::Mutex;

/// Calls `work` with the number and the value of every item, in order of the items, on all cores.
/// Returns the results in no particular order.
pub(crate) fn on_all_cores<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(usize, &T) -> R + Sync,
) -> Vec<R> {
    let queue = Mutex::new(items.iter().enumerate());
    let next = || queue.lock().expect("no thread panics while it takes an item").next();
    let thread = || {
        let results = std::iter::from_fn(|| next().map(|(number, item)| work(number, item)));
        results.collect::<Vec<_>>()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(thread)).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("no assertion failed"));
        results.flatten().collect()
    })
}
