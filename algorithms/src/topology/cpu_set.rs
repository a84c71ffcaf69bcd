//! Sets of logical processors, in the forms in which the kernel and NCCL write them.

use std::fmt;

/// Numbers above this are refused: the kernel has at most 8192 processors.
const MOST: u32 = 1 << 16;

/// A set of logical processors, by the kernel's numbers.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    /// 64 processors each, without zeros at the end.
    words: Vec<u64>,
}

impl CpuSet {
    /// Adds a processor.
    ///
    /// # Panics
    /// If the number is 65536 or more.
    pub fn insert(&mut self, cpu: u32) {
        assert!(cpu < MOST, "{cpu} is no number of a processor");
        let word = cpu as usize / 64;
        self.words.resize(self.words.len().max(word + 1), 0);
        self.words[word] |= 1 << (cpu % 64);
    }

    /// Whether the set has this processor.
    pub fn contains(&self, cpu: u32) -> bool {
        self.words.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// How many processors it has.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The processors, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.words.len() as u32 * 64).filter(|cpu| self.contains(*cpu))
    }

    /// The processors that are in both sets.
    pub fn intersection(&self, other: &Self) -> Self {
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect();
        Self { words }.trimmed()
    }

    /// Whether all processors of this set are in `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.intersection(other) == *self
    }

    /// Reads a list such as `0-3,8`; an empty text is the empty set.
    pub fn from_list(text: &str) -> Option<Self> {
        let mut set = Self::default();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| *n < MOST);
            let (first, last) = (number(first)?, number(last)?);
            (first..=last).for_each(|cpu| set.insert(cpu));
        }
        Some(set)
    }

    /// Reads a mask such as `ff,00000001`: hexadecimal, in groups of 32 processors, the highest
    /// first. The first processor of the mask is `offset`.
    pub fn from_mask(text: &str, offset: u32) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("0x").unwrap_or(text);
        let groups: Vec<&str> = text.rsplit(',').collect();
        let alone = groups.len() == 1;
        let mut set = Self::default();
        let mut first = offset;
        for group in groups {
            let digits = group.len();
            // A mask without commas may be longer than a group.
            if digits == 0 || (digits > 8 && !alone) || digits > MOST as usize / 4 {
                return None;
            }
            for (number, digit) in group.chars().rev().enumerate() {
                let digit = digit.to_digit(16)?;
                for bit in (0..4).filter(|bit| digit >> bit & 1 == 1) {
                    let cpu = first.checked_add(number as u32 * 4 + bit)?;
                    if cpu >= MOST {
                        return None;
                    }
                    set.insert(cpu);
                }
            }
            first = first.checked_add(32)?;
        }
        Some(set)
    }

    /// The set as a mask, as the kernel writes it: groups of eight digits.
    pub fn mask(&self) -> String {
        let groups = (self.words.len() * 2).max(1);
        let group = |number: usize| {
            let word = self.words.get(number / 2).copied().unwrap_or(0);
            format!("{:08x}", word >> (number % 2 * 32) & 0xffff_ffff)
        };
        let mut groups: Vec<String> = (0..groups).rev().map(group).collect();
        if groups.len() > 1 && groups[0] == "00000000" {
            groups.remove(0);
        }
        groups.join(",")
    }

    fn trimmed(mut self) -> Self {
        let length = self.words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        self.words.truncate(length);
        self
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::default();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// As a list: `0-3,8`.
impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for cpu in self.iter() {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let one = |(first, last)| match first == last {
            true => format!("{first}"),
            false => format!("{first}-{last}"),
        };
        f.write_str(&ranges.into_iter().map(one).collect::<Vec<_>>().join(","))
    }
}

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_describe_the_same_sets() {
        let set = CpuSet::from_list("0-3,8,40\n").unwrap();
        assert_eq!((set.to_string().as_str(), set.len()), ("0-3,8,40", 6));
        assert_eq!(set.mask(), "00000100,0000010f");
        assert_eq!(CpuSet::from_mask("100,0000010f", 0), Some(set.clone()));
        assert_eq!(CpuSet::from_mask("0x1000000010f", 0), Some(set.clone()));
        assert_eq!(CpuSet::from_mask("3", 64), CpuSet::from_list("64-65"));
        assert_eq!(
            (CpuSet::default().mask(), CpuSet::default().to_string()),
            ("00000000".into(), "".into())
        );
        assert_eq!(CpuSet::from_mask(&set.mask(), 0), Some(set));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        for list in ["1-x", "-", "99999", "0-4294967295"] {
            assert_eq!(CpuSet::from_list(list), None, "{list}");
        }
        for mask in ["0-63", "", "1,", "123456789,00000000", "g"] {
            assert_eq!(CpuSet::from_mask(mask, 0), None, "{mask}");
        }
        assert_eq!(CpuSet::from_mask("1", u32::MAX), None);
        assert_eq!(CpuSet::from_mask(&"f".repeat(1 << 20), 0), None);
    }

    #[test]
    fn subsets_are_found() {
        let set = |list| CpuSet::from_list(list).unwrap();
        assert!(set("1-2").is_subset(&set("0-3")) && !set("1-200").is_subset(&set("0-3")));
        assert_eq!(set("0-5,70").intersection(&set("5-69")), set("5"));
        assert!(set("64").intersection(&set("1")).is_empty());
    }
}
