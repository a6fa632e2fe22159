use super::*;
use crate::{Issued, Validity};
use borealis_types::{NodeId, VolumeId};

fn now() -> SystemTime {
    SystemTime::now()
}

fn made(place: &Path) -> Fleet {
    Fleet::init(place, "f".parse().expect("a name"), Validity::days(100)).expect("made")
}

fn issue(fleet: &Fleet, role: Role, folder: &str) -> Issued {
    let hosts = [format!("{}.example", folder.replace('/', "-"))];
    fleet.issue(role, &hosts, Validity::days(50), &fleet.folder.join(folder)).expect("issued")
}

/// The numbers in the lists of a file of authorities.
fn revoked_in(authorities: &Path) -> Vec<String> {
    let text = fs::read(authorities).expect("read");
    let mut numbers = Vec::new();
    for list in CertificateRevocationListDer::pem_slice_iter(&text) {
        let list = list.expect("PEM");
        let list = BorrowedCertRevocationList::from_der(&list).expect("a list");
        numbers.extend(
            (&list).into_iter().map(|entry| Serial::of(entry.expect("an entry").serial_number).to_string()),
        );
    }
    numbers.sort();
    numbers
}

fn number_of(fleet: &Fleet, role: Role) -> Vec<String> {
    let own = |standing: &Standing| standing.certificate.identity.role == role;
    let all = fleet.certificates().expect("read").into_iter().filter(own);
    let mut numbers: Vec<String> = all.map(|standing| standing.certificate.serial.to_string()).collect();
    numbers.sort();
    numbers
}

const NODE_3: Role = Role::Node(NodeId(3));

#[test]
fn every_certificate_of_a_part_is_revoked_and_no_others() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fleet = made(&folder.path().join("fleet"));
    issue(&fleet, NODE_3, "node-3");
    issue(&fleet, NODE_3, "node-3");
    issue(&fleet, Role::Node(NodeId(4)), "node-4");
    assert_eq!(revoked_in(&fleet.authorities_file()), [] as [String; 0]);
    let revoked = fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked");
    assert!(revoked.len() == 2 && revoked.iter().all(|one| !one.was_revoked));
    assert_eq!(revoked_in(&fleet.authorities_file()), number_of(&fleet, NODE_3));
    // Again, and in addition.
    let again = fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked");
    assert!(again.len() == 2 && again.iter().all(|one| one.was_revoked));
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 2);
    let renewed = issue(&fleet, NODE_3, "node-3");
    assert_eq!(
        revoked_in(&renewed.files.authorities).len(),
        2,
        "a part is given the list with its certificate"
    );
    fleet.revoke(&Selection::Part(Role::Node(NodeId(4))), now()).expect("revoked");
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 3);
    let days: Vec<bool> =
        fleet.certificates().expect("read").iter().map(|standing| standing.revoked_day.is_some()).collect();
    assert_eq!(days, [true, true, false, true]);
    let nobody = fleet.revoke(&Selection::Part(Role::Controller), now()).expect_err("there is none");
    assert!(nobody.to_string().contains("borealis://f/controller is noted"), "{nobody}");
}

#[test]
fn a_certificate_is_named_by_its_host_its_number_or_its_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fleet = made(&folder.path().join("fleet"));
    let (one, other) =
        (Role::Instance(VolumeId(1), InstanceId(2)), Role::Instance(VolumeId(9), InstanceId(2)));
    issue(&fleet, Role::Controller, "hosts/h5/controller/tls");
    issue(&fleet, NODE_3, "hosts/h5/node-3/tls");
    issue(&fleet, Role::Node(NodeId(4)), "hosts/h55/node-4/tls");
    issue(&fleet, one, "hosts/h6/instance-2/tls");
    let lost = issue(&fleet, other, "elsewhere");
    let revoke = |selection: &Selection| fleet.revoke(selection, now()).map(|revoked| revoked.len());
    let in_doubt = revoke(&Selection::Instance(InstanceId(2))).expect_err("two volumes");
    assert!(in_doubt.to_string().contains("say which with --volume"), "{in_doubt}");
    assert_eq!(revoke(&Selection::Host("h5".to_owned())).expect("revoked"), 2);
    let mut of_host = [number_of(&fleet, Role::Controller), number_of(&fleet, NODE_3)].concat();
    of_host.sort();
    assert_eq!(revoked_in(&fleet.authorities_file()), of_host);
    assert_eq!(
        revoke(&Selection::Host("elsewhere.example".to_owned())).ok(),
        None,
        "instances are not called"
    );
    assert_eq!(revoke(&Selection::Host("hosts-h55-node-4-tls.example".to_owned())).expect("revoked"), 1);
    let serial: Serial = number_of(&fleet, one)[0].to_uppercase().parse().expect("a number");
    assert_eq!(revoke(&Selection::Serial(serial)).expect("revoked"), 1);
    // Nobody noted this one.
    fs::remove_file(fleet.folder.join("certificates.jsonl")).expect("removed");
    assert_eq!(revoke(&Selection::File(lost.files.certificate)).expect("revoked"), 1);
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 5, "a lost register brings nobody back");
    assert_eq!(revoke(&Selection::Serial("abcd".parse().expect("a number"))).expect("revoked"), 1);
    let other = Fleet::init(&folder.path().join("other"), "g".parse().expect("a name"), Validity::days(9));
    let foreign = issue(&other.expect("made"), NODE_3, "node-3");
    let refused = revoke(&Selection::File(foreign.files.certificate)).expect_err("of another fleet");
    assert!(refused.to_string().contains("nothing was changed"), "{refused}");
}

#[test]
fn lists_follow_their_authorities() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let mut fleet = made(&folder.path().join("fleet"));
    issue(&fleet, NODE_3, "node-3");
    fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked");
    fleet.rotate(Validity::days(100)).expect("rotated");
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 1, "it is still trusted");
    issue(&fleet, NODE_3, "node-3");
    assert_eq!(fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked").len(), 2);
    let text = fs::read_to_string(fleet.authorities_file()).expect("read");
    assert_eq!(text.matches("BEGIN X509 CRL").count(), 2, "one of each authority");
    fleet.retire(1).expect("retired");
    assert_eq!(
        revoked_in(&fleet.authorities_file()).len(),
        1,
        "whom the first one signed for is refused anyhow"
    );
    let standing = fleet.certificates().expect("read");
    assert!(standing[0].is_of_retired && !standing[1].is_of_retired);
    // Of the retired one's there is nothing left to revoke.
    let again = fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked");
    assert_eq!(again.len(), 1);
}

#[test]
fn what_was_interrupted_is_done_the_next_time() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let fleet = made(&folder.path().join("fleet"));
    issue(&fleet, NODE_3, "node-3");
    fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked");
    // As after a crash between the register and the list.
    fs::remove_file(fleet.folder.join("authority-1.crl")).expect("removed");
    fleet.write_bundle().expect("written");
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 0);
    assert!(fleet.revoke(&Selection::Part(NODE_3), now()).expect("revoked")[0].was_revoked);
    assert_eq!(revoked_in(&fleet.authorities_file()).len(), 1);
    fs::write(fleet.folder.join("authority-1.crl"), "-----BEGIN X509 CRL-----\nx").expect("written");
    let damaged = fleet.revoke(&Selection::Part(NODE_3), now()).expect_err("it is damaged");
    assert!(damaged.to_string().contains("remove it: it is then made anew"), "{damaged}");
}
