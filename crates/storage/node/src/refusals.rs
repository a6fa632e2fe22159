//! What callers are told about errors of the store.

use borealis_store::StoreError;
use borealis_wire::Refusal;

use crate::line_throttle::LineThrottle;

/// Turns errors of the store into refusals, and logs those that are the store's own failures.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    throttle: LineThrottle,
    hindered: LineThrottle,
}

impl Refusals {
    /// What to tell a caller about `error`.
    pub(crate) fn of(&self, error: &StoreError) -> Refusal {
        let refusal = error.to_refusal();
        match refusal {
            Refusal::Failed(_) => {
                if let Some(suppressed) = self.throttle.admit() {
                    tracing::error!(%error, suppressed, "the store failed");
                }
            }
            Refusal::NotNow(_) => {
                if let Some(suppressed) = self.hindered.admit() {
                    tracing::warn!(%error, suppressed, "the store is hindered");
                }
            }
            _ => {}
        }
        refusal
    }
}
