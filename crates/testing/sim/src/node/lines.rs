//! A simulated node's connections with writers: introductions, batches and reads, in the product's own messages.

use std::rc::Rc;

use borealis_quorum::Promise;
use borealis_quorum::segment::{Segment, Source, Standing};
use borealis_types::{EpochOpening, GroupId, Lsn, ReadPoint, RecordSpan, ServerVersion, VolumeEpoch};
use borealis_wire::message::decode_payload;
use borealis_wire::{
    BatchFrame, BatchHeader, BatchReader, FrameBuffer, Payload, Refusal, Reply, Request, SegmentProgress,
    SegmentSummary,
};

use super::lies::Lie;
use super::pieces::effective;
use super::{Effects, Entry, SimNode};
use crate::message::{Host, LineId, Message, OnLine, SimRecord, durable_point, page_of};
use crate::{Coverage, Defect};

impl SimNode {
    /// Takes what came on a connection.
    ///
    /// # Errors
    /// What a correct writer never sends.
    pub(super) fn receive_on_line(
        &mut self,
        from: Host,
        line: LineId,
        content: OnLine,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        match content {
            OnLine::Request(id, Request::Hello { caller, .. }) => {
                self.lines.insert(line, (from, caller));
                let segments = self.groups().map(|group| self.introduction(group)).collect();
                self.reply(from, line, id, Reply::Welcome { node: self.id, segments }, effects);
            }
            OnLine::Closed => {
                self.lines.remove(&line);
            }
            // The node restarted since.
            _ if !self.lines.contains_key(&line) => {
                effects.send.push((from, Message::Line(line, OnLine::Closed)));
            }
            OnLine::Request(id, request) => self.take_request(from, line, id, request, effects, coverage)?,
            OnLine::Batch(frame) => self.take_batch(from, line, &frame, effects, coverage)?,
            OnLine::Reply(..) => return Err(format!("a reply from {from:?}")),
        }
        Ok(())
    }

    /// Replies keep the order of the requests, and wait until everything logged so far is durable.
    pub(super) fn reply(&mut self, to: Host, line: LineId, id: u64, reply: Reply, effects: &mut Effects) {
        self.answer(to, Message::Line(line, OnLine::Reply(id, reply)), effects);
    }

    fn introduction(&self, group: GroupId) -> SegmentSummary {
        let segment = self.segment(group);
        let mut summary = wire_summary(segment);
        let promised = segment.promise().epoch;
        if matches!(self.lie, Some(Lie::HistoryThatCuts | Lie::HistoryFar)) {
            claim_successor(&mut summary);
        }
        if self.defect == Defect::AcknowledgeWhileFenced && promised > summary.history.newest_epoch() {
            let (opened, complete) = (summary.history.newest().map(|newest| newest.last), segment.complete());
            let last = opened.filter(|opened| opened.end > complete.end).unwrap_or(complete);
            let server_version = ServerVersion::NEWEST_TESTED;
            summary.history.push(EpochOpening { epoch: promised, last, server_version });
        }
        summary
    }

    fn take_request(
        &mut self,
        from: Host,
        line: LineId,
        id: u64,
        request: Request,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        match request {
            Request::Fence { epoch, writer } => {
                let promise = Promise { epoch, writer };
                let mut refused = None;
                for group in self.groups() {
                    let before = self.segment(group).promise();
                    match self.segment_mut(group).fence(promise) {
                        Ok(_) if before != promise => self.log.push(Entry::Fence(group, promise)),
                        Ok(_) => {}
                        Err(fenced) => refused = refused.max(Some(fenced.current.epoch)),
                    }
                }
                let segments = self.groups().map(|group| wire_summary(self.segment(group))).collect();
                let reply = match refused {
                    None => Reply::Summaries(segments),
                    Some(current) => Reply::Refused(Refusal::Fenced(current)),
                };
                self.reply(from, line, id, reply, effects);
            }
            Request::Confirm { epoch } => {
                let promised = self.groups().map(|group| self.segment(group).promise().epoch).max();
                let reply = match promised.filter(|promised| *promised > epoch) {
                    Some(promised) => Reply::Refused(Refusal::Fenced(promised)),
                    None => Reply::Confirmed,
                };
                effects.send.push((from, Message::Line(line, OnLine::Reply(id, reply))));
            }
            Request::Install { writer, history, tails, .. } => {
                let last = history.newest().ok_or("an empty history to install")?.last;
                let mut result = Ok(());
                for group in self.groups() {
                    let point = durable_point(last, &tails, group);
                    let one = self.install(group, Some(writer), &history, point, effects, coverage);
                    result = result.and(one);
                }
                let segments = self.groups().map(|group| wire_summary(self.segment(group))).collect();
                let reply = match result {
                    Ok(()) => Reply::Summaries(segments),
                    Err(current) => Reply::Refused(Refusal::Fenced(current)),
                };
                self.reply(from, line, id, reply, effects);
            }
            Request::ReadPage { group, at, .. } => {
                let reply = match self.permit_read(group, at) {
                    Ok(()) => {
                        effects.read.push((group, at));
                        let records = self.records(group).values().filter(|record| record.span.end <= at.lsn);
                        let effective = effective(records, self.defect, coverage);
                        Reply::Page(Some(page_of(at.lsn, effective.into_iter())))
                    }
                    Err(refusal) => {
                        coverage.count(match refusal {
                            Refusal::Fenced(_) => "reads of fenced instances refused",
                            Refusal::HistoryBehind { .. } => "reads refused for want of history",
                            _ => "reads out of range refused",
                        });
                        Reply::Refused(refusal)
                    }
                };
                // Reads do not wait for the log.
                effects.send.push((from, Message::Line(line, OnLine::Reply(id, reply))));
            }
            other => return Err(format!("request {other:?}")),
        }
        Ok(())
    }

    /// Whether a read may be answered here: the product's rule, unless it is broken on purpose.
    ///
    /// # Errors
    /// What to answer the reader.
    pub fn permit_read(&self, group: GroupId, at: ReadPoint) -> Result<(), Refusal> {
        let permitted = self.segment(group).permit_read(at);
        match (self.defect, &permitted) {
            (Defect::ReadIgnoresHistory, Err(Refusal::HistoryBehind { .. }))
            | (Defect::ReadIgnoresPromise, Err(Refusal::Fenced(_))) => {
                self.segment(group).permit_read(at.lsn.into())
            }
            _ => permitted,
        }
    }

    fn take_batch(
        &mut self,
        from: Host,
        line: LineId,
        frame: &BatchFrame,
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Result<(), String> {
        let mut buffer = FrameBuffer::default();
        let (head, batch) = frame.parts();
        buffer.extend(head);
        buffer.extend(batch);
        let payload = buffer.next_frame().map_err(|error| error.to_string())?.ok_or("half a frame")?;
        let payload = decode_payload::<Request>(payload).map_err(|error| error.to_string())?;
        let Payload::Append { request_id, batch } = payload else {
            return Err("no batch in the frame".to_owned());
        };
        let (header, reader) = BatchReader::new(batch).map_err(|error| error.to_string())?;
        let mut records = Vec::new();
        for record in reader {
            let record = record.map_err(|error| error.to_string())?;
            let record =
                SimRecord::from_batch(header.volume_epoch, &record).ok_or("a record of no writer")?;
            records.push(Rc::new(record));
        }
        let reply = self.append(&header, &records, effects, coverage);
        self.reply(from, line, request_id, reply, effects);
        self.observe_header(&header);
        Ok(())
    }

    fn append(
        &mut self,
        header: &BatchHeader,
        records: &[Rc<SimRecord>],
        effects: &mut Effects,
        coverage: &mut Coverage,
    ) -> Reply {
        let epoch = header.volume_epoch;
        let fenced = self.groups().map(|group| self.segment(group).promise().epoch).max();
        let fenced = fenced.filter(|&current| current > epoch);
        let is_behind = self.groups().any(|group| self.segment(group).history().newest_epoch() < epoch);
        // Groups that are not fenced yet take their part all the same.
        for record in records {
            for link in &record.links {
                self.offer(link.group, Source::Writer, record, effects, coverage);
            }
        }
        if let Some(current) = fenced {
            coverage.count("appends of fenced writers");
            return Reply::Refused(Refusal::Fenced(current));
        }
        if is_behind {
            return Reply::Refused(Refusal::Misuse("the history is missing".to_owned()));
        }
        let concerned = |group: &GroupId| records.iter().any(|record| record.link(*group).is_some());
        let progress = |group| {
            let (_, segment_complete_lsn) = self.segment(group).acknowledgement()?;
            Some(SegmentProgress { group, segment_complete_lsn })
        };
        Reply::Appended(self.groups().filter(concerned).filter_map(progress).collect())
    }

    fn observe_header(&mut self, header: &BatchHeader) {
        let (epoch, minimum) = (header.volume_epoch, header.minimum_read_point);
        // A writer that has not learned of this member yet says nothing of its groups: not that they are empty.
        let listed = |group: &GroupId| header.tails.iter().any(|tail| tail.group == *group);
        for group in self.groups().filter(listed) {
            self.observe(group, epoch, durable_point(header.durable, &header.tails, group));
            if self.segment_mut(group).observe_minimum_read_point(epoch, minimum) {
                self.log.push(Entry::ReadPoint(group, epoch, minimum));
            }
        }
    }
}

/// Says that another writer has the volume.
fn claim_successor(summary: &mut SegmentSummary) {
    let epoch = VolumeEpoch(summary.promised_epoch.0 + 1);
    let opened = summary.history.newest().map(|newest| newest.last).unwrap_or(RecordSpan::NONE);
    summary.promised_epoch = epoch;
    let server_version = ServerVersion::NEWEST_TESTED;
    summary.history.push(EpochOpening { epoch, last: opened, server_version });
}

fn wire_summary(segment: &Segment) -> SegmentSummary {
    let known = segment.known_durable();
    SegmentSummary {
        group: segment.group(),
        promised_epoch: segment.promise().epoch,
        promised_writer: segment.promise().writer,
        history: segment.history().clone(),
        segment_complete_lsn: segment.segment_complete_lsn(),
        known_durable: known.volume,
        known_durable_tail: known.group_tail,
        readable_through: segment.readable_through(),
        minimum_read_point: segment.minimum_read_point(),
        materialized_lsn: Lsn::ZERO,
        joining: segment.standing() != Standing::Full,
        membership_epoch: segment.membership().map(|state| state.installed().epoch()).unwrap_or_default(),
    }
}
