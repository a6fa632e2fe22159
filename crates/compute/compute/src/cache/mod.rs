//! The local page cache: which of its pages storage could give back exactly as they are.
//!
//! [`rule`] decides about one page, [`open_transactions`] tells it which transactions may have changed one.

pub mod open_transactions;
pub mod rule;

pub use open_transactions::OpenTransactions;
