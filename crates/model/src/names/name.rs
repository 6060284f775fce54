//! Domain names in wire form (RFC 1035 §3.1), lower case, on the stack: a question is compared without an allocation.

use std::{fmt, str::FromStr};

/// The longest name in wire form, with all length octets and the root (RFC 1035 §2.3.4).
pub const MAX_WIRE: usize = 255;
/// The longest label.
pub const MAX_LABEL: usize = 63;

/// An absolute domain name, letters in lower case. Labels may hold any octet.
#[derive(Clone, Copy)]
pub struct Name {
    wire: [u8; MAX_WIRE],
    /// Octets used in `wire`, the root's zero octet included: never 0.
    len: u8,
    /// Where each label's length octet stands.
    offsets: [u8; MAX_WIRE / 2],
    labels: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a label of a domain name has 1 to 63 octets")]
    Label,
    #[error("a domain name has at most 255 octets")]
    Length,
}

impl Name {
    pub const ROOT: Self = Self { wire: [0; MAX_WIRE], len: 1, offsets: [0; MAX_WIRE / 2], labels: 0 };

    /// Appends a label at the end, that is nearest to the root.
    pub fn push(&mut self, label: &[u8]) -> Result<(), NameError> {
        if label.is_empty() || label.len() > MAX_LABEL {
            return Err(NameError::Label);
        }
        let at = usize::from(self.len) - 1;
        let end = at + 1 + label.len();
        if end >= MAX_WIRE {
            return Err(NameError::Length);
        }
        self.wire[at] = label.len() as u8;
        for (to, from) in self.wire[at + 1..end].iter_mut().zip(label) {
            *to = from.to_ascii_lowercase();
        }
        self.wire[end] = 0;
        self.len = end as u8 + 1;
        self.offsets[usize::from(self.labels)] = at as u8;
        self.labels += 1;
        Ok(())
    }

    /// Reads an uncompressed name that starts at `at` in a message, in one go; returns it and where it ends.
    #[inline]
    pub fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self::ROOT;
        let rest = message.get(at..)?;
        let (mut end, mut labels) = (0, 0);
        loop {
            let length = usize::from(*rest.get(end)?);
            if length == 0 {
                break;
            }
            // A pointer, or a kind of label nobody uses; the last octet is the root's.
            if length > MAX_LABEL || end + 1 + length >= MAX_WIRE {
                return None;
            }
            name.offsets[labels] = end as u8;
            labels += 1;
            end += 1 + length;
        }
        let wire = &mut name.wire[..end];
        wire.copy_from_slice(&rest[..end]);
        // Length octets are at most 63, and so never letters.
        wire.make_ascii_lowercase();
        name.len = end as u8 + 1;
        name.labels = labels as u8;
        Some((name, at + end + 1))
    }

    /// Number of labels, the root not counted.
    pub fn len(&self) -> usize {
        usize::from(self.labels)
    }

    /// True for the root.
    pub fn is_empty(&self) -> bool {
        self.labels == 0
    }

    pub fn wire(&self) -> &[u8] {
        &self.wire[..usize::from(self.len)]
    }

    /// Where label `i` starts in [`Self::wire`]; the root's octet when `i` is the number of labels.
    pub fn offset(&self, i: usize) -> usize {
        if i < self.len() { usize::from(self.offsets[i]) } else { usize::from(self.len) - 1 }
    }

    /// Label `i` from the left. Empty past the end.
    pub fn label(&self, i: usize) -> &[u8] {
        let at = self.offset(i);
        &self.wire[at + 1..][..usize::from(self.wire[at])]
    }

    /// The labels `from..to` with their length octets.
    pub fn slice(&self, from: usize, to: usize) -> &[u8] {
        &self.wire[self.offset(from)..self.offset(to)]
    }

    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.label(i))
    }

    /// How many labels stand in front of `zone`; `None` when this name is not in it.
    pub fn below(&self, zone: &Name) -> Option<usize> {
        let front = self.len().checked_sub(zone.len())?;
        (self.wire()[self.offset(front)..] == *zone.wire()).then_some(front)
    }
}

/// Reads text as in a zone file; a missing trailing dot makes no difference. `\.` and `\ddd` escapes are understood.
impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut name = Self::ROOT;
        if text == "." || text.is_empty() {
            return Ok(name);
        }
        let mut label = Vec::with_capacity(MAX_LABEL);
        let mut octets = text.bytes().peekable();
        let mut open = true;
        while let Some(c) = octets.next() {
            match c {
                b'.' => {
                    name.push(&label)?;
                    label.clear();
                    open = octets.peek().is_some();
                }
                b'\\' => {
                    let digits: Vec<u8> = octets.clone().take(3).take_while(u8::is_ascii_digit).collect();
                    if digits.len() == 3 {
                        let value = digits.iter().fold(0u32, |v, d| v * 10 + u32::from(d - b'0'));
                        label.push(u8::try_from(value).map_err(|_| NameError::Label)?);
                        octets.nth(2);
                    } else {
                        label.push(octets.next().ok_or(NameError::Label)?);
                    }
                }
                c => label.push(c),
            }
        }
        if open {
            name.push(&label)?;
        }
        Ok(name)
    }
}

/// As in a zone file, with the trailing dot.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str(".");
        }
        for label in self.labels() {
            display_label(label, f)?;
            f.write_str(".")?;
        }
        Ok(())
    }
}

/// One label with what is not printable escaped.
pub(super) fn display_label(label: &[u8], f: &mut impl fmt::Write) -> fmt::Result {
    for c in label {
        match c {
            b'.' | b'\\' | b'"' => write!(f, "\\{}", char::from(*c))?,
            0x21..=0x7e => f.write_char(char::from(*c))?,
            c => write!(f, "\\{c:03}")?,
        }
    }
    Ok(())
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.wire() == other.wire()
    }
}

impl Eq for Name {}

impl std::hash::Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.wire().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_and_wire_agree() {
        let name: Name = "WWW.Example.com".parse().unwrap();
        assert_eq!(name.wire(), b"\x03www\x07example\x03com\x00");
        assert_eq!(name.to_string(), "www.example.com.");
        assert_eq!(name, "www.example.com.".parse().unwrap());
        assert_eq!(name.below(&"example.com".parse().unwrap()), Some(1));
        assert_eq!(name.below(&"ample.com".parse().unwrap()), None);
        assert_eq!(name.below(&Name::ROOT), Some(3));
        assert_eq!(name.slice(0, 2), b"\x03www\x07example");
        assert_eq!("a..b".parse::<Name>(), Err(NameError::Label));
        assert_eq!("x".repeat(64).parse::<Name>(), Err(NameError::Label));
        assert_eq!(["x".repeat(63).as_str(); 4].join(".").parse::<Name>(), Err(NameError::Length));
        assert_eq!(["a"; 127].join(".").parse::<Name>().unwrap().wire().len(), 255);
        assert_eq!(r"a\.b\032\\".parse::<Name>().unwrap().to_string(), r"a\.b\032\\.");
    }

    proptest! {
        #[test]
        fn any_labels_survive_text(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..10)) {
            let mut name = Name::ROOT;
            for l in &labels {
                name.push(l).unwrap();
            }
            prop_assert_eq!(name.to_string().parse::<Name>().unwrap(), name);
            prop_assert_eq!(name.len(), labels.len());
        }

        #[test]
        fn text_never_panics(text in ".{0,300}") {
            let _ = text.parse::<Name>();
        }
    }
}
