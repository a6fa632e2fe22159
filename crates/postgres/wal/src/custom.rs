//! Resource managers of extensions: numbers from 128 on (`src/include/access/rmgr.h`).
//!
//! What such a record does is known to the extension's code alone. Nothing of it is ever stored.

pub use crate::layout::common::wal_record::FIRST_CUSTOM_RESOURCE_MANAGER as FIRST_NUMBER;

/// Whom the community's registry reserves a number for (<https://wiki.postgresql.org/wiki/CustomWALResourceManagers>).
/// A reservation, not a proof: the log itself carries only the number.
#[must_use]
pub fn reserved_for(number: u8) -> Option<&'static str> {
    let name = match number {
        128 => "extensions in development",
        129 => "OrioleDB",
        130 => "EnterpriseDB Bluefin",
        131 => "EnterpriseDB Bluefin2",
        132 => "EnterpriseDB Marlin",
        133 => "EnterpriseDB Marlin2",
        134 => "Neon",
        135 => "Postgres Pro AQO",
        136 => "Postgres Pro sr_plan",
        137 => "pg_analytics",
        138 => "PGroonga",
        139 => "EnterpriseDB Hsphere",
        241 => "Columnar",
        _ => return None,
    };
    Some(name)
}

/// The number and, where there is one, its reservation.
pub(crate) fn describe(number: u8) -> String {
    match reserved_for(number) {
        Some(name) => format!("{number} (reserved for {name})"),
        None => number.to_string(),
    }
}
