use super::*;
use crate::test_record::{SPAN, build, record};
use borealis_wal::encode::RecordBuilder;
use proptest::prelude::*;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn start() -> Counters {
    Counters {
        next_full_xid: 1 << 32 | 1000,
        next_oid: 20_000,
        next_multi: 10,
        next_multi_offset: 30,
        oldest_xid: 700,
        oldest_xid_database: 1,
        oldest_multi: 2,
        oldest_multi_database: 1,
        timeline: 1,
        previous_timeline: 1,
        full_page_writes: true,
        ..Counters::default()
    }
}

fn after(record: &Record<'_>) -> Counters {
    let mut counters = start();
    counters.apply(record).unwrap();
    assert_eq!(counters.last_record, SPAN);
    Counters { last_record: RecordSpan::NONE, ..counters }
}

fn checkpoint() -> CheckPointRecord {
    start().to_checkpoint(Lsn(0x0100_0028), 5)
}

#[test]
fn the_record_s_own_transaction_is_never_handed_out_again() {
    let heap = build(&RecordBuilder::new(ResourceManager::Heap, 0).xid(1000));
    assert_eq!(after(&heap).next_full_xid, 1 << 32 | 1001);
    let older = build(&RecordBuilder::new(ResourceManager::Heap, 0).xid(999));
    assert_eq!(after(&older), start());
}

#[test]
fn members_of_a_multixact_count_as_used() {
    let create =
        record(ResourceManager::MultiXact, multixact::CREATE, &words(&[12, 40, 2, 1200, 1, 1100, 1]));
    let expected =
        Counters { next_full_xid: 1 << 32 | 1201, next_multi: 13, next_multi_offset: 42, ..start() };
    assert_eq!(after(&create), expected);
}

#[test]
fn a_shutdown_checkpoint_is_believed_and_an_online_one_is_a_minimum() {
    let older = CheckPointRecord {
        next_oid: 18_000,
        next_multi: 5,
        next_multi_offset: 9,
        oldest_xid: 600,
        time: 99,
        ..checkpoint()
    };
    let shut_down = record(ResourceManager::Xlog, xlog::CHECKPOINT_SHUTDOWN, &older.encode());
    let expected = Counters {
        next_oid: 18_000,
        next_multi: 5,
        next_multi_offset: 9,
        oldest_xid: 600,
        checkpoint_time: 99,
        ..start()
    };
    assert_eq!(after(&shut_down), expected);
    let online = record(ResourceManager::Xlog, xlog::CHECKPOINT_ONLINE, &older.encode());
    assert_eq!(after(&online), Counters { checkpoint_time: 99, ..start() });
    let newer = CheckPointRecord {
        next_full_xid: 2 << 32 | 5,
        next_multi: 50,
        oldest_xid: 900,
        oldest_xid_database: 7,
        ..checkpoint()
    };
    let online = record(ResourceManager::Xlog, xlog::CHECKPOINT_ONLINE, &newer.encode());
    let expected = Counters {
        next_full_xid: 2 << 32 | 5,
        next_multi: 50,
        oldest_xid: 900,
        oldest_xid_database: 7,
        checkpoint_time: 5,
        ..start()
    };
    assert_eq!(after(&online), expected);
}

#[test]
fn truncations_raise_the_oldest_ids() {
    let clog = record(ResourceManager::Clog, slru::TRUNCATE, &words(&[0, 800, 9]));
    assert_eq!(after(&clog), Counters { oldest_xid: 800, oldest_xid_database: 9, ..start() });
    let multi = record(ResourceManager::MultiXact, multixact::TRUNCATE, &words(&[9, 2, 8, 1, 20]));
    assert_eq!(after(&multi), Counters { oldest_multi: 8, oldest_multi_database: 9, ..start() });
}

#[test]
fn next_oid_and_settings_are_believed() {
    let next_oid = record(ResourceManager::Xlog, xlog::NEXT_OID, &words(&[28_192]));
    assert_eq!(after(&next_oid).next_oid, 28_192);
    let mut data = words(&[100, 8, 10, 3, 64, 2]);
    data.extend([1, 1]);
    let change = record(ResourceManager::Xlog, xlog::PARAMETER_CHANGE, &data);
    let parameters = ParameterChange {
        wal_level: 2,
        wal_log_hints: true,
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 3,
        max_locks_per_transaction: 64,
        track_commit_timestamp: true,
    };
    let expected = Counters { parameters, oldest_commit_ts_xid: 1000, newest_commit_ts_xid: 1000, ..start() };
    assert_eq!(after(&change), expected);
}

#[test]
fn the_checkpoint_made_up_gives_back_the_counters() {
    let made_up = start().to_checkpoint(Lsn(0x0500_0028), 77);
    let shut_down = record(ResourceManager::Xlog, xlog::CHECKPOINT_SHUTDOWN, &made_up.encode());
    assert_eq!(after(&shut_down), Counters { checkpoint_time: 77, ..start() });
}

#[test]
fn a_malformed_record_is_an_error_and_not_a_silent_loss() {
    let short = record(ResourceManager::Xlog, xlog::NEXT_OID, &[1, 2]);
    assert!(start().apply(&short).is_err());
    assert!(redo_meta(&short, Some(vec![9; 4])).is_err(), "stored counters that do not decode");
}

proptest! {
    #[test]
    fn encode_and_decode_are_inverse(
        next_full_xid: u64, numbers: [u32; 12], checkpoint_time: i64, flags: [bool; 3], settings: [i32; 6],
        span: (u64, u64),
    ) {
        let [next_oid, next_multi, next_multi_offset, oldest_xid, oldest_xid_database, oldest_multi,
            oldest_multi_database, oldest_commit_ts_xid, newest_commit_ts_xid, oldest_active_xid, timeline,
            previous_timeline] = numbers;
        let [full_page_writes, wal_log_hints, track_commit_timestamp] = flags;
        let [wal_level, max_connections, max_worker_processes, max_wal_senders, max_prepared_transactions,
            max_locks_per_transaction] = settings;
        let counters = Counters {
            next_full_xid, next_oid, next_multi, next_multi_offset, oldest_xid, oldest_xid_database, oldest_multi,
            oldest_multi_database, oldest_commit_ts_xid, newest_commit_ts_xid, oldest_active_xid, timeline,
            previous_timeline, full_page_writes, checkpoint_time,
            parameters: ParameterChange {
                wal_level, wal_log_hints, max_connections, max_worker_processes, max_wal_senders,
                max_prepared_transactions, max_locks_per_transaction, track_commit_timestamp,
            },
            last_record: RecordSpan { start: Lsn(span.0), end: Lsn(span.1) },
        };
        prop_assert_eq!(Counters::decode(&counters.encode()), Some(counters));
    }

    #[test]
    fn hostile_values_and_records_never_panic(
        value in proptest::collection::vec(any::<u8>(), 0..130),
        number: u8, info: u8, xid: u32,
        data in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let _ = Counters::decode(&value);
        let manager = ResourceManager::from(number % 22);
        let builder = RecordBuilder::new(manager, info & 0xF0).xid(xid).main_data(&data);
        let bytes = builder.finish();
        let _ = start().apply(&crate::test_record::parse(&bytes));
    }
}

#[test]
#[should_panic(expected = "invariant encoded-counters-are-whole is broken")]
fn counters_that_lack_a_field_are_noticed() {
    assert_whole(&Counters::default().encode()[1..]);
}
