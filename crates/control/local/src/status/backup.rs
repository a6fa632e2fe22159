//! How far the nodes' backup is, by what they say of it. The store of the backup is not asked: it may be slow, and cost money.

use serde::Serialize;

use super::NodeState;

/// The backup, over what the nodes say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupState {
    /// Where it is kept.
    pub url: String,
    /// For how long the oldest durable redo has not been in it, in milliseconds: so old is the newest point that can be restored, at most;
    /// zero if it has everything.
    pub behind_ms: u64,
    /// For how long a node could bring nothing there, in milliseconds; zero if all can.
    pub failing_ms: u64,
    /// Groups that no node uploads at the moment.
    pub groups_without_uploader: u64,
    /// Ranges of redo that it lacks and that no snapshot has made up for.
    pub gaps: u64,
}

impl BackupState {
    /// Of a volume of so many groups that is backed up to `url`.
    pub(super) fn of(url: &str, nodes: &[NodeState], groups: u64) -> BackupState {
        let all = |name: &'static str| {
            nodes.iter().filter_map(move |node| node.metrics.get(name).and_then(serde_json::Value::as_u64))
        };
        let uploaded: u64 = all("backup_groups").sum();
        BackupState {
            url: url.to_owned(),
            behind_ms: all("backup_behind_ms").max().unwrap_or(0),
            failing_ms: all("backup_failing_ms").max().unwrap_or(0),
            groups_without_uploader: groups.saturating_sub(uploaded),
            gaps: all("backup_gaps").sum(),
        }
    }

    /// A line for a person.
    pub(super) fn line(&self) -> String {
        let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
        let mut said = Vec::new();
        if self.behind_ms > 0 {
            said.push(format!("{} behind", seconds(self.behind_ms)));
        }
        if self.failing_ms > 0 {
            said.push(format!(
                "a node has brought nothing there for {}, see above",
                seconds(self.failing_ms)
            ));
        }
        if self.groups_without_uploader > 0 {
            said.push(format!("groups that nobody uploads at the moment: {}", self.groups_without_uploader));
        }
        if self.gaps > 0 {
            said.push(format!("gaps until the next snapshots of their groups: {}", self.gaps));
        }
        if said.is_empty() {
            said.push("has everything".to_owned());
        }
        format!("backup    {}: {}", self.url, said.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(metrics: serde_json::Value) -> NodeState {
        let serde_json::Value::Object(metrics) = metrics else { panic!("an object") };
        NodeState {
            id: 1,
            az: "az1".to_owned(),
            pid: None,
            state: "up",
            address: String::new(),
            failure: None,
            hindrance: None,
            damage: None,
            groups: 0,
            draining: false,
            catching_up: None,
            metrics,
        }
    }

    #[test]
    fn the_slowest_node_says_how_far_the_backup_is() {
        let nodes = [
            node(
                serde_json::json!({ "backup_groups": 3, "backup_behind_ms": 400, "backup_failing_ms": 0, "backup_gaps": 0 }),
            ),
            node(
                serde_json::json!({ "backup_groups": 1, "backup_behind_ms": 2_300, "backup_failing_ms": 12_000, "backup_gaps": 1 }),
            ),
            node(serde_json::json!({})),
        ];
        let state = BackupState::of("file:///kept", &nodes, 4);
        assert_eq!(state.groups_without_uploader, 0);
        let line = state.line();
        assert!(line.contains("2.3 s behind") && line.contains("nothing there for 12.0 s"), "{line}");
        assert!(line.contains("gaps until the next snapshots of their groups: 1"), "{line}");
        let state = BackupState::of("file:///kept", &nodes[..1], 4);
        assert_eq!((state.groups_without_uploader, state.behind_ms), (1, 400));
        let down = BackupState::of("file:///kept", &[], 4);
        assert!(!down.line().contains("has everything"), "{}", down.line());
        let well = BackupState { groups_without_uploader: 0, behind_ms: 0, ..state };
        assert_eq!(well.line(), "backup    file:///kept: has everything");
    }
}
