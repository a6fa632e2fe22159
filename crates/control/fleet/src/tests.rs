use super::*;
use borealis_types::{InstanceId, NodeId, VolumeId};
use std::os::unix::fs::PermissionsExt;

fn name(text: &str) -> FleetName {
    text.parse().expect("a name")
}

fn hosts(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|&host| host.to_owned()).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn keys_are_their_owners_alone_and_an_authority_is_never_overwritten() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let place = folder.path().join("fleet");
    let fleet = Fleet::init(&place, name("f"), Validity::days(10)).expect("made");
    assert_eq!((mode(&place), mode(&place.join("authority-1.key"))), (0o700, 0o600));
    let key = fs::read(place.join("authority-1.key")).expect("read");
    let again = Fleet::init(&place, name("g"), Validity::days(10)).expect_err("there is one");
    assert!(again.to_string().contains("already; nothing was changed"), "{again}");
    fs::remove_file(place.join(RECORD_NAME)).expect("removed");
    assert!(matches!(Fleet::init(&place, name("g"), Validity::days(10)), Err(FleetError::Exists(_))));
    assert_eq!(fs::read(place.join("authority-1.key")).expect("read"), key);
    let out = folder.path().join("3");
    let issued =
        fleet.issue(Role::Node(NodeId(3)), &hosts(&["h3"]), Validity::days(99), &out).expect("issued");
    assert_eq!((mode(&out), mode(&issued.files.key)), (0o700, 0o600));
    // It does not outlive the authority.
    assert_eq!(seconds(issued.until), fleet.authorities()[0].valid_until_seconds);
    assert_eq!(issued.last_day().len(), "2026-11-27".len());
}

#[test]
fn a_folder_keeps_its_part() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fleet = Fleet::init(&folder.path().join("fleet"), name("f"), Validity::days(10)).expect("made");
    let out = folder.path().join("part");
    let role = Role::Instance(VolumeId(7), InstanceId(1));
    let first = fleet.issue(role, &[], Validity::days(1), &out).expect("issued");
    let key = fs::read(&first.files.key).expect("read");
    let other = fleet.issue(Role::Client, &[], Validity::days(1), &out).expect_err("another part");
    assert!(other.to_string().contains(&first.identity.to_string()), "{other}");
    assert_eq!(fs::read(&first.files.key).expect("read"), key);
    let renewed = fleet.issue(role, &[], Validity::days(2), &out).expect("renewed");
    assert!(renewed.until > first.until && fs::read(&first.files.key).expect("read") != key);
    assert_eq!(fs::read_dir(&out).expect("listed").count(), 3);
}

#[test]
fn hosts_are_checked() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fleet = Fleet::init(&folder.path().join("fleet"), name("f"), Validity::days(10)).expect("made");
    let issue = |names: &[&str]| {
        fleet.issue(Role::Node(NodeId(1)), &hosts(names), Validity::days(1), &folder.path().join("1"))
    };
    assert!(matches!(issue(&[]), Err(FleetError::NoHost)));
    for wrong in ["", "a b", "*", "h:7001", "tls:h"] {
        assert!(matches!(issue(&[wrong]), Err(FleetError::Host(_))), "{wrong}");
    }
    issue(&["h1.example", "10.0.0.1", "fd00::1"]).expect("all are hosts");
}

#[test]
fn a_new_authority_is_trusted_beside_the_old_one_until_that_is_retired() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let place = folder.path().join("fleet");
    Fleet::init(&place, name("f"), Validity::days(10)).expect("made");
    let mut fleet = Fleet::open(&place).expect("opened");
    let trusted = |fleet: &Fleet| {
        let text = fs::read_to_string(fleet.authorities_file()).expect("read");
        text.matches("BEGIN CERTIFICATE").count()
    };
    assert_eq!(trusted(&fleet), 1);
    assert!(fleet.retire(1).expect_err("it signs").to_string().contains("borealis fleet rotate"));
    assert_eq!(fleet.rotate(Validity::days(10)).expect("rotated").number, 2);
    assert_eq!(trusted(&fleet), 2);
    let mut fleet = Fleet::open(&place).expect("opened");
    assert!(fleet.retire(3).is_err());
    fleet.retire(1).expect("another one signs");
    assert_eq!(trusted(&Fleet::open(&place).expect("opened")), 1);
    assert!(place.join("authority-1.key").exists());
}

#[test]
fn a_file_that_is_no_fleets_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let missing = Fleet::open(folder.path()).expect_err("nothing is there").to_string();
    assert!(missing.contains("borealis fleet init"), "{missing}");
    let record = |text: &str| {
        fs::write(folder.path().join(RECORD_NAME), text).expect("written");
        Fleet::open(folder.path()).expect_err(text).to_string()
    };
    assert!(record("{").contains("cannot be read"));
    assert!(record(r#"{"format":2,"name":"f","authorities":[]}"#).contains("it has format 2"));
    assert!(record(r#"{"format":1,"name":"f","authorities":[]}"#).contains("no authority that signs"));
    assert!(record(r#"{"format":1,"name":"F","authorities":[]}"#).contains("no name of a fleet"));
}
