//! The segments of this node: their chains, the records that are not materialized, and replay.

pub(crate) mod cut_records;
pub(crate) mod entries;
pub(crate) mod hosted;
pub(crate) mod index;
pub(crate) mod learned;
pub(crate) mod membership;
pub(crate) mod pins;
pub(crate) mod record_effects;
pub(crate) mod replay;
pub(crate) mod state;
pub(crate) mod stay;
pub(crate) mod trouble;
