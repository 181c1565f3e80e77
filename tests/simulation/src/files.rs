//! What lies on the machine's disk beside the journal: artifacts, logs, scratch, environments, segments, and the trash.
//!
//! A file's bytes and its directory's entry reach the disk apart, and only when they are synced; until then a power cut
//! keeps either, both or none. Moves into the trash and out of it are durable when they return, as the port asks. The
//! stale manager reaches all of it through its own ports, [`Shelf`] for each kind and [`Rows`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eclosion_kernel::journal::Reader;
use eclosion_schemas::events::{GcErased, Moved};
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::{Digest, Error, ItemId, Payload, RunId, Seq, Timestamp};
use eclosion_stale_manager::{Disk as Space, Found, Ports, Recorded, Records, Stock};

use crate::disk::Disk;
use crate::rng::Rng;

/// Clones share the shelves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Files(Arc<Mutex<Shelves>>);

#[derive(Debug, Default)]
struct Shelves {
    now: Timestamp,
    tokens: u64,
    things: BTreeMap<Item, Thing>,
    trash: BTreeMap<(ItemKind, String), (ItemId, Thing)>,
    /// Left out of a sync, by a mistake that is made on purpose.
    forgets: Forgets,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Forgets {
    #[default]
    Nothing,
    Bytes,
    Entries,
    /// Of what takes the name of another.
    Replaced,
}

#[derive(Debug, Clone)]
struct Thing {
    token: u64,
    bytes: u64,
    touched: Timestamp,
    named_by: Vec<RunId>,
    /// What of it survives a power cut.
    bytes_synced: bool,
    entry_synced: bool,
    torn: bool,
}

impl Files {
    pub(crate) fn forget(&self, forgets: Forgets) {
        self.lock().forgets = forgets;
    }

    /// What time it is, for whoever touches a file.
    pub(crate) fn set_now(&self, now: Timestamp) {
        self.lock().now = now;
    }

    /// A file is written under its name, over one of the same name.
    pub(crate) fn put(&self, item: Item, bytes: u64, named_by: Vec<RunId>) {
        let mut shelves = self.lock();
        shelves.tokens += 1;
        let (token, touched) = (shelves.tokens, shelves.now);
        // Of one that takes another's name, the bytes are synced first; the name is there, whichever of the two has it.
        let entry_synced = shelves.things.get(&item).is_some_and(|thing| thing.entry_synced);
        let bytes_synced = entry_synced && shelves.forgets != Forgets::Replaced;
        let thing = Thing { token, bytes, touched, named_by, bytes_synced, entry_synced, torn: false };
        shelves.things.insert(item, thing);
    }

    /// Somebody has written to it, for this run.
    pub(crate) fn touch(&self, item: &Item, run: Option<&RunId>) {
        let mut shelves = self.lock();
        let now = shelves.now;
        if let Some(thing) = shelves.things.get_mut(item) {
            thing.touched = thing.touched.max(now);
            thing.named_by.extend(run.filter(|run| !thing.named_by.contains(run)).cloned());
        }
    }

    /// The parts of a result get their names, before they are named by a record.
    pub(crate) fn seal(&self, output: &Payload) {
        for (item, bytes) in artifacts(output) {
            self.put(item, bytes, Vec::new());
        }
    }

    /// Whether it is there and whole.
    pub(crate) fn holds(&self, item: &Item) -> bool {
        self.lock().things.get(item).is_some_and(|thing| !thing.torn)
    }

    pub(crate) fn is_trashed(&self, item: &Item) -> bool {
        self.lock().trash.iter().any(|((kind, _), (id, _))| *kind == item.kind && *id == item.id)
    }

    /// Before the journal's mark is raised.
    pub(crate) fn sync(&self) {
        let mut shelves = self.lock();
        let forgets = shelves.forgets;
        // Whoever sealed a file holds it open, wherever it was moved meanwhile.
        let Shelves { things, trash, .. } = &mut *shelves;
        for thing in things.values_mut().chain(trash.values_mut().map(|(_, thing)| thing)) {
            thing.bytes_synced |= forgets != Forgets::Bytes;
            thing.entry_synced |= forgets != Forgets::Entries;
        }
    }

    /// The power fails. What the machine keeps in memory is gone, too. Gives how many files have lost their names, and how
    /// many are torn.
    pub(crate) fn cut(&self, rng: &mut Rng) -> (u64, u64) {
        let mut shelves = self.lock();
        let (mut nameless, mut torn) = (0, 0);
        shelves.things.retain(|item, thing| {
            let is_memory = item.kind == ItemKind::Segment;
            let is_kept = !is_memory && (thing.entry_synced || rng.per_mille(500));
            nameless += u64::from(!is_memory && !is_kept);
            is_kept
        });
        for thing in shelves.things.values_mut() {
            let is_torn = !thing.bytes_synced && rng.per_mille(700);
            torn += u64::from(is_torn);
            thing.torn |= is_torn;
            (thing.bytes_synced, thing.entry_synced) = (true, true);
        }
        (nameless, torn)
    }

    pub(crate) fn ports(&self, disk: &Disk, written: impl Fn() -> Seq + Send + Sync + 'static) -> Ports {
        let kinds =
            [ItemKind::Segment, ItemKind::Scratch, ItemKind::Log, ItemKind::Artifact, ItemKind::Environment];
        let stocks = kinds.map(|kind| Arc::new(Shelf { kind, files: self.clone() }) as Arc<dyn Stock>);
        Ports::new(stocks.into(), Arc::new(Rows { disk: disk.clone(), written: Box::new(written) }))
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The files that a value consists of.
pub(crate) fn artifacts(output: &Payload) -> impl Iterator<Item = (Item, u64)> {
    output.parts.iter().filter_map(|part| Some((artifact(part.digest.as_ref()?)?, part.bytes)))
}

pub(crate) fn artifact(digest: &Digest) -> Option<Item> {
    Some(Item::new(ItemKind::Artifact, ItemId::new(digest.as_str()).ok()?))
}

/// Where an environment is.
pub(crate) fn environment_path(id: &str) -> String {
    format!("/env/{id}")
}

/// The things of one kind.
#[derive(Debug)]
struct Shelf {
    kind: ItemKind,
    files: Files,
}

impl Shelf {
    fn item(&self, id: &ItemId) -> Item {
        Item::new(self.kind, id.clone())
    }
}

impl Stock for Shelf {
    fn kind(&self) -> ItemKind {
        self.kind
    }

    fn survey(&self) -> Result<Vec<Found>, Error> {
        let shelves = self.files.lock();
        let of_kind = shelves.things.iter().filter(|(item, _)| item.kind == self.kind);
        let found = of_kind.map(|(item, thing)| {
            let mut found = Found::new(item.clone(), thing.bytes, thing.touched);
            found.token = thing.token.to_string();
            found.named_by.clone_from(&thing.named_by);
            if self.kind == ItemKind::Environment {
                found.path = environment_path(item.id.as_str());
            }
            found
        });
        Ok(found.collect())
    }

    fn trash(&self, item: &ItemId, token: &str, place: &str) -> Moved {
        let mut shelves = self.files.lock();
        let place = (self.kind, place.to_owned());
        if shelves.trash.contains_key(&place) {
            return Moved::Trashed;
        }
        match shelves.things.get(&self.item(item)) {
            None => Moved::Gone,
            Some(thing) if thing.token.to_string() != token => {
                Moved::Kept { why: "it was written again".into() }
            }
            Some(thing) => {
                let thing = Thing { entry_synced: true, ..thing.clone() };
                shelves.things.remove(&self.item(item));
                shelves.trash.insert(place, (item.clone(), thing));
                Moved::Trashed
            }
        }
    }

    fn restore(&self, item: &ItemId, place: &str) -> Result<(), Error> {
        let mut shelves = self.files.lock();
        let is_there = shelves.things.contains_key(&self.item(item));
        match shelves.trash.remove(&(self.kind, place.to_owned())) {
            Some((id, thing)) if !is_there => {
                shelves.things.insert(Item::new(self.kind, id), thing);
                Ok(())
            }
            None if !is_there => Err(Error::not_found("gc.missing", format!("{item} is not in the trash"))),
            // What was written again stays.
            _ => Ok(()),
        }
    }

    fn purge(&self, place: &str) -> Result<u64, Error> {
        let gone = self.files.lock().trash.remove(&(self.kind, place.to_owned()));
        Ok(gone.map_or(0, |(_, thing)| thing.bytes))
    }
}

/// What the journal's rows say.
struct Rows {
    disk: Disk,
    written: Box<dyn Fn() -> Seq + Send + Sync>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rows")
    }
}

impl Records for Rows {
    fn written(&self) -> Seq {
        (self.written)()
    }

    fn runs(&self) -> Result<Vec<Found>, Error> {
        let finished = eclosion_dag_tracker::rows::finished(&self.disk)?;
        let found = finished.into_iter().filter_map(|(run, bytes)| {
            let item = Item::new(ItemKind::Run, ItemId::new(run.view.run.as_str()).ok()?);
            let finished = run.view.finished_at.unwrap_or(run.view.started_at);
            Some(Found { run: Some(Box::new(run)), ..Found::new(item, bytes, finished) })
        });
        Ok(found.collect())
    }

    fn names(&self) -> Result<BTreeMap<Digest, Vec<RunId>>, Error> {
        eclosion_artifact_store::rows::names(&self.disk)
    }

    fn rows(&self, run: &RunId) -> Result<Vec<GcErased>, Error> {
        let steps = eclosion_dag_tracker::rows::erasable(&self.disk, run)?;
        let artifacts = eclosion_artifact_store::rows::erasable(&self.disk, run)?;
        Ok(vec![GcErased { seqs: steps.seqs, keys: steps.keys, ..artifacts }])
    }

    fn deletions(&self) -> Result<Vec<Recorded>, Error> {
        eclosion_stale_manager::rows::deletions(&self.disk)
    }

    fn disk(&self) -> Option<Space> {
        None
    }
}

const _: fn(&Disk) = |disk| {
    // The rows are read as every reader reads them.
    let _: &dyn Reader = disk;
};
