//! How much of a disk is left free, and by whom: nodes stop before it is full, and whoever else writes there stops before the nodes.

/// A node takes no redo while less of its disk is free, unless it is told another watermark: a gibibyte, or a twentieth of a small disk.
#[must_use]
pub fn node_watermark_bytes(disk_bytes: u64) -> u64 {
    (1 << 30).min(disk_bytes / 20)
}

/// What others leave free of a disk on which nodes have this watermark: what they write must not be why nodes take no redo.
#[must_use]
pub fn kept_free_bytes(node_watermark_bytes: u64) -> u64 {
    node_watermark_bytes.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_stop_before_nodes_do_and_before_they_go_on() {
        for disk_bytes in [0, 19, 20, 64 << 20, 20 << 30, 1 << 40, u64::MAX] {
            let watermark = node_watermark_bytes(disk_bytes);
            assert!(watermark <= 1 << 30 && watermark <= disk_bytes / 20, "{disk_bytes}");
            // A node that stopped goes on with a quarter more.
            assert!(kept_free_bytes(watermark) >= watermark + watermark / 4, "{disk_bytes}");
        }
        assert_eq!(kept_free_bytes(u64::MAX), u64::MAX);
    }
}
