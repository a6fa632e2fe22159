//! Every metric, once. `docs/metrics.md` is this list as a table, and a test compares the two.

/// What a metric's value means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only rises, and begins at zero with the process. Its name gets the ending `_total`.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts durations in buckets.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Its name, without the ending of a counter.
    pub name: &'static str,
    /// What its value means.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence with its unit.
    pub help: &'static str,
}

impl Metric {
    /// The name under which Prometheus has it.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Counter, &[], help)
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    metric(name, Kind::Gauge, &[], help)
}

/// What a node's names begin with; the rest of those without labels is the name in [`borealis_client`]'s status.
pub const NODE_PREFIX: &str = "borealis_node_";
/// What an instance's names begin with.
pub const INSTANCE_PREFIX: &str = "borealis_instance_";

/// What a controller's names begin with.
pub const CONTROLLER_PREFIX: &str = "borealis_controller_";

/// Of a storage node.
pub const NODE: &[Metric] = &[
    metric("borealis_node_info", Kind::Gauge, &["volume", "node", "zone"], "One: which node this is"),
    gauge("borealis_node_failed", "One when the node no longer keeps its promises, else zero"),
    gauge(
        "borealis_node_hindered",
        "One while something keeps it from some of its work, and passes with its cause",
    ),
    gauge("borealis_node_damaged", "One while something on its disk is damaged and not repaired yet"),
    metric(
        "borealis_node_segment_complete_lsn",
        Kind::Gauge,
        &["group"],
        "The segment has every record of its group up to here (SCL)",
    ),
    metric(
        "borealis_node_segment_durable_lsn",
        Kind::Gauge,
        &["group"],
        "The highest volume durable point that the segment heard of",
    ),
    metric(
        "borealis_node_segment_materialized_lsn",
        Kind::Gauge,
        &["group"],
        "All redo of the segment up to here is in page images",
    ),
    metric(
        "borealis_node_segment_promised_epoch",
        Kind::Gauge,
        &["group"],
        "The epoch that the segment is promised to",
    ),
    metric(
        "borealis_node_acknowledgement_seconds",
        Kind::Histogram,
        &[],
        "From a whole append received to its acknowledgement written, in seconds",
    ),
    metric(
        "borealis_node_page_read_seconds",
        Kind::Histogram,
        &[],
        "Time inside the store for one page, in seconds",
    ),
    counter("borealis_node_append_frames", "Append requests received"),
    counter("borealis_node_append_bytes", "Bytes of redo batches received"),
    counter("borealis_node_append_syncs", "Times that a connection made appends durable"),
    counter("borealis_node_append_refused", "Appends answered with a refusal"),
    counter("borealis_node_page_reads", "Pages asked for"),
    counter("borealis_node_requests", "Requests of all kinds except appends"),
    counter("borealis_node_requests_refused", "Of these, answered with a refusal"),
    gauge(
        "borealis_node_certificate_expires_seconds",
        "When the node's certificate is valid no more, in seconds since 1970; zero without TLS",
    ),
    gauge("borealis_node_connections", "Connections open now"),
    counter("borealis_node_connections_accepted", "Connections accepted"),
    counter("borealis_node_connections_refused", "Connections closed at once because too many were open"),
    counter(
        "borealis_node_strangers_refused",
        "Connections closed at once because a process of another user called",
    ),
    counter(
        "borealis_node_frames_refused",
        "Connections closed because of garbage, an oversized frame or a missing introduction",
    ),
    counter("borealis_node_gossip_exchanges", "Summaries fetched from peers"),
    counter("borealis_node_gossip_failures", "Exchanges with a peer that failed"),
    counter("borealis_node_gossip_pulled_bytes", "Bytes of batches pulled from peers"),
    counter("borealis_node_gossip_pulled_batches", "Batches pulled from peers"),
    counter(
        "borealis_node_gossip_records_unconfirmed",
        "Records left because only one peer sent them and they are not known to be durable",
    ),
    gauge(
        "borealis_node_refill_groups",
        "Segments that no peer's log continues and that are refilled, or wait to be",
    ),
    gauge("borealis_node_refill_done_bytes", "Pages of theirs that are as of the durable point, in bytes"),
    gauge("borealis_node_refill_total_bytes", "About how many bytes of pages they have"),
    gauge("borealis_node_refill_bytes_per_second", "Bytes of pages compared or brought in a second, of late"),
    counter("borealis_node_refill_fetched_bytes", "Bytes of pages that peers sent for refills"),
    counter("borealis_node_refills", "Segments refilled"),
    counter(
        "borealis_node_memberships_installed",
        "Memberships of groups that were acted on for the first time",
    ),
    counter(
        "borealis_node_memberships_refused",
        "Callers refused because they know another membership, or are no peers",
    ),
    gauge(
        "borealis_node_segments_joining",
        "Segments that came into their group and do not have everything yet",
    ),
    counter("borealis_node_segments_joined", "Segments that came into their group and then had everything"),
    counter("borealis_node_segments_left", "Segments that left their group"),
    gauge("borealis_node_backup_groups", "Groups that this node uploads; the others are uploaded by peers"),
    gauge(
        "borealis_node_backup_behind_seconds",
        "For how long, in seconds, the oldest durable redo of these groups has not been in the backup",
    ),
    gauge(
        "borealis_node_backup_failing_seconds",
        "For how long, in seconds, nothing gets to the backup; 0 if all is well",
    ),
    gauge(
        "borealis_node_backup_gaps",
        "Ranges of redo that the backup lacks and that no newer snapshot made up for",
    ),
    counter("borealis_node_backup_objects", "Objects made in the backup"),
    counter("borealis_node_backup_bytes", "Bytes of these objects"),
    counter("borealis_node_backup_failures", "Requests that the backup's store did not fulfil"),
    counter("borealis_node_backup_snapshots", "Snapshots of groups that this node completed"),
    counter("borealis_node_backup_deleted", "Objects deleted from the backup that nobody can need any more"),
    counter("borealis_node_materializations", "Rounds of materialization that did something"),
    gauge("borealis_node_resident_bytes", "Resident memory of the process, in bytes"),
    counter("borealis_node_store_records_taken", "Records that at least one segment took"),
    counter("borealis_node_store_records_duplicate", "Offers of a record to a segment that had it already"),
    counter("borealis_node_store_records_stale", "Offers refused because their epoch is over"),
    counter(
        "borealis_node_store_records_too_far_ahead",
        "Offers refused because too many records wait for a predecessor",
    ),
    counter("borealis_node_store_records_conflicting", "Offers that contradict what a segment holds"),
    counter("borealis_node_store_log_entries", "Entries appended to the log"),
    counter("borealis_node_store_log_bytes", "Bytes of log entries written"),
    counter("borealis_node_store_log_syncs", "Calls of fdatasync on the log"),
    counter("borealis_node_store_pages_read", "Page reads asked of the store"),
    counter("borealis_node_store_records_applied_for_reads", "Records applied to serve them"),
    counter("borealis_node_store_page_cache_hits", "Page reads that began from the page cache"),
    counter("borealis_node_store_pages_written", "Page versions written by the materializer"),
    counter(
        "borealis_node_store_rounds_abandoned",
        "Rounds of materialization that could not write their pages",
    ),
    counter("borealis_node_store_pages_moved", "Pages copied to a larger region because their relation grew"),
    counter("borealis_node_store_checkpoints", "Checkpoints written and durable"),
    counter("borealis_node_store_checkpoint_bytes", "Bytes of checkpoints written"),
    counter(
        "borealis_node_store_log_files_lost_to_peers",
        "Log files released although a peer may lack redo in them",
    ),
    counter("borealis_node_store_pages_healed", "Pages taken from peers because they could not be made here"),
    counter("borealis_node_store_pages_mended", "Pages that could not be made before, written by a round"),
    counter(
        "borealis_node_store_log_entries_repaired",
        "Log entries that were damaged and whose records were got again",
    ),
    counter("borealis_node_store_scrubbed_bytes", "Bytes that the scrubber has read"),
    counter("borealis_node_store_scrub_passes", "Times that the scrubber has read everything"),
    counter(
        "borealis_node_store_appends_refused_for_backlog",
        "Appends refused because too much redo waits behind a record that cannot be applied",
    ),
    counter("borealis_node_store_appends_held_back", "Appends delayed by back pressure"),
    gauge("borealis_node_store_index_memory_bytes", "Memory of the index of unapplied redo, in bytes"),
    gauge("borealis_node_store_catalog_memory_bytes", "Memory of the places of batches in the log, in bytes"),
    gauge("borealis_node_store_base_memory_bytes", "Memory of what is known of materialized pages, in bytes"),
    gauge("borealis_node_store_cache_memory_bytes", "Memory of the page cache, in bytes"),
    gauge("borealis_node_store_unapplied_record_bytes", "Bytes of records that are not in page images yet"),
    gauge("borealis_node_store_records_held", "Records that wait for a predecessor"),
    gauge("borealis_node_store_segments", "Segments on this node"),
    gauge("borealis_node_store_extents", "Regions of page files in use"),
    gauge("borealis_node_store_boot", "How often the store was opened"),
    gauge(
        "borealis_node_store_pages_in_trouble",
        "Pages that cannot be made here now: damaged, or in quarantine",
    ),
    gauge("borealis_node_store_quarantine_bytes", "Bytes of records that are kept for pages in quarantine"),
    gauge("borealis_node_store_log_entries_damaged", "Damaged log entries now"),
    gauge("borealis_node_store_log_files", "Log files on disk"),
    gauge("borealis_node_store_log_file_bytes", "Bytes of log files on disk"),
];

/// Of a database instance, told by its driver. Counters begin anew with each recovery.
pub const INSTANCE: &[Metric] = &[
    metric(
        "borealis_instance_info",
        Kind::Gauge,
        &["volume", "instance", "server_version"],
        "One: which instance this is",
    ),
    metric(
        "borealis_instance_state",
        Kind::Gauge,
        &["state"],
        "One for the state that it is in, zero for the others",
    ),
    gauge("borealis_instance_epoch", "The epoch that it writes in; zero before the first recovery"),
    gauge(
        "borealis_instance_durable_lsn",
        "The volume durable LSN (VDL): commits up to here are acknowledged",
    ),
    gauge("borealis_instance_shipped_lsn", "The last record shipped ends here"),
    metric(
        "borealis_instance_group_complete_lsn",
        Kind::Gauge,
        &["group"],
        "A write quorum of the group has everything up to here (PGCL)",
    ),
    metric(
        "borealis_instance_membership_epoch",
        Kind::Gauge,
        &["group"],
        "The membership of the group that the writer goes by: 1 until a member was replaced",
    ),
    metric(
        "borealis_instance_segment_acknowledged_lsn",
        Kind::Gauge,
        &["group", "node"],
        "The segment has acknowledged to this writer up to here",
    ),
    metric(
        "borealis_instance_segment_connected",
        Kind::Gauge,
        &["group", "node"],
        "One while the writer is connected to the segment's node",
    ),
    metric(
        "borealis_instance_node_heard_seconds",
        Kind::Gauge,
        &["node"],
        "Since the node said anything to this writer, in seconds",
    ),
    gauge(
        "borealis_instance_certificate_expires_seconds",
        "When the instance's certificate is valid no more, in seconds since 1970; zero without TLS",
    ),
    gauge(
        "borealis_instance_last_recovery_seconds",
        "From the beginning of the last start until the server accepted connections, in seconds",
    ),
    counter(
        "borealis_instance_restarts",
        "Times that the server had to be started again since the driver began",
    ),
    counter("borealis_instance_records", "Redo records shipped, each counted once"),
    counter("borealis_instance_record_bytes", "Bytes of those records, each counted once"),
    counter("borealis_instance_batches_sent", "Batches sent, each node counted"),
    counter("borealis_instance_sent_bytes", "Bytes of those batches, each node counted"),
    counter("borealis_instance_batches_encoded", "Batches encoded; nodes share them"),
    counter("borealis_instance_acknowledgements", "Batches acknowledged, each node counted"),
    gauge("borealis_instance_retained_bytes", "Bytes of redo held in memory"),
    counter("borealis_instance_reads", "Requests of the server for pages, sizes and listings"),
    counter("borealis_instance_prefetch_hits", "Of these, answered from pages fetched ahead"),
    counter("borealis_instance_prefetches", "Hints that led to a request"),
    counter("borealis_instance_read_requests", "Read requests sent to nodes"),
    counter("borealis_instance_read_hedges", "Of these, second requests because the first was late"),
    counter("borealis_instance_read_failures", "Read requests that failed or were refused"),
    counter("borealis_instance_read_errors", "Requests of the server that ended with an error"),
    gauge("borealis_instance_cache_bytes", "Bytes of relation files in memory when they were last counted"),
    gauge("borealis_instance_cache_limit_bytes", "What they should take at most, in bytes"),
    counter("borealis_instance_cache_blocks_dropped", "Blocks dropped from memory to make room"),
];

/// Of a controller. What it sees of the fleet is shown by the one that acts alone.
pub const CONTROLLER: &[Metric] = &[
    metric("borealis_controller_info", Kind::Gauge, &["name"], "One: which controller this is"),
    gauge(
        "borealis_controller_acts",
        "One if this controller has looked and acted in its last round; zero if another has the lease, or the catalog cannot be used",
    ),
    counter("borealis_controller_rounds", "Rounds of looking and acting, and of asking who has the lease"),
    counter("borealis_controller_rounds_failed", "Of these, those in which the catalog could not be used"),
    metric("borealis_controller_steps", Kind::Counter, &["kind"], "Steps begun"),
    counter("borealis_controller_steps_failed", "Of these, those that were not made; each is decided anew"),
    gauge("borealis_controller_seen_seconds", "Since it last looked at the whole fleet, in seconds"),
    gauge("borealis_controller_nodes", "Nodes of the catalog that are not removed"),
    gauge("borealis_controller_nodes_silent", "Of these, those that did not answer when it last asked"),
    gauge("borealis_controller_nodes_broken", "Nodes that say they cannot keep their promises"),
    gauge("borealis_controller_groups", "Groups of which at least one member answered"),
    gauge("borealis_controller_groups_unseen", "Groups of which no member answered"),
    gauge("borealis_controller_groups_changing", "Groups in which a member is being replaced"),
    gauge(
        "borealis_controller_remarks",
        "Things that it waits for, or that need a person; `borealis status` has them in words",
    ),
];
