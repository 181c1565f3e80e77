//! Content keys: what makes two steps equal, what differs where they are not, and which results are kept.
//!
//! An entry is a name: whose output has which key. The output itself stays with the artifact store, and with its
//! retention; an entry whose output was collected is no hit, says so, and is replaced by what is computed then. The
//! newest result of a key is its entry, and a hit makes its own run the newest: what is used does not grow old.
//!
//! Two steps of the same key that are in hand at the same time are both computed. Waiting for the other would bind a run
//! to the fate of one that may fail, be cancelled or be slow, to save work that is lost by chance only.
//!
//! Rows hold the entries ([`rows`]); memory holds their order alone, so that the oldest can be dropped.

pub(crate) mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;

use blake3::Hash;
use eclosion_schemas::events::{CacheNote, DroppedEntry, Ingredients, MissCause};
use eclosion_schemas::ops::cache::{CacheEntry, Found};
use eclosion_schemas::{CacheKey, Seq};

/// Entries; beyond them the oldest are dropped.
pub const ENTRIES_MAX: usize = 10_000;
/// Dropped together, so that not every step brings a record that drops one.
const DROPPED_TOGETHER: usize = 128;
/// Arguments that a miss can name; the others stand together.
const ARGUMENTS_NAMED_MAX: usize = 24;
/// A longer name is not written down; the note must leave room for the output.
const ARGUMENT_BYTES_MAX: usize = 64;
/// Of an argument's hash, in hexadecimal characters: enough to see that it changed.
const ARGUMENT_HASH_CHARS: usize = 16;
/// What stands for the arguments that are not named.
const OTHERS: &str = "…";

/// The order of the entries.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    by_seq: BTreeMap<Seq, (CacheKey, Arc<str>)>,
    by_key: BTreeMap<CacheKey, Seq>,
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.by_seq.len()
    }

    pub(crate) fn seq_of(&self, key: &CacheKey) -> Option<Seq> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn keep(&mut self, seq: Seq, note: &CacheNote) {
        if let Some(older) = self.by_key.insert(note.key.clone(), seq) {
            self.by_seq.remove(&older);
        }
        self.by_seq.insert(seq, (note.key.clone(), note.ingredients.function.as_str().into()));
    }

    pub(crate) fn drop(&mut self, entry: &DroppedEntry) {
        self.by_seq.remove(&entry.seq);
        if self.seq_of(&entry.key) == Some(entry.seq) {
            self.by_key.remove(&entry.key);
        }
    }

    /// The oldest, once there are too many.
    pub(crate) fn surplus(&self) -> Vec<DroppedEntry> {
        match self.len() > ENTRIES_MAX {
            true => self.dropped(|_, _| true).take(self.len() - ENTRIES_MAX + DROPPED_TOGETHER - 1).collect(),
            false => Vec::new(),
        }
    }

    /// Those that are meant, oldest first, as a record drops them.
    pub(crate) fn dropped<'a>(
        &'a self,
        is_meant: impl Fn(&CacheKey, &str) -> bool + 'a,
    ) -> impl Iterator<Item = DroppedEntry> + 'a {
        self.by_seq.iter().filter(move |(_, (key, function))| is_meant(key, function)).map(
            |(seq, (key, function))| DroppedEntry {
                key: key.clone(),
                function: function.as_ref().to_owned(),
                seq: *seq,
            },
        )
    }
}

/// Arguments as ingredients have them: few, short, and never all of one's content.
pub(crate) fn named(arguments: &BTreeMap<&str, Hash>) -> BTreeMap<String, String> {
    let short = |hash: &Hash| hash.to_hex()[..ARGUMENT_HASH_CHARS].to_owned();
    let mut named = BTreeMap::new();
    let mut others = blake3::Hasher::new();
    let mut has_others = false;
    for (name, hash) in arguments {
        if named.len() < ARGUMENTS_NAMED_MAX && name.len() <= ARGUMENT_BYTES_MAX {
            named.insert((*name).to_owned(), short(hash));
        } else {
            has_others = true;
            others.update(name.as_bytes()).update(hash.as_bytes());
        }
    }
    if has_others {
        named.insert(OTHERS.to_owned(), short(&others.finalize()));
    }
    named
}

/// All that keeps `had` from being the result of `wanted`.
fn differences(wanted: &Ingredients, had: &Ingredients) -> Vec<MissCause> {
    let mut causes = Vec::new();
    if wanted.version != had.version {
        causes.push(MissCause::Version { was: had.version.clone() });
    }
    if wanted.code_hash != had.code_hash {
        causes.push(MissCause::Code);
    }
    if wanted.environment != had.environment {
        causes.push(MissCause::Environment);
    }
    let names: std::collections::BTreeSet<_> = wanted.arguments.keys().chain(had.arguments.keys()).collect();
    let changed = names.into_iter().filter(|name| wanted.arguments.get(*name) != had.arguments.get(*name));
    causes.extend(changed.map(|name| MissCause::Argument { name: name.clone() }));
    if wanted.seed != had.seed {
        causes.push(MissCause::Seed);
    }
    causes
}

/// Why there is no entry: against the one with the fewest differences, of several the newest.
pub(crate) fn missed(wanted: &Ingredients, newest_first: &[CacheEntry]) -> Found {
    let compared = newest_first.iter().map(|entry| (differences(wanted, &entry.ingredients), entry));
    // The first of equals is kept, so the newest.
    match compared.min_by_key(|(causes, _)| causes.len()) {
        Some((causes, nearest)) => {
            let causes = if causes.is_empty() { vec![MissCause::NoEntry] } else { causes };
            Found { entry: None, causes, nearest: Some(nearest.from.clone()) }
        }
        None => Found { causes: vec![MissCause::NoEntry], ..Found::default() },
    }
}
