//! Vector clocks: what each lane knows to have happened, with as little copying as the order of events allows.
//!
//! A lane's clock is a frozen row of counts, its own count, and the stamps that it has received since the row was frozen. A
//! *stamp* is what a firing leaves for those who come later: a frozen row and the firing itself. Receiving one is keeping it;
//! rows are merged only when the lane itself leaves a stamp. So lanes that only send share one row, and lanes that only
//! receive never merge.

const NONE: u32 = u32::MAX;

/// A point in a lane: its number of firings up to and including the one meant.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) lane: u32,
    pub(super) count: u32,
}

/// What a firing leaves: all that it knows, and itself. Each copy that is to be joined counts as a reader of its row.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    /// [`NONE`] for all zeros.
    row: u32,
    at: Moment,
}

impl Stamp {
    /// Of nothing.
    pub(super) const NONE: Self = Self { row: NONE, at: Moment { lane: NONE, count: 0 } };
}

/// The clocks of all lanes.
pub(super) struct Clocks {
    /// Per lane its component in a row.
    columns: Vec<u32>,
    width: usize,
    own: Vec<Clock>,
    rows: Vec<u32>,
    /// Per row, stamps and lanes that refer to it.
    readers: Vec<u32>,
    free: Vec<u32>,
}

#[derive(Clone)]
struct Clock {
    count: u32,
    row: u32,
    received: Vec<Stamp>,
}

impl Clocks {
    /// Lanes that ever ask for one another have different columns.
    pub(super) fn new(columns: Vec<u32>) -> Self {
        let width = columns.iter().max().map_or(0, |&column| column as usize + 1);
        let own = vec![Clock { count: 0, row: NONE, received: Vec::new() }; columns.len()];
        Self { columns, width, own, rows: Vec::new(), readers: Vec::new(), free: Vec::new() }
    }

    /// A lane fires.
    pub(super) fn set(&mut self, now: Moment) {
        self.own[now.lane as usize].count = now.count;
    }

    /// The lane comes after what left the stamp; the stamp is used up.
    pub(super) fn join(&mut self, lane: u32, stamp: Stamp) {
        let received = &mut self.own[lane as usize].received;
        match received.last_mut() {
            // A later stamp of a lane knows all that an earlier one does.
            Some(last) if last.at.lane == stamp.at.lane && last.at.count <= stamp.at.count => {
                let earlier = std::mem::replace(last, stamp);
                self.release(earlier.row);
            }
            _ => received.push(stamp),
        }
    }

    /// Whether the moment is sure to have come before what `lane` does now.
    pub(super) fn knows(&self, lane: u32, moment: Moment) -> bool {
        let Clock { count, row, received } = &self.own[lane as usize];
        if moment.lane == lane {
            return moment.count <= *count;
        }
        let column = self.columns[moment.lane as usize] as usize;
        let row_knows =
            |row: u32| row != NONE && self.rows[row as usize * self.width + column] >= moment.count;
        let knows = |stamp: &Stamp| {
            stamp.at.lane == moment.lane && stamp.at.count >= moment.count || row_knows(stamp.row)
        };
        row_knows(*row) || received.iter().rev().any(knows)
    }

    /// A stamp of what `lane` does now, to be joined `readers` times.
    pub(super) fn publish(&mut self, lane: u32, readers: u32) -> Stamp {
        let received = std::mem::take(&mut self.own[lane as usize].received);
        if !received.is_empty() {
            let row = self.writable(self.own[lane as usize].row);
            self.own[lane as usize].row = row;
            for stamp in &received {
                self.merge(row, *stamp);
            }
            // The list keeps its memory.
            self.own[lane as usize].received = received;
            self.own[lane as usize].received.clear();
        }
        let Clock { count, row, .. } = self.own[lane as usize];
        if row != NONE {
            self.readers[row as usize] += readers;
        }
        Stamp { row, at: Moment { lane, count } }
    }

    /// The row itself if nobody else refers to it, else a copy; the reference of the caller goes over to it.
    fn writable(&mut self, row: u32) -> u32 {
        if row != NONE && self.readers[row as usize] == 1 {
            return row;
        }
        let copy = self.free.pop().unwrap_or_else(|| {
            self.rows.resize(self.rows.len() + self.width, 0);
            self.readers.push(0);
            self.readers.len() as u32 - 1
        });
        self.readers[copy as usize] = 1;
        let start = copy as usize * self.width;
        if row == NONE {
            self.rows[start..start + self.width].fill(0);
        } else {
            let from = row as usize * self.width;
            self.rows.copy_within(from..from + self.width, start);
        }
        self.release(row);
        copy
    }

    fn merge(&mut self, row: u32, stamp: Stamp) {
        let start = row as usize * self.width;
        if stamp.row != NONE {
            let from = stamp.row as usize * self.width;
            let (low, high) = self.rows.split_at_mut(start.max(from));
            let (own, other) = if start < from {
                (&mut low[start..start + self.width], &high[..self.width])
            } else {
                (&mut high[..self.width], &low[from..from + self.width])
            };
            for (own, other) in own.iter_mut().zip(other) {
                *own = (*own).max(*other);
            }
        }
        let count = &mut self.rows[start + self.columns[stamp.at.lane as usize] as usize];
        *count = (*count).max(stamp.at.count);
        self.release(stamp.row);
    }

    /// One reader of the row less; the last gives it back.
    fn release(&mut self, row: u32) {
        if row == NONE {
            return;
        }
        self.readers[row as usize] -= 1;
        if self.readers[row as usize] == 0 {
            self.free.push(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random firings that join random earlier stamps, beside clocks that are copied in full each time.
    #[test]
    fn they_know_what_full_copies_know() {
        const LANES: u32 = 7;
        let mut state = 1u64;
        let mut below = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % limit
        };
        for _ in 0..200 {
            let mut clocks = Clocks::new((0..LANES).collect());
            let mut full = vec![[0; LANES as usize]; LANES as usize];
            let mut stamps = Vec::new();
            for _ in 0..60 {
                let lane = below(LANES as usize);
                full[lane][lane] += 1;
                clocks.set(Moment { lane: lane as u32, count: full[lane][lane] });
                for _ in 0..below(3).min(stamps.len()) {
                    let (stamp, known): (Stamp, [u32; LANES as usize]) =
                        stamps.swap_remove(below(stamps.len()));
                    clocks.join(lane as u32, stamp);
                    full[lane]
                        .iter_mut()
                        .zip(known)
                        .for_each(|(own, other)| *own = other.max(*own));
                }
                for (other, &count) in (0..).zip(&full[lane]) {
                    let knows = |count| clocks.knows(lane as u32, Moment { lane: other, count });
                    // There is no firing number 0 to know of.
                    assert!(count == 0 || knows(count), "{lane} of {other}: {count}");
                    assert!(!knows(count + 1), "{lane} of {other}: {count}");
                }
                let readers = below(3);
                if readers > 0 {
                    let stamp = clocks.publish(lane as u32, readers as u32);
                    stamps.extend(vec![(stamp, full[lane]); readers]);
                }
            }
        }
    }
}
