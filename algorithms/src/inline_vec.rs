//! A short list without an allocation: what a step has of operands and dependencies.

use std::fmt;
use std::ops::Deref;

/// How many inputs, and how many outputs, a step may have.
pub const MAX_FAN: usize = 8;

/// Up to [`MAX_FAN`] values in place.
#[derive(Clone, Copy)]
pub struct Few<T> {
    len: u8,
    items: [T; MAX_FAN],
}

impl<T: Copy + Default> Few<T> {
    /// The empty list.
    pub fn new() -> Self {
        Self { len: 0, items: [T::default(); MAX_FAN] }
    }

    /// Appends a value.
    ///
    /// # Panics
    /// When there are [`MAX_FAN`] already: generators split longer lists over several steps.
    pub fn push(&mut self, item: T) {
        assert!((self.len as usize) < MAX_FAN, "a step has at most {MAX_FAN} operands a side");
        self.items[self.len as usize] = item;
        self.len += 1;
    }

    /// Removes the value at `index`; those behind it move up.
    pub fn remove(&mut self, index: usize) -> T {
        let item = self[index];
        self.items.copy_within(index + 1..self.len as usize, index);
        self.len -= 1;
        item
    }

    /// The values, to be changed in place.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.items[..self.len as usize]
    }
}

impl<T: Copy + Default> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items[..self.len as usize]
    }
}

impl<T: Copy + Default> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut few = Self::new();
        items.into_iter().for_each(|item| few.push(item));
        few
    }
}

impl<T: PartialEq> PartialEq for Few<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Few<T> {}

impl<T: fmt::Debug> fmt::Debug for Few<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
