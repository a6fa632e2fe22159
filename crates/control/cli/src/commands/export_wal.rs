//! Writes the log of a volume as PostgreSQL's own files, out of its backup.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use borealis_backup::control_file::control_file_template;
use borealis_backup::log::{LogError, for_each_record};
use borealis_instance::directory_plan::TIME_LINE;
use borealis_instance::log_files::{LogFiles, Written};
use borealis_instance::{InstanceError, OperatingSystemUser};
use borealis_redo::control_file::ControlFile;
use borealis_types::Lsn;
use borealis_wal::assemble::AssembleError;
use borealis_wal::page::WalLayout;
use borealis_wal::volume_log::VolumeLog;
use clap::Args;

use super::backup_place::{Place, PlaceArguments};

#[derive(Debug, Args)]
pub struct WalArguments {
    /// A folder that is not there yet, or empty.
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Begin with the record that begins at or after a position. [default: the oldest of which all log up to the newest point is there]
    #[arg(long, value_name = "LSN")]
    since: Option<Lsn>,
    /// System user that is to own it, when root exports. [default: postgres]
    #[arg(long, value_name = "NAME")]
    pg_user: Option<String>,
    /// Which backup.
    #[command(flatten)]
    place: PlaceArguments,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the backup's records make no log that PostgreSQL reads: {0}")]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Write(#[from] InstanceError),
}

pub fn export(dir: &Path, arguments: &WalArguments) -> anyhow::Result<ExitCode> {
    let place = Place::open(dir, &arguments.place)?;
    let contents = place.read()?;
    let user = OperatingSystemUser::choose(arguments.pg_user.as_deref())?;
    let Some(range) = contents.restorable().ranges().last().copied() else {
        bail!("nothing can be restored from {}, and its log has no beginning", place.location);
    };
    let (from, through) = (arguments.since.unwrap_or(range.from), range.through);
    if from >= through {
        bail!("the backup has nothing after {from}: its newest point is {through}");
    }
    let template = control_file_template(&*place.store, &contents, &place.sealing)?;
    let template =
        template.context("the volume has no database yet: its first start did not get to an end")?;
    let control_file = ControlFile::decode(&template).context("the volume's control file template")?;
    let layout = WalLayout {
        version: contents.facts.version,
        timeline: TIME_LINE,
        system_identifier: control_file.system_identifier,
        segment_bytes: control_file.wal_segment_bytes,
    };
    let mut files = LogFiles::begin(&arguments.to, &user, layout)?;
    let mut log = VolumeLog::new(layout, contents.known.history.clone());
    let mut first = None;
    let end = for_each_record(&*place.store, &contents, &place.sealing, from, through, |epoch, record| {
        first.get_or_insert(record.span.start);
        log.append::<Failed>(epoch, record.span, record.form.part, record.bytes, |position, page| {
            Ok(files.write_page(position, page)?)
        })
    })?;
    let exchanged = log.exchanged();
    log.finish(|position, page| files.write_page(position, page))?;
    let Written { whole, partial } = files.finish()?;
    println!(
        "{}: {whole} whole files and {partial} partial ones, with the records from {} to {end}",
        arguments.to.display(),
        first.unwrap_or(from)
    );
    let differing = exchanged.own_records + exchanged.cut_records;
    if differing > 0 {
        eprintln!(
            "{differing} records are not PostgreSQL's, of an import or cut by a recovery: in their places are records without effect (NOOP)"
        );
    }
    Ok(ExitCode::SUCCESS)
}
