//! Lists from outside that have a most of entries: an entry may take one byte on the wire and many in memory.

use core::fmt;
use core::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// What a list reserves before its entries come.
const RESERVED_ENTRIES_MAX: usize = 64;

/// For `#[serde(deserialize_with)]` of a list with at most `MAX` entries. It encodes as any list does.
///
/// # Errors
/// When it has more, or an entry is malformed.
pub fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Bounded::<T, MAX>(PhantomData))
}

struct Bounded<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Bounded<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "a list of at most {MAX} entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let announced = list.size_hint().unwrap_or(0);
        if announced > MAX {
            return Err(A::Error::invalid_length(announced, &self));
        }
        let mut entries = Vec::with_capacity(announced.min(RESERVED_ENTRIES_MAX));
        while let Some(entry) = list.next_element()? {
            if entries.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            entries.push(entry);
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Short(#[serde(deserialize_with = "super::list::<_, _, 3>")] Vec<Vec<u8>>);

    #[test]
    fn a_list_over_its_bound_is_refused_before_it_is_taken() {
        for length in 0..6 {
            let lists = vec![vec![7; 2]; length];
            let encoded = postcard::to_stdvec(&lists).unwrap();
            let read = postcard::from_bytes::<Short>(&encoded).ok();
            assert_eq!(read, (length <= 3).then_some(Short(lists)));
        }
    }
}
