//! What becomes of a damaged journal: a copy, a refusal, and, if a person says so, a new beginning from what is whole.
//!
//! A refusal changes nothing. The copy is there because any other program that opens the database (the `sqlite3`
//! command does) would carry the damaged WAL into it and delete it. [`rebuild`] writes the whole records into a fresh
//! database and derives the rows again, then swaps it in; [`finish`] repeats the swap if it was interrupted.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use eclosion_kernel::journal::{Projection, Record};
use eclosion_schemas::{Epoch, Seq};

use crate::error::{self, Damage, Failure, io};
use crate::mark::MarkFile;
use crate::{Places, Position, database, mark, pending, scan, wal, writer};

const BATCH_RECORDS: usize = 1024;

/// Says where the damage is, and copies the files beside the journal, once for each place where it ends.
pub(crate) fn refuse(places: &Places, mut damage: Damage) -> Failure {
    damage.place = Some(match wal::first_damage(&places.wal) {
        Some(at) => format!("{} is damaged at byte {at}", places.wal.display()),
        None => format!("it is in {}", places.directory.display()),
    });
    damage.copy = Some(copy(places, damage.intact).map_err(|failure| failure.to_string()));
    damage.into()
}

fn copy(places: &Places, intact: Seq) -> Result<PathBuf, Failure> {
    let target = places.directory.join(format!("damaged-{intact}"));
    if target.exists() {
        return Ok(target);
    }
    let part = target.with_extension("part");
    // A rest of a copy that was interrupted.
    let _ = fs::remove_dir_all(&part);
    fs::create_dir(&part).map_err(io("create", &part))?;
    for file in [&places.database, &places.wal, &places.mark] {
        let Some(name) = file.file_name().filter(|_| file.exists()) else { continue };
        let to = part.join(name);
        fs::copy(file, &to).map_err(io("copy", file))?;
        File::open(&to).and_then(|copy| copy.sync_all()).map_err(io("sync", &to))?;
    }
    fs::rename(&part, &target).map_err(io("rename", &part))?;
    places.sync_directory()?;
    Ok(target)
}

/// Goes on from the last whole record. The damaged files were copied before.
pub(crate) fn rebuild(places: &Places, damage: &Damage, projections: &[Projection]) -> Result<(), Failure> {
    let kept = copy(places, damage.intact)?;
    tracing::warn!(intact = %damage.intact, copy = %kept.display(), "going on without what was lost: {damage}");
    let fresh = places.directory.join("journal.db.part");
    remove(&fresh)?;
    fill(places, &fresh, damage.intact, projections)?;
    let rebuilt = rebuilt(places);
    File::open(&fresh).and_then(|file| file.sync_all()).map_err(io("sync", &fresh))?;
    fs::rename(&fresh, &rebuilt).map_err(io("rename", &fresh))?;
    places.sync_directory()?;
    finish(places)
}

fn rebuilt(places: &Places) -> PathBuf {
    places.directory.join("journal.db.rebuilt")
}

/// Swaps a rebuilt database in. As long as it has its own name nothing else of the journal counts, so each step may be
/// repeated.
pub(crate) fn finish(places: &Places) -> Result<(), Failure> {
    let rebuilt = rebuilt(places);
    if !rebuilt.exists() {
        return Ok(());
    }
    for suffix in ["-wal", "-shm"] {
        remove(&with_suffix(&places.database, suffix))?;
    }
    remove(&places.mark)?;
    let connection = database::open_rollback(&rebuilt)?;
    let (last, epoch) = (scan::verify(&connection, None)?, database::epoch(&connection)?);
    drop(connection);
    mark::write_synced(&places.mark, last, epoch)?;
    places.sync_directory()?;
    fs::rename(&rebuilt, &places.database).map_err(io("rename", &rebuilt))?;
    places.sync_directory()
}

fn fill(places: &Places, fresh: &Path, intact: Seq, projections: &[Projection]) -> Result<(), Failure> {
    let target = database::open_rollback(fresh)?;
    let mut epoch = MarkFile::read(&places.mark).ok().flatten().map_or(Epoch(0), |mark| mark.epoch);
    // If not even its first page can be read, there is nothing to take over.
    if intact > Seq(0) {
        let source = database::open_reader(&places.database)?;
        let mut from = database::base(&source)?;
        let mut to = from;
        database::set_base(&target, from)?;
        while to.seq < intact {
            let (batch, last) = page(&source, from, intact)?;
            let mut rows = Vec::new();
            for record in &batch {
                epoch = epoch.max(record.epoch);
                projections.iter().for_each(|project| project(record, &mut rows));
            }
            let rows = rows.iter().map(pending::change);
            (to, _) = writer::transact(&target, to, &batch, rows, None)?;
            from = last;
            if batch.is_empty() {
                break;
            }
        }
        epoch = epoch.max(database::epoch(&source).unwrap_or(Epoch(0)));
    }
    database::raise_epoch(&target, epoch)?;
    target.close().map_err(|(_, why)| error::database("closing")(why))
}

/// Some of the records between `from` and `intact`, and the last of them.
pub(crate) fn page(
    source: &rusqlite::Connection,
    from: Position,
    intact: Seq,
) -> Result<(Vec<Arc<Record>>, Position), Failure> {
    let mut batch = Vec::new();
    let last = scan::walk(source, from, |link, _| {
        batch.push(Arc::new(link.to_record()));
        if link.seq >= intact || batch.len() >= BATCH_RECORDS {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok((batch, last))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(io("remove", path)(why)),
        _ => Ok(()),
    }
}
