//! The attributes of an element, read as the values that they stand for.

use roxmltree::Node;

use super::XmlError;

/// An element and its name in NCCL's format.
#[derive(Clone, Copy)]
pub(super) struct Element<'a, 'input> {
    pub(super) node: Node<'a, 'input>,
    pub(super) name: &'static str,
}

impl<'a, 'input> Element<'a, 'input> {
    /// The line on which it begins.
    pub(super) fn line(self) -> u32 {
        self.node.document().text_pos_at(self.node.range().start).row
    }

    /// An attribute; None if it is not there.
    pub(super) fn get(self, attribute: &str) -> Option<&'a str> {
        self.node.attribute(attribute)
    }

    /// An attribute that must be there.
    pub(super) fn required(self, attribute: &'static str) -> Result<&'a str, XmlError> {
        let (line, element) = (self.line(), self.name);
        self.get(attribute).ok_or(XmlError::Missing { line, element, attribute })
    }

    /// The error for a value that is not understood.
    pub(super) fn bad(self, attribute: &'static str, form: &'static str) -> XmlError {
        let value = self.get(attribute).unwrap_or_default();
        let value = value.chars().take(80).collect();
        XmlError::Value { line: self.line(), element: self.name, attribute, value, form }
    }

    /// An attribute as a number; None if it is missing or empty, or below zero, which NCCL writes
    /// for what is not known.
    pub(super) fn number(self, attribute: &'static str) -> Result<Option<u32>, XmlError> {
        let Some(text) = self.get(attribute).map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let number = integer(text).filter(|number| *number <= i64::from(u32::MAX));
        let number = number.ok_or_else(|| self.bad(attribute, "an integer of 32 bits"))?;
        Ok(u32::try_from(number).ok())
    }

    /// An attribute as a number of 16 bits, `0x10de`; None if it is missing or empty.
    pub(super) fn id(self, attribute: &'static str) -> Result<Option<u16>, XmlError> {
        match self.number(attribute)? {
            None => Ok(None),
            Some(number) => u16::try_from(number)
                .map(Some)
                .map_err(|_| self.bad(attribute, "a number of 16 bits, as 0x10de")),
        }
    }

    /// An attribute as yes or no; None if it is missing or empty.
    pub(super) fn flag(self, attribute: &'static str) -> Result<Option<bool>, XmlError> {
        Ok(self.number(attribute)?.map(|number| number != 0))
    }

    /// An attribute as a hexadecimal number, with or without `0x`; None if it is missing or empty.
    pub(super) fn hexadecimal(self, attribute: &'static str) -> Result<Option<u64>, XmlError> {
        let Some(text) = self.get(attribute).map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let digits = text.strip_prefix("0x").unwrap_or(text);
        // `from_str_radix` would accept a sign.
        let plain = digits.bytes().all(|c| c.is_ascii_hexdigit());
        let number = plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
        number.map(Some).ok_or_else(|| self.bad(attribute, "a hexadecimal number of 64 bits"))
    }

    /// An attribute as a number of microseconds; None if it is missing or empty.
    pub(super) fn microseconds(self, attribute: &'static str) -> Result<Option<f64>, XmlError> {
        let Some(text) = self.get(attribute).map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
        number.map(Some).ok_or_else(|| self.bad(attribute, "a number of microseconds"))
    }
}

/// An integer as C reads it with base 0: decimal, `0x` hexadecimal or `0` octal.
fn integer(text: &str) -> Option<i64> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (digits, radix) = match text {
        _ if text.starts_with("0x") || text.starts_with("0X") => (&text[2..], 16),
        _ if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        _ => (text, 10),
    };
    let plain = digits.bytes().all(|c| c.is_ascii_hexdigit());
    plain.then(|| i64::from_str_radix(digits, radix).ok()).flatten().map(|number| sign * number)
}

#[cfg(test)]
mod tests {
    use super::integer;

    #[test]
    fn integers_are_read_as_in_c() {
        assert_eq!(
            ["12", "0x1F", "010", "-1", "0"].map(integer),
            [Some(12), Some(31), Some(8), Some(-1), Some(0)]
        );
        assert_eq!(["", "x", "08", "1.5", "--1", "+1", "0x"].map(integer), [None; 7]);
    }
}
