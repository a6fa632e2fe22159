//! The committed corpus: records that a stock server wrote, each with the pages and values it was applied to.
//!
//! `examples/collect_corpus.rs` makes it: for each operation the few smallest samples that its workload brings. It is
//! one LZ4 block, length first, of samples with a four-byte length before each.

use borealis_types::membership::{
    Accepted, Ballot, GroupMembership, MembershipRequest, MembershipState, Replacement, Transition,
};
use borealis_types::{AvailabilityZone, GroupId, Lsn, NodeId, PageBytes, PageKey, VolumeEpoch, VolumeId};
use borealis_wal::ResourceManager;
use borealis_wal::layout::page::{HEADER_BYTES, LOWER_OFFSET};
use borealis_wire::message::{Caller, Reply, Request, Whereabouts, encode_message};

use crate::batch::batch;
use crate::{Input, Sample};

const SAMPLES: &[u8] = include_bytes!("../corpus/samples.lz4");

/// Every sample of the corpus, those of GiST for both releases and with removals, and some of operations that take millions of transactions to write; encoded.
///
/// # Panics
/// If the committed file is damaged.
#[must_use]
pub fn samples() -> Vec<Vec<u8>> {
    let bytes = lz4_flex::decompress_size_prepended(SAMPLES).expect("the committed corpus unpacks");
    let mut input = Input::new(&bytes);
    let mut samples = Vec::new();
    while !input.is_empty() {
        let length = input.u32() as usize;
        samples.push(input.bytes(length).to_vec());
    }
    let removals: Vec<_> = samples.iter().filter_map(|bytes| gist_removal(bytes)).collect();
    samples.extend(removals);
    let older: Vec<_> = samples.iter().filter_map(|bytes| by_older_release(bytes)).collect();
    samples.extend(older);
    samples.extend(rare());
    samples
}

/// A change to a page of a GiST index, as one that removes the first tuple (`gistxlogPageUpdate` in `gistxlog.h`). The
/// smallest samples, which the corpus has, only add some.
fn gist_removal(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sample = Sample::decode(&mut Input::new(bytes));
    let is_update = sample.resource_manager == ResourceManager::Gist.number() && sample.info & 0xF0 == 0;
    let lower = |page: &PageBytes| u16::from_le_bytes([page[LOWER_OFFSET], page[LOWER_OFFSET + 1]]);
    let has_tuple = |page: &PageBytes| usize::from(lower(page)) > HEADER_BYTES;
    let block = sample.blocks.first_mut().filter(|block| is_update && block.image.is_none())?;
    let key = PageKey::Block(block.key);
    let has_tuple = sample.pages.iter().any(|(known, page)| *known == key && has_tuple(page));
    // One to remove, none to add; its number.
    sample.main_data = vec![1, 0, 0, 0];
    block.data = vec![1, 0];
    has_tuple.then(|| sample.encode())
}

/// The sample as the older release wrote it, if redo of that differs (see `releases.rs` of borealis-redo). A mutation
/// alone would seldom meet both the release and the page.
fn by_older_release(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut sample = Sample::decode(&mut Input::new(bytes));
    let differs = sample.resource_manager == ResourceManager::Gist.number() && !sample.by_older_release;
    sample.by_older_release = true;
    differs.then(|| sample.encode())
}

/// Records of the status stores' pages (`clog_redo` in `clog.c`, `commit_ts_redo` in `commit_ts.c`): resource manager,
/// operation, and four-byte fields.
fn rare() -> impl Iterator<Item = Vec<u8>> {
    let clog = ResourceManager::Clog.number();
    let commit_ts = ResourceManager::CommitTs.number();
    let records: [(u8, u8, &[u32]); 4] =
        [(clog, 0, &[3]), (clog, 0x10, &[1, 40_000, 5]), (commit_ts, 0, &[3]), (commit_ts, 0x10, &[1, 900])];
    records.into_iter().map(|(resource_manager, info, fields)| {
        let sample = Sample {
            resource_manager,
            info,
            xid: 0,
            origin: None,
            top_level_xid: None,
            by_older_release: false,
            main_data: fields.iter().flat_map(|field| field.to_le_bytes()).collect(),
            blocks: Vec::new(),
            pages: Vec::new(),
            values: Vec::new(),
        };
        sample.encode()
    })
}

/// The file of these samples.
#[must_use]
pub fn pack(samples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for sample in samples {
        bytes.extend_from_slice(&(sample.len() as u32).to_le_bytes());
        bytes.extend_from_slice(sample);
    }
    lz4_flex::compress_prepend_size(&bytes)
}

/// Inputs that a target can start from.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let with_prefix = |prefix: &[u8]| -> Vec<Vec<u8>> {
        samples().into_iter().map(|sample| [prefix, &sample].concat()).collect()
    };
    match target {
        "redo_record" => samples(),
        "meta_value" => {
            let is_of_values = |bytes: &Vec<u8>| !Sample::decode(&mut Input::new(bytes)).values.is_empty();
            samples().into_iter().filter(is_of_values).collect()
        }
        "record_effects" => {
            let raw = samples().into_iter().map(|bytes| {
                [&[1], &*Sample::decode(&mut Input::new(&bytes)).record_bytes(Lsn(0x28))].concat()
            });
            with_prefix(&[0]).into_iter().chain(raw).collect()
        }
        "wal_stream" => crate::stream::seeds(&samples()),
        "control_file" => vec![vec![1; 300], vec![0; 300]],
        "proto_frame" => frames(),
        "redo_batch" => vec![batch()],
        "store_files" => crate::store::seeds(),
        "archive_object" => crate::archive::seeds(),
        "shim_path" => PATHS.iter().map(|path| path.as_bytes().to_vec()).collect(),
        other => unreachable!("{other} is no target"),
    }
}

const PATHS: [&str; 8] = [
    "base/5/1259_vm.12",
    "./base//5/16384.1",
    "global/1262_fsm",
    "pg_tblspc/16400/PG_15_202209061/5/16401_init",
    "pg_wal/00000001000000020000000A",
    "pg_multixact/members/14078",
    "/dev/shm/data/pg_xact/0A1F",
    "pg_commit_ts/../pg_xact/0000",
];

/// What controllers ask, and what nodes say of memberships.
fn of_memberships() -> Vec<Vec<u8>> {
    let group = GroupId(1);
    let first = GroupMembership::created([1, 2, 3, 4, 5, 6].map(NodeId)).expect("six nodes");
    let replacement = Replacement { old: NodeId(3), new: NodeId(9) };
    let next = first.after(Transition::Begin(replacement)).expect("node 3 is a member");
    let ballot = Ballot { counter: 4, proposer: 7 };
    let nodes = vec![Whereabouts {
        node: NodeId(9),
        zone: AvailabilityZone("az2".to_owned()),
        address: "tls:nine:7001".to_owned(),
    }];
    let accepted = Accepted { ballot, membership: next.clone() };
    let mut state = MembershipState::new(first.clone());
    state.accept(&accepted).expect("it follows");
    let steps = [
        MembershipRequest::Ask,
        MembershipRequest::Prepare { installed: first, ballot },
        MembershipRequest::Accept(accepted),
        MembershipRequest::Install(next),
    ];
    let mut payloads: Vec<Vec<u8>> = steps
        .into_iter()
        .map(|request| encode_message(7, &Request::Membership { group, request, nodes: nodes.clone() }))
        .collect();
    let states = vec![(group, state.clone())];
    payloads.push(encode_message(8, &Request::Memberships));
    payloads.push(encode_message(8, &Reply::Memberships { states: states.clone(), nodes: nodes.clone() }));
    payloads.push(encode_message(9, &Reply::Member { membership: Some(state), segment: None }));
    let refusal = borealis_wire::Refusal::OtherMembership { states, nodes };
    payloads.push(encode_message(10, &Reply::Refused(refusal)));
    payloads
}

/// Frames, as `proto_frame` reads them: the flags that have it make checksum and length, the way the stream is cut,
/// and the payloads.
fn frames() -> Vec<Vec<u8>> {
    let hello = Request::Hello {
        protocol: 1,
        volume: VolumeId(7),
        node: NodeId(2),
        caller: Caller::Peer(NodeId(3)),
        memberships: Vec::new(),
    };
    let key = PageKey::Slru { kind: borealis_types::SlruKind::Transactions, page: 4 };
    let mut payloads = vec![
        encode_message(1, &hello),
        encode_message(2, &Request::Summaries),
        encode_message(3, &Request::ReadTail { group: GroupId(1), above: Lsn(9), limit_bytes: 1000 }),
        encode_message(4, &Request::ReadPage { group: GroupId(1), key, at: Lsn(900).into() }),
        encode_message(5, &Reply::Refused(borealis_wire::Refusal::Fenced(VolumeEpoch(4)))),
    ];
    payloads.extend(of_memberships());
    let mut append = borealis_wire::message::append_header(6).to_vec();
    append.extend_from_slice(&batch());
    payloads.push(append);
    payloads
        .iter()
        .map(|payload| {
            let mut seed = vec![0, 16];
            seed.extend_from_slice(&(payload.len() as u16).to_le_bytes());
            seed.extend_from_slice(payload);
            seed
        })
        .collect()
}
