//! Which epochs a node promises. Epochs are never given back, so one that was promised out of bounds would use up those
//! below it for ever.

use crate::VolumeEpoch;

/// Epochs from here on are promised to nobody. A volume that opens a thousand times a second reaches it in nine thousand
/// years, so whoever names one is broken or hostile.
pub const EPOCH_LIMIT: VolumeEpoch = VolumeEpoch(1 << 48);

/// How far above its own promise a node promises at once. A node may have missed as many openings as there were while it
/// was away; a million of them are more than any node misses and still is of use.
pub const EPOCH_STEP_MAX: u64 = 1 << 20;

/// An epoch that is promised to nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "epoch {wanted} is out of bounds after {standing}: a node promises at most {EPOCH_STEP_MAX} epochs at once, and none \
     from {EPOCH_LIMIT} on"
)]
pub struct EpochOutOfBounds {
    /// The epoch that was named.
    pub wanted: VolumeEpoch,
    /// The epoch that the node has promised.
    pub standing: VolumeEpoch,
}

/// Checks an epoch that somebody named, before it is promised where `standing` was promised before.
///
/// # Errors
/// When it is too far away. One that is not newer is within bounds: that is for others to judge.
pub fn check_epoch(standing: VolumeEpoch, wanted: VolumeEpoch) -> Result<(), EpochOutOfBounds> {
    let is_near = wanted.0 <= standing.0.saturating_add(EPOCH_STEP_MAX);
    if wanted < EPOCH_LIMIT && is_near { Ok(()) } else { Err(EpochOutOfBounds { wanted, standing }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_are_promised_in_steps_and_below_a_limit() {
        let is_fine = |standing, wanted| check_epoch(VolumeEpoch(standing), VolumeEpoch(wanted)).is_ok();
        assert!(is_fine(0, 1) && is_fine(5, 5) && is_fine(5, 1) && is_fine(7, 7 + EPOCH_STEP_MAX));
        assert!(!is_fine(7, 8 + EPOCH_STEP_MAX) && !is_fine(7, u64::MAX));
        let last = EPOCH_LIMIT.0 - 1;
        assert!(is_fine(last, last) && !is_fine(last, last + 1) && !is_fine(u64::MAX, u64::MAX));
    }
}
