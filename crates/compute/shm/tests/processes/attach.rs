//! Who gets a handle on the shared memory, and where it can be.

use std::ffi::CString;
use std::path::Path;

use borealis_shm::{AttachError, BUILD_FINGERPRINT, ClientSide, DriverSide, ServedDirectory};

use crate::harness::{Folder, client_at, config};

#[test]
fn what_is_not_finished_or_not_of_this_layout_is_not_attached_to() {
    let folder = Folder::new();
    let driver = folder.driver(3);
    assert!(client_at(driver.path(), driver.event_fd()).is_some());
    assert!(client_at(&folder.0.path().join("absent"), -1).is_none());
    let bytes = std::fs::read(driver.path()).unwrap();
    for (name, change) in [("magic", 0), ("version", 8)] {
        let path = folder.0.path().join(name);
        let mut changed = bytes.clone();
        changed[change] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert!(client_at(&path, -1).is_none(), "wrong {name}");
    }
    assert!(driver.shim_report().is_none());
    for length in [0, 8, 4096, bytes.len() - 1] {
        let path = folder.0.path().join("short");
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(client_at(&path, -1).is_none(), "{length} bytes");
    }
    let side = DriverSide::create(Path::new("/dev/shm/borealis-shm-never"), &config(0));
    assert!(side.is_err() && !Path::new("/dev/shm/borealis-shm-never").exists());
}

#[test]
fn a_client_of_another_build_is_refused_and_named_to_the_driver() {
    let folder = Folder::new();
    let driver = folder.driver(3);
    let path = CString::new(driver.path().to_str().unwrap()).unwrap();
    let report = || driver.shim_report().map(|report| (report.process_id, report.fingerprint));
    let own = std::process::id();
    let other = BUILD_FINGERPRINT ^ 1;
    assert!(ServedDirectory::read(&path, other).is_none());
    assert!(report().is_none(), "who only looks says nothing");
    let served = ServedDirectory::read(&path, BUILD_FINGERPRINT).expect("the same build");
    assert_eq!(served.data_directory(), config(3).data_directory.as_os_str().as_encoded_bytes());
    let refused = ClientSide::attach(&path, driver.event_fd(), other).err();
    assert_eq!(refused, Some(AttachError::OtherBuild));
    assert_eq!(report(), Some((own, other)));
    let client = ClientSide::attach(&path, driver.event_fd(), BUILD_FINGERPRINT).unwrap();
    assert_eq!(
        report(),
        Some((own, other)),
        "attaching alone says nothing: the driver's own threads attach, too"
    );
    client.announce_shim([1, 2, 3, 4, 5], b"/bin/postgres");
    assert_eq!(report(), Some((own, BUILD_FINGERPRINT)));
    let program = driver.shim_report().map(|report| (report.program_identity, report.program_path)).unwrap();
    assert_eq!(program, ([1, 2, 3, 4, 5], Path::new("/bin/postgres").to_owned()));
    client.announce_shim([0; 5], &[b'x'; 5000]);
    assert_eq!(driver.shim_report().unwrap().program_path, Path::new(""), "a path cut short is none");
}

#[test]
fn shared_memory_is_a_file_system_for_the_cache() {
    borealis_shm::probe_memory_file_system(Path::new("/dev/shm")).unwrap();
    assert!(borealis_shm::probe_memory_file_system(Path::new("/proc")).is_err());
}
