//! The promise that every acknowledgement rests on.

use std::fmt::Debug;

use borealis_types::invariant;

/// Asserted before anyone is told that records are durable: the sync that returned covers the last of them. `needed` is
/// what the store said when it took the records, `None` if it took none; `synced` is the sync that succeeded.
pub(crate) fn assert_durable<S: Ord + Debug>(needed: Option<S>, synced: Option<S>) {
    invariant!(
        "acknowledged-after-sync",
        needed <= synced,
        "records up to {needed:?} are reported, the sync covers {synced:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_synced_may_be_told() {
        assert_durable(Some(7), Some(7));
        assert_durable(None::<u64>, None);
        assert_durable(None, Some(7));
    }

    #[test]
    #[should_panic(expected = "invariant acknowledged-after-sync is broken")]
    fn an_acknowledgement_before_its_sync_is_noticed() {
        assert_durable(Some(8), Some(7));
    }

    #[test]
    #[should_panic(expected = "invariant acknowledged-after-sync is broken")]
    fn an_acknowledgement_without_a_sync_is_noticed() {
        assert_durable(Some(1), None);
    }
}
