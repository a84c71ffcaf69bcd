//! alltoallv: how many elements each rank sends to each. Either they grow with the distance between the ranks, as nccl-tests makes
//! them, or a file says so.

use std::path::Path;

use crate::options::Variables;
use crate::status::Failure;

/// Elements from each rank to each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    nranks: usize,
    /// Rank i's to rank j at `i * nranks + j`.
    counts: Vec<usize>,
}

/// Bytes from each rank to each rank, as a file has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Matrix {
    rows: Vec<Vec<usize>>,
}

impl Matrix {
    /// The one that the variables name, if they do.
    ///
    /// # Errors
    /// A file that cannot be read, or is no square of numbers.
    pub(crate) fn named(variables: &Variables) -> Result<Option<Self>, Failure> {
        let Some(path) = &variables.matrix_file else { return Ok(None) };
        let text = std::fs::read_to_string(path).map_err(|error| bad(path, &error.to_string()))?;
        Self::parse(&text, variables.matrix_scale).map_err(|what| bad(path, &what)).map(Some)
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
            return Err("it is empty".to_owned());
        }
        match rows.iter().find(|row| row.len() != rows.len()) {
            Some(row) => Err(format!("it has {} rows and one of {}", rows.len(), row.len())),
            None => Ok(Self { rows }),
        }
    }

    /// The traffic of the first `nranks` ranks, in elements of `element` bytes.
    ///
    /// # Errors
    /// A matrix of fewer ranks, or of more bytes than `room`.
    pub(crate) fn traffic(
        &self,
        nranks: u32,
        element: usize,
        room: usize,
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
        if bytes > room {
            let text = format!(
                "a rank sends or receives {bytes} bytes by the matrix of alltoallv: -e must be as large"
            );
            return Err(Failure::usage(text));
        }
        Ok(traffic)
    }
}

fn bad(path: &Path, what: &str) -> Failure {
    Failure::usage(format!("NCCL_TESTS_ALLTOALLV_MATRIX_FILE={}: {what}", path.display()))
}

impl Traffic {
    /// Blocks that each rank sends of `total` bytes: a share `1 - spread` of them in equal blocks, the rest in proportion to the
    /// distance to the receiver, upwards and around. Blocks are whole 16 bytes.
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

    /// What `from` sends to `to`.
    pub(crate) fn count(&self, from: u32, to: u32) -> usize {
        self.counts[from as usize * self.nranks + to as usize]
    }

    /// What `from` sends to ranks before `to`: where its block begins.
    pub(crate) fn before(&self, from: u32, to: u32) -> usize {
        (0..to).map(|rank| self.count(from, rank)).sum()
    }

    /// What `rank` sends in all.
    pub(crate) fn sent(&self, rank: u32) -> usize {
        self.before(rank, self.nranks as u32)
    }

    /// What `rank` receives in all.
    pub(crate) fn received(&self, rank: u32) -> usize {
        (0..self.nranks as u32).map(|from| self.count(from, rank)).sum()
    }

    /// The most that a rank sends or receives.
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
    fn a_file_says_who_sends_what() {
        let matrix = Matrix::parse("100 200 150\n\n 50 100 75 \n300 150 200\n", 2.0).unwrap();
        let traffic = matrix.traffic(2, 4, 1 << 20).unwrap();
        assert_eq!([traffic.count(0, 0), traffic.count(0, 1)], [192 / 4, 400 / 4]);
        assert_eq!([traffic.count(1, 0), traffic.count(1, 1)], [96 / 4, 192 / 4]);
        assert!(matrix.traffic(4, 4, 1 << 20).unwrap_err().text.contains("for 3 ranks, not 4"));
        assert!(matrix.traffic(3, 4, 100).unwrap_err().text.contains("-e must be as large"));
    }

    #[test]
    fn what_is_no_matrix_is_said() {
        for (text, part) in
            [("", "empty"), ("1 2\n3", "one of 1"), ("1 x\n3 4", "'x'"), ("-1", "'-1'")]
        {
            assert!(Matrix::parse(text, 1.0).unwrap_err().contains(part), "{text}");
        }
    }
}
