//! Paths as PostgreSQL gives them to the shim.

use borealis_shm::path::{Layout, PathClass};
use borealis_types::{
    DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, PostgresVersion, RelationFork, RelationLocator,
};

use crate::Input;

const VERSION: PostgresVersion = PostgresVersion::NEWEST;

const LAYOUT: Layout<'static> = Layout {
    data_directory: b"/dev/shm/data",
    versions: (VERSION.facts().number as u32, VERSION.facts().catalog_version),
    wal_segment_size_bytes: 16 << 20,
};

/// Classifying any path.
///
/// # Panics
/// When two ways to write a path differ in class, or a relation's path is not the one its class has.
pub fn shim_path(data: &[u8]) {
    let path = Input::new(data).rest();
    let class = LAYOUT.classify(path);
    let _ = (LAYOUT.classify_folder(path), LAYOUT.is_tablespace_link(path));
    if path.first() != Some(&b'/') {
        let absolute = [LAYOUT.data_directory, b"/", path].concat();
        assert_eq!(LAYOUT.classify(&absolute), class, "the absolute path is of another class");
        let dotted = [b"./", path].concat();
        assert_eq!(LAYOUT.classify(&dotted), class, "a leading ./ changes the class");
    }
    if let PathClass::Relation { fork, segment } = class {
        assert_eq!(LAYOUT.classify(canonical(fork, segment).as_bytes()), class, "{fork} has another path");
    }
}

fn canonical(fork: RelationFork, segment: u32) -> String {
    let RelationFork { locator: RelationLocator { tablespace, database, relation }, fork } = fork;
    let folder = match tablespace {
        DEFAULT_TABLESPACE => format!("base/{database}"),
        GLOBAL_TABLESPACE => "global".to_owned(),
        other => format!("pg_tblspc/{other}/{}/{database}", VERSION.tablespace_folder()),
    };
    let suffix = Fork::file_suffix(fork);
    let segment = if segment == 0 { String::new() } else { format!(".{segment}") };
    format!("{folder}/{relation}{suffix}{segment}")
}
