//! A node whose backup's key comes from a command. It has a program of its own: a child that is not yet what it is to run has the locks of
//! its parent, and other tests' nodes are in the parent.

mod common;

use std::time::{Duration, Instant};

use borealis_archive::sealing::Sealing;
use borealis_backup::contents;
use borealis_backup::key::KeySource;
use borealis_backup::store::folder::FolderStore;
use borealis_spec::BackupConfig;
use common::{ALL, Cluster, NODE_COUNT, VOLUME, Writer, block, image, wait_until};

#[test]
fn a_node_serves_while_a_command_has_its_key_and_uploads_once_it_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (key, asked) = (folder.path().join("printed"), folder.path().join("asked"));
    let kept = folder.path().join("kept");
    let mut cluster = Cluster::create(2);
    let command = format!("echo >> {}; cat {}; echo is the service up >&2", asked.display(), key.display());
    for config in &mut cluster.configs {
        let (url, key_command) = (format!("file://{}", kept.display()), Some(command.clone()));
        config.backup = Some(BackupConfig { url, key_file: None, key_command });
    }
    // This one's hangs.
    cluster.configs[0].backup.as_mut().expect("it has one").key_command = Some("sleep 1000".to_owned());
    (0..NODE_COUNT).for_each(|index| cluster.start_node(index));
    let mut writer = Writer::first(&cluster);
    let begun = Instant::now();
    for page in 0..20 {
        writer.put_page(block(1, page), &image(page));
    }
    writer.ship(&ALL);
    writer.announce(&ALL);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    wait_until("a node says why it uploads nothing", || {
        let hindrance = cluster.node(1).status().hindrance;
        hindrance.is_some_and(|what| what.contains("the key command") && what.contains("is the service up"))
    });
    assert!(cluster.metric(1, "backup_failing_ms") > 0 && asked.exists());
    // It stops at once, though its command does not end by itself.
    let begun = Instant::now();
    cluster.kill_node(0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    std::fs::write(&key, "0f".repeat(32)).unwrap();
    let sealing = KeySource::Command(&format!("cat {}", key.display())).sealing(&|| true).expect("a key");
    let read = |sealing: &Sealing| contents::read(&FolderStore::new(&kept), VOLUME, sealing).ok();
    let newest = || read(&sealing)?.newest().map(|newest| newest.lsn);
    let deadline = Instant::now() + Duration::from_secs(90);
    while newest().is_none_or(|newest| newest < writer.durable.end) {
        assert!(Instant::now() < deadline, "{:?}", cluster.node(1).status().hindrance);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(read(&Sealing::Plain).is_none(), "without the key nobody reads it");
}
