//! What the stale manager looks after in this kernel: where each kind of item lies, and which rows name what.
//!
//! Logs and scratch are below the state directory, and their trash too. Environments are in a cache that all kernels of
//! this user share: each has a trash of its own there, and one that another kernel may be building is left alone. So is
//! shared memory whose kernel is alive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use eclosion_environments::{Environments, use_file};
use eclosion_ipc::arena;
use eclosion_kernel::Kernel;
use eclosion_kernel::journal::Reader;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::events::GcErased;
use eclosion_schemas::ops::gc::{Item, ItemKind};
use eclosion_schemas::{Digest, ItemId, RunId, Seq, Timestamp, WorkerId};
use eclosion_stale_manager::{Disk, Found, Recorded, Records, RetentionOptions, StaleActor, Stock};
use eclosion_store_fs::{Directory, FileStore, ObjectStock, Shape};

use crate::output::OutputFiles;
use crate::places::Places;

/// So many of each fit into one record beside each other.
const ERASED_TOGETHER: usize = 256;

/// The actor, with everything that this kernel keeps on disk.
pub(crate) fn actor(
    options: RetentionOptions,
    places: &Places,
    files: &Arc<FileStore>,
    outputs: &OutputFiles,
    environments: &Arc<Environments>,
    kernel: Arc<OnceLock<Kernel>>,
) -> StaleActor {
    let trash = places.trash();
    let logs = Directory::new(Logs(outputs.clone()), places.logs(), trash.join("logs"));
    let scratch = Directory::new(Scratch, places.scratch(), trash.join("scratch"));
    let directory = environments.cache().join("environments");
    let built = Directory::new(Built(Arc::clone(environments)), directory, shared_trash(places));
    let stocks: Vec<Arc<dyn Stock>> = vec![
        Arc::new(ObjectStock::new(Arc::clone(files))),
        Arc::new(logs),
        Arc::new(scratch),
        Arc::new(built),
        Arc::new(Directory::new(Segments, arena::FOLDER.into(), memory_trash(places))),
    ];
    let records = Arc::new(Rows { kernel, state: places.state.clone() });
    StaleActor::new(options, stocks, records)
}

/// Apart from those of the other kernels that share the cache.
fn shared_trash(places: &Places) -> PathBuf {
    let owner = blake3::hash(places.state.as_os_str().as_encoded_bytes()).to_hex();
    places.cache.join("trash").join(owner.get(..16).unwrap_or_default())
}

/// Below the same folder, as memory is not moved to a disk.
fn memory_trash(places: &Places) -> PathBuf {
    let owner = blake3::hash(places.state.as_os_str().as_encoded_bytes()).to_hex();
    Path::new(arena::FOLDER).join(format!("ecl-trash-{}", owner.get(..16).unwrap_or_default()))
}

/// Shared memory by name that nobody owns. A kernel's own goes with its clients, and what it leaves when it is killed is
/// swept by its next life: this is of kernels that never had one. What lives is no item, so that it counts for no quota.
#[derive(Debug)]
struct Segments;

impl Shape for Segments {
    fn kind(&self) -> ItemKind {
        ItemKind::Segment
    }

    fn item_of(&self, name: &str) -> Option<String> {
        (arena::is_ours(name) && arena::claim(name).is_ok()).then(|| name.to_owned())
    }

    fn describe(&self, _: &Path, found: &mut Found) {
        found.what = "shared memory of a kernel that is gone".into();
    }

    fn claim(&self, _: &Path, item: &str) -> Result<Vec<File>, String> {
        arena::claim(item).map(|claimed| vec![claimed])
    }
}

/// What workers printed: three files each.
#[derive(Debug)]
struct Logs(OutputFiles);

const LOG_SUFFIXES: [&str; 3] = [".index", ".stdout", ".stderr"];

impl Shape for Logs {
    fn kind(&self) -> ItemKind {
        ItemKind::Log
    }

    fn item_of(&self, name: &str) -> Option<String> {
        let worker = LOG_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix))?;
        worker.parse::<WorkerId>().ok().map(String::from)
    }

    fn names_of(&self, item: &str) -> Vec<String> {
        LOG_SUFFIXES.map(|suffix| format!("{item}{suffix}")).into()
    }

    fn describe(&self, _: &Path, found: &mut Found) {
        let worker = found.item.id.as_str().parse::<WorkerId>();
        let parts = worker.ok().and_then(|worker| self.0.parts(&worker).ok()).unwrap_or_default();
        let runs: BTreeSet<RunId> = parts.into_iter().map(|part| part.run).collect();
        found.what = match runs.len() {
            0 => "what a worker printed".into(),
            1 => "what a worker printed of 1 run".into(),
            runs => format!("what a worker printed of {runs} runs"),
        };
        found.named_by = runs.into_iter().collect();
    }
}

/// Directories of attempts, by worker.
#[derive(Debug)]
struct Scratch;

impl Shape for Scratch {
    fn kind(&self) -> ItemKind {
        ItemKind::Scratch
    }

    fn item_of(&self, name: &str) -> Option<String> {
        name.parse::<WorkerId>().ok().map(String::from)
    }

    fn describe(&self, _: &Path, found: &mut Found) {
        found.what = "files of a dead worker's attempts".into();
    }
}

/// Built environments, by their content.
struct Built(Arc<Environments>);

impl std::fmt::Debug for Built {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Built")
    }
}

/// Written last.
const MARKER: &str = "eclosion.json";

impl Shape for Built {
    fn kind(&self) -> ItemKind {
        ItemKind::Environment
    }

    /// Locks lie beside them.
    fn item_of(&self, name: &str) -> Option<String> {
        let is_hash = !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then(|| name.to_owned())
    }

    fn describe(&self, directory: &Path, found: &mut Found) {
        let path = directory.join(found.item.id.as_str());
        let marker = path.join(MARKER);
        found.what = requirements(&marker).unwrap_or_else(|| "an unfinished build".into());
        if let Ok(used) = fs::metadata(use_file(&path)) {
            let ms = u64::try_from(used.mtime()).unwrap_or(0) * 1000;
            found.last_used = found.last_used.max(Timestamp(ms));
        }
        found.path = path.to_string_lossy().into_owned();
    }

    /// The core knows that this kernel does not use it.
    fn claim(&self, directory: &Path, item: &str) -> Result<Vec<File>, String> {
        let path = directory.join(item);
        self.0.let_go(&path);
        let used = exclusive(&use_file(&path)).ok_or("another kernel uses it")?;
        let built = exclusive(&directory.join(format!("{item}.lock"))).ok_or("another kernel builds it")?;
        Ok(vec![used, built])
    }
}

fn exclusive(path: &Path) -> Option<File> {
    let lock = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).ok()?;
    lock.try_lock().ok().map(|()| lock)
}

fn requirements(marker: &Path) -> Option<String> {
    let marker: serde_json::Value = serde_json::from_slice(&fs::read(marker).ok()?).ok()?;
    let named: Vec<_> = marker["requirements"].as_array()?.iter().filter_map(|text| text.as_str()).collect();
    Some(named.join(" "))
}

/// The rows of the DAG tracker and of the artifact store.
#[derive(Debug)]
struct Rows {
    /// Set once it has started.
    kernel: Arc<OnceLock<Kernel>>,
    state: PathBuf,
}

impl Rows {
    fn reader(&self) -> Result<&Arc<dyn Reader>, Error> {
        self.kernel.get().map(Kernel::reader).ok_or_else(|| {
            Error::new(Code::Unavailable, "kernel.starting", "the kernel is starting")
                .retry(eclosion_schemas::Retry::After { after_ms: 50 })
        })
    }
}

impl Records for Rows {
    fn written(&self) -> Seq {
        self.kernel.get().map_or(Seq(0), |kernel| kernel.journal().marks().written)
    }

    fn runs(&self) -> Result<Vec<Found>, Error> {
        let finished = eclosion_dag_tracker::rows::finished(&**self.reader()?)?;
        let found = finished.into_iter().filter_map(|(run, bytes)| {
            let item = Item::new(ItemKind::Run, ItemId::new(run.view.run.as_str()).ok()?);
            let finished = run.view.finished_at.unwrap_or(run.view.started_at);
            let mut found = Found::new(item, bytes, finished);
            found.what = run.view.flow.clone();
            found.run = Some(Box::new(run));
            Some(found)
        });
        Ok(found.collect())
    }

    fn names(&self) -> Result<BTreeMap<Digest, Vec<RunId>>, Error> {
        eclosion_artifact_store::rows::names(&**self.reader()?)
    }

    fn rows(&self, run: &RunId) -> Result<Vec<GcErased>, Error> {
        let reader = &**self.reader()?;
        let steps = eclosion_dag_tracker::rows::erasable(reader, run)?;
        let artifacts = eclosion_artifact_store::rows::erasable(reader, run)?;
        Ok(pieces(run, &GcErased { seqs: steps.seqs, keys: steps.keys, ..artifacts }))
    }

    fn deletions(&self) -> Result<Vec<Recorded>, Error> {
        eclosion_stale_manager::rows::deletions(&**self.reader()?)
    }

    fn disk(&self) -> Option<Disk> {
        eclosion_store_fs::free(&self.state)
    }
}

/// What is erased of one run, in records that are small enough each.
fn pieces(run: &RunId, all: &GcErased) -> Vec<GcErased> {
    let longest = [all.seqs.len(), all.keys.len(), all.tasks.len(), all.made.len(), all.digests.len()];
    let count = longest.into_iter().max().unwrap_or(0).div_ceil(ERASED_TOGETHER).max(1);
    let piece = |n: usize| GcErased {
        run: Some(run.clone()),
        seqs: part(&all.seqs, n),
        keys: part(&all.keys, n),
        tasks: part(&all.tasks, n),
        made: part(&all.made, n),
        digests: part(&all.digests, n),
        ..GcErased::default()
    };
    (0..count).map(piece).collect()
}

fn part<T: Clone>(all: &[T], n: usize) -> Vec<T> {
    all.chunks(ERASED_TOGETHER).nth(n).map(<[T]>::to_vec).unwrap_or_default()
}
