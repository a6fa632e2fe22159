//! One thread for each node: carries out what the recovery asks of it, and reports.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use borealis_client::handshake::Introduction;
use borealis_client::{ClientError, NodeClient, Timeouts};
use borealis_quorum::Promise;
use borealis_quorum::recovery::{Command, Event, TailRecord};
use borealis_spec::NodeAddress;
use borealis_types::{
    EPOCH_STEP_MAX, EpochHistory, GroupId, Lsn, MembershipEpoch, NodeId, PostgresVersion, VolumeEpoch,
};
use borealis_wal::record::previous_start;
use borealis_wire::{BatchBuilder, BatchHeader, BatchReader, BatchRecord, Caller, Refusal, Request};

use super::{Handle, Report};
use crate::config::Configured;

/// Bytes of one page of a tail.
const TAIL_PAGE_BYTES: u32 = 4 << 20;
/// The size goal of a repair's batches.
pub(super) const REPAIR_BATCH_BYTES: usize = 1 << 20;
/// Between two attempts to reach a node, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Until a node is asked again that has other memberships than this attempt is made for: it may be about to learn of them.
const PAUSE_UNTIL_LEARNED: Duration = Duration::from_millis(50);

/// The epochs to have promised on the way from one to a later one that is further than a node goes at once.
pub(super) fn fence_steps(promised: VolumeEpoch, wanted: VolumeEpoch) -> impl Iterator<Item = VolumeEpoch> {
    let first = promised.0.saturating_add(EPOCH_STEP_MAX);
    (first..wanted.0).step_by(EPOCH_STEP_MAX as usize).map(VolumeEpoch)
}

/// Carries out the commands for one node.
pub(super) struct Worker {
    config: Configured,
    node: NodeId,
    /// Where it may be found, the likeliest place first; at least one.
    addresses: Vec<NodeAddress>,
    /// Attempts to connect that failed: the places take turns.
    failures: usize,
    /// For which membership of each group the recovery is made.
    made_for: Vec<(GroupId, MembershipEpoch)>,
    report: Sender<Report>,
    /// The connection for everything but appends; `None` until the first request, and after a failure.
    client: Option<NodeClient>,
    /// For repairs: introduced as the writer.
    writer_client: Option<NodeClient>,
    /// The newest epoch that the node is known to be promised to.
    promised: VolumeEpoch,
    /// What the node promised this recovery.
    promise: Option<Promise>,
    /// For the ends of logs: introduced as the reader of the writer to be, whose turns nobody else has.
    reader_client: Option<NodeClient>,
}

impl Worker {
    /// For a node that may be found at these addresses; `None` if there are none.
    pub(super) fn new(
        config: Configured,
        addresses: Vec<NodeAddress>,
        made_for: Vec<(GroupId, MembershipEpoch)>,
        report: Sender<Report>,
    ) -> Option<Worker> {
        let node = addresses.first()?.node;
        Some(Worker {
            config,
            node,
            addresses,
            failures: 0,
            made_for,
            report,
            client: None,
            writer_client: None,
            promised: VolumeEpoch(0),
            promise: None,
            reader_client: None,
        })
    }

    pub(super) fn run(mut self, commands: &Receiver<Command<Handle>>) {
        let mut pause = PAUSE_MIN;
        while let Err(error) = self.introduce() {
            let is_other = matches!(error.refusal(), Some(Refusal::OtherMembership { .. }));
            if self.report.send(self.failure(error)).is_err() {
                return;
            }
            std::thread::sleep(if is_other { PAUSE_UNTIL_LEARNED } else { pause });
            pause = (pause * 2).min(PAUSE_MAX);
            if let Err(std::sync::mpsc::TryRecvError::Disconnected) = self.probe(commands) {
                return;
            }
        }
        while let Ok(command) = commands.recv() {
            let report = match self.carry_out(command) {
                Ok(event) => Report::Event(event),
                Err(error) => {
                    if matches!(error.refusal(), Some(Refusal::OtherMembership { .. })) {
                        // What these are made for does not change any more.
                        (self.client, self.writer_client, self.reader_client) = (None, None, None);
                    }
                    self.failure(error)
                }
            };
            if self.report.send(report).is_err() {
                return;
            }
        }
    }

    /// What the owner has to know of a request that was not answered.
    fn failure(&self, error: ClientError) -> Report {
        let node = self.node;
        match error {
            ClientError::Refused { refusal: Refusal::Fenced(current), .. } => {
                Report::Event(Event::Refused { node, current })
            }
            ClientError::Refused { refusal: refusal @ Refusal::OtherMembership { .. }, .. } => {
                Report::OtherMembership(node, refusal)
            }
            error => Report::Unreachable(node, error.to_string()),
        }
    }

    /// Whether the owner is still there. A command that arrived for a node that cannot be reached is dropped;
    /// the state machine sends it again.
    fn probe(&self, commands: &Receiver<Command<Handle>>) -> Result<(), std::sync::mpsc::TryRecvError> {
        match commands.try_recv() {
            Ok(_) | Err(std::sync::mpsc::TryRecvError::Empty) => Ok(()),
            Err(gone) => Err(gone),
        }
    }

    fn timeouts() -> Timeouts {
        Timeouts { connect: Duration::from_secs(1), call: Duration::from_secs(5) }
    }

    fn address(&self) -> &NodeAddress {
        // There is one at least, see `new`.
        &self.addresses[self.failures % self.addresses.len()]
    }

    fn connect(&mut self, caller: Caller) -> Result<NodeClient, ClientError> {
        let (volume, node) = (self.config.volume, self.node);
        let introduction = Introduction { volume, node, caller, memberships: self.made_for.clone() };
        let route = self.config.route(self.address());
        let connected = NodeClient::introduced(route, &introduction, Worker::timeouts());
        self.failures += usize::from(connected.is_err());
        connected
    }

    fn introduce(&mut self) -> Result<(), ClientError> {
        let client = self.connect(Caller::Recovery)?;
        let promised = client.welcome().iter().map(|segment| segment.promised_epoch).max();
        self.promised = self.promised.max(promised.unwrap_or_default());
        // The owner may be gone; the next command tells.
        let _ = self.report.send(Report::Welcome(self.node, client.welcome().to_vec()));
        self.client = Some(client);
        Ok(())
    }

    fn client(&mut self) -> Result<&mut NodeClient, ClientError> {
        if self.client.as_ref().is_none_or(NodeClient::is_broken) {
            self.client = Some(self.connect(Caller::Recovery)?);
        }
        Ok(self.client.as_mut().expect("it was just put there"))
    }

    /// The connection for reading the ends of logs.
    fn reader(&mut self) -> Result<&mut NodeClient, ClientError> {
        let Some(Promise { epoch, writer }) = self.promise else { return self.client() };
        if self.reader_client.as_ref().is_none_or(NodeClient::is_broken) {
            self.reader_client = Some(self.connect(Caller::Reader { epoch, writer })?);
        }
        Ok(self.reader_client.as_mut().expect("it was just put there"))
    }

    fn carry_out(&mut self, command: Command<Handle>) -> Result<Event<Handle>, ClientError> {
        let node = self.node;
        match command {
            Command::Fence { promise, .. } => {
                // A node promises only so many epochs at once, and somebody may have led another one far ahead.
                for step in fence_steps(self.promised, promise.epoch) {
                    self.client()?.fence(step, promise.writer)?;
                    self.promised = step;
                }
                let summaries = self.client()?.fence(promise.epoch, promise.writer)?;
                self.promised = promise.epoch;
                self.promise = Some(promise);
                Ok(Event::Fenced { node, summaries: summaries.iter().map(Into::into).collect() })
            }
            Command::ReadTail { group, above, .. } => {
                let (batches, more) = self.reader()?.read_tail(group, above, TAIL_PAGE_BYTES)?;
                let mut records = Vec::new();
                for batch in &batches {
                    if !read_batch(self.config.version, batch, group, above, &mut records) {
                        let address = self.address().address.clone();
                        let what = format!("a malformed tail of group {group}");
                        return Err(ClientError::Protocol { node, address, what });
                    }
                }
                Ok(Event::TailPage { node, group, above, records, more })
            }
            Command::Repair { group, promise, history, records, .. } => {
                self.repair(promise, group, &history, &records)?;
                Ok(Event::Repaired { node, group })
            }
            Command::Install { promise: Promise { epoch, writer }, history, tails, .. } => {
                self.client()?.call(&Request::Install { epoch, writer, history, tails })?;
                Ok(Event::Installed { node })
            }
            Command::Done(_) | Command::Failed(_) => Ok(Event::Tick),
        }
    }

    fn repair(
        &mut self,
        promise: Promise,
        group: GroupId,
        history: &EpochHistory,
        records: &[TailRecord<Handle>],
    ) -> Result<(), ClientError> {
        let Promise { epoch, writer } = promise;
        if self.writer_client.as_ref().is_none_or(NodeClient::is_broken) {
            // A writer may send large frames.
            self.writer_client = Some(self.connect(Caller::Writer { epoch, writer })?);
        }
        let client = self.writer_client.as_mut().expect("it was just put there");
        let mut records = records;
        // A group without records to bring still has its history adopted.
        loop {
            let mut batches = Vec::new();
            if let Some(first) = records.first() {
                let (batch, rest) = repair_batch(first.epoch, records);
                batches.push(batch);
                records = rest;
            }
            client.call(&Request::Repair { epoch, writer, group, history: history.clone(), batches })?;
            if records.is_empty() {
                return Ok(());
            }
        }
    }
}

/// A batch of the first records, which are of one epoch, and the records left. Beyond the size goal it holds at
/// most one record, so that it fits into a frame.
pub(super) fn repair_batch(
    epoch: VolumeEpoch,
    mut records: &[TailRecord<Handle>],
) -> (Vec<u8>, &[TailRecord<Handle>]) {
    let mut batch = BatchBuilder::new(&BatchHeader { volume_epoch: epoch, ..BatchHeader::default() });
    while let Some((record, rest)) = records.split_first()
        && record.epoch == epoch
        && (batch.record_count() == 0 || batch.size_bytes() + record.handle.bytes.len() <= REPAIR_BATCH_BYTES)
    {
        batch.push_form(record.span, record.handle.form, &record.links, &record.handle.bytes);
        records = rest;
    }
    (batch.finish(), records)
}

/// Adds the records of one batch of a tail; `false` if it is malformed.
fn read_batch(
    version: PostgresVersion,
    batch: &[u8],
    group: GroupId,
    above: Lsn,
    records: &mut Vec<TailRecord<Handle>>,
) -> bool {
    let Ok((header, reader)) = BatchReader::new(batch) else { return false };
    for record in reader {
        let Ok(record) = record else { return false };
        if record.span.end <= above || record.link(group).is_none() {
            continue;
        }
        let Some(previous_start) = sound_record(version, &record) else { return false };
        records.push(TailRecord {
            epoch: header.volume_epoch,
            span: record.span,
            previous_start,
            links: record.links,
            handle: Handle { form: record.form, bytes: Arc::from(record.bytes) },
        });
    }
    true
}

/// Start of the entry before a record in the volume, if the record's bytes are those that were written.
fn sound_record(version: PostgresVersion, record: &BatchRecord<'_>) -> Option<Lsn> {
    let start = record.span.start;
    if record.form.part.is_piece() {
        borealis_wal::piece::open(record.bytes, start).ok()?;
        return record.form.previous_start;
    }
    borealis_wal::verify_checksum(record.bytes, start).ok()?;
    let named = previous_start(version, record.span, record.bytes).ok()?;
    Some(record.form.previous_start.unwrap_or(named))
}
