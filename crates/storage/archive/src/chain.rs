//! A group's chain, record by record: what makes a gap impossible to overlook.
//!
//! Each record names the end of the group's record before it. Whoever writes redo objects, verifies them or restores from them
//! takes records through a [`Chain`], which admits the next one and no other.

use borealis_types::{GroupId, Lsn};
use borealis_wire::BatchRecord;

/// Where a group's chain has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chain {
    group: GroupId,
    at: Lsn,
}

/// What a record is to a chain that takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next one: the chain ends with it now.
    Next,
    /// It ends at or before the chain's end: the chain has it, or has another in its place that came first.
    Had,
}

/// A record that does not follow the chain's last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainBreak {
    /// Records between are missing, or it is of another history.
    #[error(
        "group {group} has records to {at}; the record that ends at {end} follows one that ends at {previous_end}"
    )]
    Gap {
        /// The group.
        group: GroupId,
        /// Where the chain ended.
        at: Lsn,
        /// What the record names as the end of the one before it.
        previous_end: Lsn,
        /// The end of the record.
        end: Lsn,
    },
    /// It is not of this group.
    #[error("the record that ends at {end} is not of group {group}")]
    OtherGroup {
        /// The group.
        group: GroupId,
        /// The end of the record.
        end: Lsn,
    },
}

impl Chain {
    /// The chain of a group that has everything to a record that ends at `at`; zero if it has nothing yet.
    #[must_use]
    pub fn new(group: GroupId, at: Lsn) -> Chain {
        Chain { group, at }
    }

    /// End of the last record.
    #[must_use]
    pub fn at(&self) -> Lsn {
        self.at
    }

    /// Takes a record.
    ///
    /// # Errors
    /// When it is not of the group, or does not follow.
    pub fn take(&mut self, record: &BatchRecord<'_>) -> Result<Step, ChainBreak> {
        let (group, at, end) = (self.group, self.at, record.span.end);
        let link = record.link(group).ok_or(ChainBreak::OtherGroup { group, end })?;
        if end <= at {
            return Ok(Step::Had);
        }
        if link.previous_end != at {
            return Err(ChainBreak::Gap { group, at, previous_end: link.previous_end, end });
        }
        self.at = end;
        Ok(Step::Next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_types::{RecordForm, RecordSpan};
    use borealis_wire::GroupLink;

    #[test]
    fn only_the_next_record_is_taken() {
        let record = |start, end, previous| BatchRecord {
            span: RecordSpan { start: Lsn(start), end: Lsn(end) },
            links: vec![GroupLink { group: GroupId(2), previous_end: Lsn(previous) }],
            form: RecordForm::default(),
            bytes: &[1],
        };
        let mut chain = Chain::new(GroupId(2), Lsn(100));
        assert_eq!(chain.take(&record(80, 100, 40)), Ok(Step::Had));
        assert_eq!(chain.take(&record(120, 160, 100)), Ok(Step::Next));
        assert_eq!(chain.at(), Lsn(160));
        let gap = chain.take(&record(240, 280, 200)).unwrap_err();
        assert!(gap.to_string().contains("has records to 0/A0"), "{gap}");
        // Of a history in which the chain's last record was cut.
        assert!(chain.take(&record(160, 200, 100)).is_err());
        assert!(Chain::new(GroupId(1), Lsn::ZERO).take(&record(120, 160, 0)).is_err());
        assert_eq!(chain.at(), Lsn(160), "what is refused moves nothing");
    }
}
