//! What a kernel can find wrong with the numbers. Arguments are checked elsewhere: in Python, and
//! once more in `py.rs`.

use thiserror::Error;

/// A fault in the data. `group` is the flat index into the `(rows, G)` grid of groups.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Fault {
    /// NaN or an infinity somewhere in the input.
    #[error("the input holds NaN or an infinity")]
    NonFinite,
    /// NaN, where the format has none.
    #[error("the input holds NaN, and the format does not")]
    Nan,
    /// A code that is larger than any of its book.
    #[error("a code has no level in its book")]
    NoLevel,
    /// A matrix that is not positive definite.
    #[error("the pivot of column {column} is not positive")]
    NotPositive {
        /// The column whose pivot it is.
        column: usize,
    },
    /// The scale of this group does not fit the dtype scales are stored in.
    #[error("the scale of group {group} overflows its dtype")]
    ScaleOverflow {
        /// Flat index of the group.
        group: usize,
    },
    /// The extreme codes of this group would decode to an infinity.
    #[error("the extreme codes of group {group} decode to an infinity")]
    DecodeOverflow {
        /// Flat index of the group.
        group: usize,
    },
}

impl Fault {
    /// The name Python knows the fault by.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NonFinite => "nonfinite",
            Self::Nan => "nan",
            Self::NoLevel => "no_level",
            Self::NotPositive { .. } => "not_positive",
            Self::ScaleOverflow { .. } => "scale_overflow",
            Self::DecodeOverflow { .. } => "decode_overflow",
        }
    }

    /// The group or column at fault; 0 for the faults that belong to the whole array.
    #[must_use]
    pub fn group(self) -> usize {
        match self {
            Self::NonFinite | Self::Nan | Self::NoLevel => 0,
            Self::NotPositive { column } => column,
            Self::ScaleOverflow { group } | Self::DecodeOverflow { group } => group,
        }
    }

    /// The same fault where group 0 is group `first` of a larger array.
    #[must_use]
    pub(crate) fn after(self, first: usize) -> Self {
        match self {
            Self::NonFinite | Self::Nan | Self::NoLevel | Self::NotPositive { .. } => self,
            Self::ScaleOverflow { group } => Self::ScaleOverflow { group: first + group },
            Self::DecodeOverflow { group } => Self::DecodeOverflow { group: first + group },
        }
    }

    /// The one that is reported when both happened. It depends on the faults alone, never on the
    /// order in which threads met them: `NonFinite` first, then the lowest group.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let rank = |fault: Self| match fault {
            Self::NonFinite | Self::Nan | Self::NoLevel | Self::NotPositive { .. } => (0, 0, 0),
            Self::ScaleOverflow { group } => (1, group, 0),
            Self::DecodeOverflow { group } => (1, group, 1),
        };
        if rank(other) < rank(self) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::Fault::{self, DecodeOverflow, NonFinite, ScaleOverflow};

    #[test]
    fn the_reported_fault_does_not_depend_on_the_order() {
        let ranked = [
            NonFinite,
            ScaleOverflow { group: 3 },
            DecodeOverflow { group: 3 },
            ScaleOverflow { group: 4 },
        ];
        for (i, &first) in ranked.iter().enumerate() {
            for &second in &ranked[i..] {
                assert_eq!(first.or(second), first);
                assert_eq!(Fault::or(second, first), first);
            }
        }
    }
}
