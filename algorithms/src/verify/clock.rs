//! Vector clocks: which firings of other lanes each lane is known to come after.
//!
//! They copy as little as the order of events allows. A lane's clock is a row of counts that no
//! longer changes, the lane's own count, and the stamps that it received since. A *stamp* is what a
//! firing leaves for later ones: such a row, and the firing itself. To receive a stamp is to keep
//! it; rows are merged only when the lane itself leaves a stamp. So lanes that only send share one
//! row, and lanes that only receive never merge rows.

const NONE: u32 = u32::MAX;

/// A firing, by its lane and its number there, counted from 1 over all tiles.
#[derive(Clone, Copy)]
pub(super) struct LaneMoment {
    pub(super) lane: u32,
    pub(super) count: u32,
}

/// What a firing leaves: a row with all that it comes after, and itself. Each copy that will be
/// joined counts as a reader of the row.
#[derive(Clone, Copy)]
pub(super) struct ClockStamp {
    /// [`NONE`] stands for a row of zeros.
    row: u32,
    at: LaneMoment,
}

impl ClockStamp {
    /// The stamp that comes after nothing.
    pub(super) const NONE: Self = Self { row: NONE, at: LaneMoment { lane: NONE, count: 0 } };
}

/// The clocks of all lanes.
pub(super) struct VectorClocks {
    /// By lane its component in a row.
    columns: Vec<u32>,
    width: usize,
    lanes: Vec<LaneClock>,
    rows: Vec<u32>,
    /// By row how many stamps and lanes refer to it.
    readers: Vec<u32>,
    free: Vec<u32>,
}

#[derive(Clone)]
struct LaneClock {
    count: u32,
    row: u32,
    received: Vec<ClockStamp>,
}

impl VectorClocks {
    /// `columns` gives each lane its component in a row. Lanes that are compared with each other
    /// need different ones.
    pub(super) fn new(columns: Vec<u32>) -> Self {
        let width = columns.iter().max().map_or(0, |&column| column as usize + 1);
        let lanes = vec![LaneClock { count: 0, row: NONE, received: Vec::new() }; columns.len()];
        Self { columns, width, lanes, rows: Vec::new(), readers: Vec::new(), free: Vec::new() }
    }

    /// Notes a firing: the lane is at this moment now.
    pub(super) fn set(&mut self, now: LaneMoment) {
        self.lanes[now.lane as usize].count = now.count;
    }

    /// The lane comes after the firing that left the stamp. This copy of the stamp is used up.
    pub(super) fn join(&mut self, lane: u32, stamp: ClockStamp) {
        let received = &mut self.lanes[lane as usize].received;
        match received.last_mut() {
            // A later stamp of a lane includes all that an earlier one does.
            Some(last) if last.at.lane == stamp.at.lane && last.at.count <= stamp.at.count => {
                let earlier = std::mem::replace(last, stamp);
                self.release(earlier.row);
            }
            _ => received.push(stamp),
        }
    }

    /// Whether `moment` comes before the present firing of `lane` in every execution.
    pub(super) fn is_before(&self, moment: LaneMoment, lane: u32) -> bool {
        let LaneClock { count, row, received } = &self.lanes[lane as usize];
        if moment.lane == lane {
            return moment.count <= *count;
        }
        let column = self.columns[moment.lane as usize] as usize;
        let row_knows =
            |row: u32| row != NONE && self.rows[row as usize * self.width + column] >= moment.count;
        let knows = |stamp: &ClockStamp| {
            stamp.at.lane == moment.lane && stamp.at.count >= moment.count || row_knows(stamp.row)
        };
        row_knows(*row) || received.iter().rev().any(knows)
    }

    /// The stamp of the present firing of `lane`, to be joined `readers` times.
    pub(super) fn publish(&mut self, lane: u32, readers: u32) -> ClockStamp {
        let received = std::mem::take(&mut self.lanes[lane as usize].received);
        if !received.is_empty() {
            let row = self.writable(self.lanes[lane as usize].row);
            self.lanes[lane as usize].row = row;
            for stamp in &received {
                self.merge(row, *stamp);
            }
            // The list goes back so that its allocation is used again.
            self.lanes[lane as usize].received = received;
            self.lanes[lane as usize].received.clear();
        }
        let LaneClock { count, row, .. } = self.lanes[lane as usize];
        if row != NONE {
            self.readers[row as usize] += readers;
        }
        ClockStamp { row, at: LaneMoment { lane, count } }
    }

    /// The row itself if the caller's is the only reference to it, else a copy. The caller's
    /// reference moves to the result.
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

    fn merge(&mut self, row: u32, stamp: ClockStamp) {
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

    /// Removes one reference to the row; a row without references can be used again.
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

    /// Compares them, over random firings that join random earlier stamps, with clocks that are
    /// copied in full each time.
    #[test]
    fn they_order_what_full_copies_order() {
        const LANES: u32 = 7;
        let mut state = 1u64;
        let mut below = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % limit
        };
        for _ in 0..200 {
            let mut clocks = VectorClocks::new((0..LANES).collect());
            let mut full = vec![[0; LANES as usize]; LANES as usize];
            let mut stamps = Vec::new();
            for _ in 0..60 {
                let lane = below(LANES as usize);
                full[lane][lane] += 1;
                clocks.set(LaneMoment { lane: lane as u32, count: full[lane][lane] });
                for _ in 0..below(3).min(stamps.len()) {
                    let (stamp, known): (ClockStamp, [u32; LANES as usize]) =
                        stamps.swap_remove(below(stamps.len()));
                    clocks.join(lane as u32, stamp);
                    full[lane]
                        .iter_mut()
                        .zip(known)
                        .for_each(|(own, other)| *own = other.max(*own));
                }
                for (other, &count) in (0..).zip(&full[lane]) {
                    let knows =
                        |count| clocks.is_before(LaneMoment { lane: other, count }, lane as u32);
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
