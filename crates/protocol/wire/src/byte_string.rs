//! Byte strings in messages, copied at once: as a list of numbers, which encodes the same, each byte of a page
//! would be handled by itself.

/// For `#[serde(with)]` of a byte string.
pub(crate) mod plain {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        super::optional::Owned::deserialize(deserializer).map(|owned| owned.0)
    }
}

/// For `#[serde(with)]` of an optional byte string.
pub(crate) mod optional {
    use std::fmt;

    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;
    use serde::{Deserialize, Serialize};

    /// What a list of bytes from outside may reserve before its bytes come.
    const RESERVE_BYTES_MAX: usize = 8192;

    struct Borrowed<'a>(&'a [u8]);

    impl Serialize for Borrowed<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }

    pub(super) struct Owned(pub(super) Vec<u8>);

    impl<'de> Deserialize<'de> for Owned {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Owned, D::Error> {
            deserializer.deserialize_byte_buf(OwnedVisitor).map(Owned)
        }
    }

    struct OwnedVisitor;

    impl<'de> Visitor<'de> for OwnedVisitor {
        type Value = Vec<u8>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }

        /// In formats that know no byte strings they are lists.
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u8>, A::Error> {
            let mut bytes = Vec::with_capacity(list.size_hint().unwrap_or(0).min(RESERVE_BYTES_MAX));
            while let Some(byte) = list.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes)
        }
    }

    pub(crate) fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_deref().map(Borrowed).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Owned>::deserialize(deserializer)?.map(|owned| owned.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct AtOnce(#[serde(with = "super::optional")] Option<Vec<u8>>);

    proptest! {
        #[test]
        fn it_encodes_as_a_list_of_numbers_does(
            bytes in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        ) {
            let encoded = postcard::to_stdvec(&bytes).unwrap();
            prop_assert_eq!(&postcard::to_stdvec(&AtOnce(bytes.clone())).unwrap(), &encoded);
            prop_assert_eq!(postcard::from_bytes::<AtOnce>(&encoded).unwrap(), AtOnce(bytes));
        }

        #[test]
        fn hostile_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = postcard::from_bytes::<AtOnce>(&bytes);
        }
    }
}
