//! Immediate values, and a queue pair with the work that is under way on it.

use std::collections::VecDeque;

use maypole_verbs::{Completion, NO_ANSWER, QueuePair, SendRequest, WORK_FLUSHED, describe_status};

/// In an immediate value: it is a release. Otherwise it is a message. The channel is in the bits
/// from 16 on, and the lowest bits of the sequence are in the others.
pub(super) const IS_RELEASE: u32 = 1 << 31;
/// Most channels that immediate values can tell apart.
pub(super) const MOST_NUMBERED: u32 = 1 << 15;

/// The immediate value of a message, or with [`IS_RELEASE`] of a release.
pub(super) fn immediate(kind: u32, channel: u16, sequence: u64) -> u32 {
    kind | u32::from(channel) << 16 | u32::from(sequence as u16)
}

/// A queue pair, and how much of its work is done.
#[derive(Debug)]
pub(super) struct SendQueue {
    pub(super) queue: QueuePair,
    /// Number of the last work request.
    pub(super) posted: u64,
    /// Number of the last work request that is known to be done, with all before it.
    pub(super) completed: u64,
    /// Number of the last work request that reports its success.
    pub(super) signaled: u64,
    /// The last requests of messages that are not known to be done, and their bytes.
    under_way: VecDeque<(u64, u64)>,
    /// The sum of these bytes.
    pub(super) bytes_under_way: u64,
}

impl SendQueue {
    pub(super) fn new(queue: QueuePair) -> Self {
        Self {
            queue,
            posted: 0,
            completed: 0,
            signaled: 0,
            under_way: VecDeque::new(),
            bytes_under_way: 0,
        }
    }

    pub(super) fn room(&self) -> u64 {
        u64::from(self.queue.capacity().sends) - (self.posted - self.completed)
    }

    /// Posts requests, for which there is room, in one chain. Their ids are their numbers. Some
    /// report their success, so that there is room again. `bytes` is what they carry.
    pub(super) fn post(
        &mut self,
        requests: &mut [SendRequest],
        report: bool,
        bytes: u64,
    ) -> Result<(), String> {
        let count = requests.len();
        for (index, request) in requests.iter_mut().enumerate() {
            self.posted += 1;
            request.id = self.posted;
            let quarter = u64::from(self.queue.capacity().sends / 4);
            let is_last = index + 1 == count;
            if report && is_last || self.posted - self.signaled >= quarter {
                request.signaled = true;
                self.signaled = self.posted;
            }
        }
        self.under_way.push_back((self.posted, bytes));
        self.bytes_under_way += bytes;
        // SAFETY: the memory lies in rings of the pair or in the scratch of the port, which live
        // longer than the queue pair. A slot is written again only after its message was released,
        // when the adapter has sent it and will at most repeat packets, whose content the peer's
        // adapter ignores, or when the queue pair has ended.
        unsafe { self.queue.post(requests) }.map_err(|error| error.to_string())
    }

    /// The work up to this number is done.
    pub(super) fn complete(&mut self, number: u64) {
        self.completed = self.completed.max(number);
        while let Some((last, bytes)) = self.under_way.front().copied()
            && last <= self.completed
        {
            self.bytes_under_way -= bytes;
            self.under_way.pop_front();
        }
    }
}

/// What a completion with an error means, and what to do.
pub(super) fn describe_failure(completion: &Completion) -> String {
    let (status, vendor) = (completion.status, completion.vendor_error);
    let advice = match status {
        WORK_FLUSHED => "the queue pair was ended by the device or the peer; see dmesg",
        NO_ANSWER => {
            "check cables, ports and routes (ibv_devinfo, ip route), and whether the network loses \
             packets; NCCL_IB_TIMEOUT waits longer"
        }
        _ => "see dmesg and the counters of the devices",
    };
    let what = describe_status(status);
    format!("{what} (status {status}, vendor's error {vendor}); {advice}")
}

/// What is known of a path when the next message is given to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathLoad {
    /// Bytes that are posted and not known to have arrived.
    pub(super) bytes_under_way: u64,
    /// Messages that it was given.
    pub(super) messages: u64,
}

/// The path for the next message, of those that can take one: that on which the least is under way,
/// because a path that is faster has less. Of equals, that which was given the fewest messages.
pub(super) fn choose_path(loads: &[Option<PathLoad>]) -> Option<usize> {
    let usable = loads.iter().enumerate().filter_map(|(index, load)| load.map(|it| (index, it)));
    usable.min_by_key(|(_, load)| (load.bytes_under_way, load.messages)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shares of two paths of which the second completes a message in `slow` steps, while the
    /// first needs `fast`. At most eight messages are under way, as the credits of a link allow.
    fn shares(fast: u64, slow: u64) -> [u64; 2] {
        let speeds = [fast, slow];
        let mut loads = [PathLoad { bytes_under_way: 0, messages: 0 }; 2];
        let mut left = speeds;
        for _ in 0..10_000 {
            while loads.iter().map(|load| load.bytes_under_way).sum::<u64>() < 8 * 1000 {
                let chosen = choose_path(&loads.map(Some)).unwrap();
                loads[chosen].bytes_under_way += 1000;
                loads[chosen].messages += 1;
            }
            for ((load, left), speed) in loads.iter_mut().zip(&mut left).zip(speeds) {
                *left -= 1;
                if *left == 0 {
                    *left = speed;
                    load.bytes_under_way = load.bytes_under_way.saturating_sub(1000);
                }
            }
        }
        loads.map(|load| load.messages)
    }

    #[test]
    fn the_share_of_a_path_follows_its_speed() {
        let [first, second] = shares(1, 1);
        assert!(first.abs_diff(second) <= 8, "{first} {second}");
        let [first, second] = shares(2, 4);
        assert!(first.abs_diff(2 * second) <= 50, "{first} {second}");
        let [first, second] = shares(1, 10);
        assert!(first.abs_diff(10 * second) <= 200, "{first} {second}");
    }

    #[test]
    fn a_path_that_cannot_take_a_message_gets_none() {
        let load = PathLoad { bytes_under_way: 9, messages: 9 };
        assert_eq!(choose_path(&[None, Some(load)]), Some(1));
        assert_eq!(choose_path(&[None, None]), None);
    }
}
