//! PostgreSQL's page: header, line pointers, items, special space; every access checked.
//!
//! Layout: `src/include/storage/bufpage.h` and `itemid.h`. The behaviour of the functions that add, remove and
//! move items is that of `src/backend/storage/page/bufpage.c`, down to where on the page each item ends up.
//! Only the bytes of the hole between `pd_lower` and `pd_upper` are our own.

mod header;
pub(crate) mod mask;
mod space;
#[cfg(test)]
mod tests;

pub(crate) use header::*;
pub(crate) use space::{
    index_multi_delete, index_tuple_delete, index_tuple_delete_no_compact, index_tuple_overwrite,
    repair_fragmentation, truncate_line_pointer_array,
};
