//! Records for unit tests.

use borealis_types::{BlockKey, Fork, Lsn, RecordSpan, RelationFork, RelationLocator, ServerVersion};
use borealis_wal::encode::RecordBuilder;
use borealis_wal::{BlockReference, Record, ResourceManager};

/// Where every test record stands.
pub(crate) const SPAN: RecordSpan = RecordSpan { start: Lsn(0x0100_0028), end: Lsn(0x0100_0100) };

/// A record from its bytes.
pub(crate) fn parse(bytes: &[u8]) -> Record<'_> {
    Record::parse(ServerVersion::NEWEST_TESTED, SPAN, bytes).unwrap()
}

/// A record from its parts. Its bytes live as long as the test run.
pub(crate) fn build(builder: &RecordBuilder<'_>) -> Record<'static> {
    parse(Vec::leak(builder.finish()))
}

/// A record that lists no block.
pub(crate) fn record(resource_manager: ResourceManager, info: u8, main_data: &[u8]) -> Record<'static> {
    build(&RecordBuilder::new(resource_manager, info).main_data(main_data))
}

/// A record that lists these blocks of the test relation: id, number, data.
pub(crate) fn record_on(
    resource_manager: ResourceManager,
    info: u8,
    main_data: &[u8],
    blocks: &[(u8, u32, &[u8])],
) -> Record<'static> {
    let mut builder = RecordBuilder::new(resource_manager, info).main_data(main_data);
    for (id, number, data) in blocks {
        let key = block_key(*number);
        builder = builder.block(BlockReference { id: *id, key, will_init: false, image: None, data });
    }
    build(&builder)
}

/// A block of the test relation.
pub(crate) fn block_key(block: u32) -> BlockKey {
    let locator = RelationLocator { tablespace: 1663, database: 5, relation: 16_384 };
    BlockKey { relation_fork: RelationFork { locator, fork: Fork::Main }, block }
}
