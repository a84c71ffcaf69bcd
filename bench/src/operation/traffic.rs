//! How many elements each rank sends to each rank in alltoallv. Either blocks grow with the
//! distance between the ranks, as in nccl-tests, or a file gives them.

use std::path::Path;

use crate::status::Failure;

/// How many elements each rank sends to each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    nranks: usize,
    /// What rank i sends to rank j is at `i * nranks + j`.
    counts: Vec<usize>,
}

/// How many bytes each rank sends to each rank, as a file gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrafficMatrix {
    rows: Vec<Vec<usize>>,
}

impl TrafficMatrix {
    /// Reads a file, whose numbers are multiplied by `scale`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a square of numbers.
    pub(crate) fn read(path: &Path, scale: f64) -> Result<Self, Failure> {
        let bad = |what: &str| {
            let path = path.display();
            Failure::usage(format!("NCCL_TESTS_ALLTOALLV_MATRIX_FILE={path}: {what}"))
        };
        let text = std::fs::read_to_string(path).map_err(|error| bad(&error.to_string()))?;
        Self::parse(&text, scale).map_err(|what| bad(&what))
    }

    fn parse(text: &str, scale: f64) -> Result<Self, String> {
        let mut rows = Vec::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let mut row = Vec::new();
            for word in line.split_whitespace() {
                match word.parse::<f64>() {
                    Ok(bytes) if bytes >= 0.0 && bytes * scale < 2f64.powi(60) => {
                        row.push((bytes * scale) as usize & !15);
                    }
                    _ => return Err(format!("'{word}' is not a number of bytes")),
                }
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err("the file is empty".to_owned());
        }
        match rows.iter().find(|row| row.len() != rows.len()) {
            Some(row) => Err(format!(
                "the matrix must be square; it has {} rows, and one of {} numbers",
                rows.len(),
                row.len()
            )),
            None => Ok(Self { rows }),
        }
    }

    /// The traffic of the first `nranks` ranks, in elements of `element` bytes.
    ///
    /// # Errors
    /// The matrix is for fewer ranks, or a rank sends or receives more than `buffer_bytes`.
    pub(crate) fn traffic(
        &self,
        nranks: u32,
        element: usize,
        buffer_bytes: usize,
    ) -> Result<Traffic, Failure> {
        let nranks = nranks as usize;
        let Some(rows) = self.rows.get(..nranks) else {
            let has = self.rows.len();
            return Err(Failure::usage(format!(
                "the matrix of alltoallv is for {has} ranks, not {nranks}"
            )));
        };
        let counts =
            rows.iter().flat_map(|row| row[..nranks].iter().map(|&b| b / element)).collect();
        let traffic = Traffic { nranks, counts };
        let bytes = traffic.largest() * element;
        if bytes > buffer_bytes {
            let text = format!(
                "by the matrix of alltoallv, a rank sends or receives {bytes} bytes: -e must be \
                 as large"
            );
            return Err(Failure::usage(text));
        }
        Ok(traffic)
    }
}

impl Traffic {
    /// Blocks of `total` bytes that each rank sends. A share `1 - spread` of them is in equal
    /// blocks, the rest in proportion to the distance to the receiver: upwards, and from the last
    /// rank on to rank 0. Blocks are multiples of 16 bytes.
    pub(crate) fn generated(nranks: u32, total: usize, spread: f64, element: usize) -> Self {
        let nranks = nranks as usize;
        let distances = (nranks * (nranks - 1) / 2) as f64;
        let total = total as f64;
        let block = |distance: usize| {
            let weighted = if nranks == 1 { total } else { distance as f64 * total / distances };
            let bytes = (1.0 - spread) * total / nranks as f64 + spread * weighted;
            (bytes as usize & !15) / element
        };
        let pairs = (0..nranks).flat_map(|i| (0..nranks).map(move |j| (j + nranks - i) % nranks));
        Self { nranks, counts: pairs.map(block).collect() }
    }

    /// The elements that `from` sends to `to`.
    pub(crate) fn count(&self, from: u32, to: u32) -> usize {
        self.counts[from as usize * self.nranks + to as usize]
    }

    /// The elements that `from` sends to the ranks before `to`: the start of the block for `to`.
    pub(crate) fn before(&self, from: u32, to: u32) -> usize {
        (0..to).map(|rank| self.count(from, rank)).sum()
    }

    /// The elements that `rank` sends in total.
    pub(crate) fn sent(&self, rank: u32) -> usize {
        self.before(rank, self.nranks as u32)
    }

    /// The elements that `rank` receives in total.
    pub(crate) fn received(&self, rank: u32) -> usize {
        (0..self.nranks as u32).map(|from| self.count(from, rank)).sum()
    }

    /// The most elements that one rank sends or receives.
    pub(crate) fn largest(&self) -> usize {
        let ranks = 0..self.nranks as u32;
        ranks.map(|rank| self.sent(rank).max(self.received(rank))).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_grow_with_the_distance() {
        let traffic = Traffic::generated(4, 6 * 160, 1.0, 4);
        assert_eq!([0, 1, 2, 3].map(|to| traffic.count(0, to)), [0, 40, 80, 120]);
        assert_eq!([0, 1, 2, 3].map(|to| traffic.count(2, to)), [80, 120, 0, 40]);
        assert_eq!((traffic.before(2, 3), traffic.sent(2), traffic.received(1)), (200, 240, 240));
        assert_eq!(traffic.largest(), 240);
    }

    #[test]
    fn without_spread_blocks_are_equal() {
        let traffic = Traffic::generated(4, 4 * 100, 0.0, 1);
        assert!((0..4).all(|from| (0..4).all(|to| traffic.count(from, to) == 96)));
        assert_eq!(Traffic::generated(1, 100, 1.0, 1).count(0, 0), 96);
    }

    #[test]
    fn a_file_gives_the_blocks() {
        let matrix =
            TrafficMatrix::parse("100 200 150\n\n 50 100 75 \n300 150 200\n", 2.0).unwrap();
        let traffic = matrix.traffic(2, 4, 1 << 20).unwrap();
        assert_eq!([traffic.count(0, 0), traffic.count(0, 1)], [192 / 4, 400 / 4]);
        assert_eq!([traffic.count(1, 0), traffic.count(1, 1)], [96 / 4, 192 / 4]);
        assert!(matrix.traffic(4, 4, 1 << 20).unwrap_err().text.contains("for 3 ranks, not 4"));
        assert!(matrix.traffic(3, 4, 100).unwrap_err().text.contains("-e must be as large"));
    }

    #[test]
    fn errors_say_what_is_wrong_with_a_matrix() {
        for (text, part) in
            [("", "empty"), ("1 2\n3", "one of 1"), ("1 x\n3 4", "'x'"), ("-1", "'-1'")]
        {
            assert!(TrafficMatrix::parse(text, 1.0).unwrap_err().contains(part), "{text}");
        }
    }
}
