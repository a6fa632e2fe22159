//! Whether a node is gone, from what several observers say.
//!
//! One observer alone is not believed: its own network may be what is broken. A node that a writer or a peer hears is at work for
//! its groups, whatever the controller sees. One that only the controller hears is of no use to them.

use std::fmt;

use borealis_types::NodeId;

use crate::catalog::records::{NodeRecord, Settings};
use crate::fleet::{NodeObservation, Observer};

/// How many observers must miss a node before it counts as silent.
const OBSERVERS_NEEDED: usize = 2;

/// What a controller takes a node for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    /// It is heard, and complains of nothing.
    Well,
    /// Its peers or a writer hear it, the controller does not.
    OutOfSight,
    /// Only one observer can say anything of it, and has not heard it: nothing is done for that.
    Unknown,
    /// Enough observers miss it, and not for long enough to give it up.
    Silent {
        /// Since anybody heard it.
        for_ms: u64,
    },
    /// Enough observers have missed it for so long that it is replaced.
    Gone {
        /// Since anybody heard it.
        for_ms: u64,
        /// How many miss it.
        observers: usize,
    },
    /// It said itself, or its host does, that it will not keep its promises: no patience helps.
    Broken(String),
}

impl Health {
    /// Whether a member in this state is replaced.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self, Health::Gone { .. } | Health::Broken(_))
    }

    /// Whether anything was heard of it lately: the place where it stands is not cut off.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        matches!(self, Health::Well | Health::OutOfSight | Health::Broken(_))
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Well => f.write_str("is well"),
            Health::OutOfSight => f.write_str("does not answer the controller, but others hear it"),
            Health::Unknown => f.write_str("does not answer the controller, and nobody else can tell"),
            Health::Silent { for_ms } => write!(f, "has not been heard for {}", seconds(*for_ms)),
            Health::Gone { for_ms, observers } => {
                write!(
                    f,
                    "has not been heard for {} by any of the {observers} that know it",
                    seconds(*for_ms)
                )
            }
            Health::Broken(why) => write!(f, "is broken: {why}"),
        }
    }
}

/// A time for a person.
pub(crate) fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Judges one node. `record` is what the catalog says of it.
#[must_use]
pub fn judge(settings: &Settings, record: &NodeRecord, seen: &NodeObservation) -> Health {
    if let Some(why) = &seen.lost {
        return Health::Broken(why.clone());
    }
    if let Some(answer) = &seen.answer {
        if let Some(why) = &answer.broken {
            return Health::Broken(why.clone());
        }
        if answer.incarnation != record.incarnation {
            return Health::Broken(
                "its store is another one than it had, so what it acknowledged is gone".to_owned(),
            );
        }
    }
    let heard = others(record.node, seen);
    let insiders =
        heard.iter().filter(|(observer, _)| *observer != Observer::Controller).map(|(_, ago)| *ago);
    let by_controller =
        heard.iter().find(|(observer, _)| *observer == Observer::Controller).map(|(_, ago)| *ago);
    let controller_hears = by_controller.is_some_and(|ago| ago < settings.silent_after_ms);
    // Whoever heard it last decides, for one that hears it is enough to know that it lives.
    let Some(for_ms) = insiders.clone().min() else {
        return if controller_hears { Health::Well } else { Health::Unknown };
    };
    if for_ms < settings.silent_after_ms {
        return if controller_hears { Health::Well } else { Health::OutOfSight };
    }
    let missing_for = |ms: u64| heard.iter().filter(|(_, ago)| *ago >= ms).count();
    match (missing_for(settings.silent_after_ms), missing_for(settings.replace_after_ms)) {
        (silent, _) if silent < OBSERVERS_NEEDED => {
            if controller_hears {
                Health::Well
            } else {
                Health::Unknown
            }
        }
        (_, observers)
            if settings.replaces()
                && for_ms >= settings.replace_after_ms
                && observers >= OBSERVERS_NEEDED =>
        {
            Health::Gone { for_ms, observers }
        }
        _ => Health::Silent { for_ms },
    }
}

/// Who says what of a node, itself left out.
fn others(node: NodeId, seen: &NodeObservation) -> Vec<(Observer, u64)> {
    let all = seen.heard_ms_ago.iter().map(|(observer, ago)| (*observer, *ago));
    all.filter(|(observer, _)| *observer != Observer::Peer(node)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use borealis_types::{AvailabilityZone, InstanceId, VolumeId};

    use super::*;
    use crate::catalog::records::NodeState;
    use crate::fleet::SelfReport;

    const SETTINGS: Settings = Settings {
        replace_after_ms: 60,
        silent_after_ms: 5,
        changes_max: 1,
        moves_max: 1,
        changes_per_node_max: 1,
        starts_nodes: false,
    };

    fn record() -> NodeRecord {
        NodeRecord {
            node: NodeId(3),
            zone: AvailabilityZone("az1".to_owned()),
            address: String::new(),
            incarnation: "ab".to_owned(),
            state: NodeState::Active,
        }
    }

    fn answer() -> SelfReport {
        SelfReport { incarnation: "ab".to_owned(), broken: None, free_bytes: 1 }
    }

    fn observers() -> [Observer; 4] {
        let writer = Observer::Writer(VolumeId(1), InstanceId(1));
        [Observer::Controller, writer, Observer::Peer(NodeId(1)), Observer::Peer(NodeId(2))]
    }

    /// Every way in which up to four observers have heard it just now, a while ago, long ago, or cannot tell.
    fn every_view() -> impl Iterator<Item = BTreeMap<Observer, u64>> {
        (0..4u32.pow(4)).map(|code| {
            let of = |index: u32| [Some(0), Some(30), Some(90), None][(code / 4u32.pow(index) % 4) as usize];
            observers()
                .into_iter()
                .zip(0..)
                .filter_map(|(observer, index)| Some((observer, of(index)?)))
                .collect()
        })
    }

    #[test]
    fn every_combination_of_four_observers_is_judged_by_the_rules() {
        let mut states = std::collections::BTreeSet::new();
        for view in every_view() {
            let insiders: Vec<u64> = view
                .iter()
                .filter(|(observer, _)| **observer != Observer::Controller)
                .map(|(_, ago)| *ago)
                .collect();
            let controller = view.get(&Observer::Controller).copied();
            let health = judge(
                &SETTINGS,
                &record(),
                &NodeObservation { heard_ms_ago: view.clone(), answer: None, lost: None },
            );
            let silent = view.values().filter(|ago| **ago >= 5).count();
            let long = view.values().filter(|ago| **ago >= 60).count();
            match &health {
                Health::Gone { observers, .. } => {
                    assert!(!insiders.is_empty(), "the controller alone gave it up: {view:?}");
                    assert!(insiders.iter().all(|ago| *ago >= 60), "somebody hears it: {view:?}");
                    assert!(*observers >= 2 && long >= 2, "one observer is none: {view:?}");
                }
                Health::Silent { .. } => assert!(silent >= 2 && !insiders.contains(&0), "{view:?}"),
                Health::OutOfSight => assert!(insiders.contains(&0) && controller != Some(0), "{view:?}"),
                Health::Well => assert_eq!(controller, Some(0), "{view:?}"),
                Health::Unknown => assert!(silent < 2 && controller != Some(0), "{view:?}"),
                Health::Broken(_) => panic!("nobody says so: {view:?}"),
            }
            let all_miss_it = !insiders.is_empty() && insiders.iter().all(|ago| *ago >= 60) && long >= 2;
            assert_eq!(health.is_lost(), all_miss_it, "{view:?}");
            states.insert(health.to_string().split(" for ").next().unwrap_or_default().to_owned());
        }
        assert_eq!(
            states.len(),
            4,
            "every state but broken occurs, and silent and gone begin alike: {states:?}"
        );
    }

    #[test]
    fn whoever_replaces_nothing_gives_no_node_up_for_its_silence() {
        let settings = Settings { replace_after_ms: 0, ..SETTINGS };
        assert_eq!(settings.check(), Ok(()));
        let heard_ms_ago = observers().into_iter().map(|observer| (observer, u64::MAX)).collect();
        let seen = NodeObservation { heard_ms_ago, ..NodeObservation::default() };
        assert!(judge(&SETTINGS, &record(), &seen).is_lost());
        assert_eq!(judge(&settings, &record(), &seen), Health::Silent { for_ms: u64::MAX });
    }

    #[test]
    fn a_node_is_no_witness_of_itself() {
        let heard_ms_ago = BTreeMap::from([
            (Observer::Controller, 90),
            (Observer::Peer(NodeId(3)), 0),
            (Observer::Peer(NodeId(1)), 90),
        ]);
        let seen = NodeObservation { heard_ms_ago, ..NodeObservation::default() };
        assert_eq!(judge(&SETTINGS, &record(), &seen), Health::Gone { for_ms: 90, observers: 2 });
    }

    #[test]
    fn what_is_broken_is_replaced_whoever_hears_it() {
        for view in every_view() {
            let seen = |answer: Option<SelfReport>, lost: Option<&str>| NodeObservation {
                heard_ms_ago: view.clone(),
                answer,
                lost: lost.map(str::to_owned),
            };
            let broken = SelfReport { broken: Some("the log is poisoned".to_owned()), ..answer() };
            let another = SelfReport { incarnation: "cd".to_owned(), ..answer() };
            for seen in
                [seen(Some(broken), None), seen(Some(another), None), seen(None, Some("its folder is gone"))]
            {
                let health = judge(&SETTINGS, &record(), &seen);
                assert!(matches!(health, Health::Broken(_)) && health.is_lost(), "{seen:?}");
            }
            assert!(!matches!(judge(&SETTINGS, &record(), &seen(Some(answer()), None)), Health::Broken(_)));
        }
    }
}
