//! What follows from this machine and this user when nobody says anything.

use std::num::NonZero;
use std::path::Path;

use super::table::{CACHE_DIR, CPU_MILLIS, MEMORY_BYTES, RUNTIME_DIR, STATE_DIR, WORKERS_MAX};
use super::{Entry, Given, Origin, Setting};
use crate::places::Base;

/// How many threads this process may run at once.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, NonZero::get).try_into().unwrap_or(u32::MAX)
}

/// Of the whole machine; 0 where it cannot be read.
pub(crate) fn memory_bytes() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    system.refresh_memory();
    system.total_memory()
}

pub(super) fn defaults(base: &Base) -> Vec<Entry> {
    let directory = |setting: &Setting, path: &Path| entry(setting, Given::Typed(path.into()));
    let mut entries = vec![
        whole(&WORKERS_MAX, u64::from(cores())),
        whole(&CPU_MILLIS, u64::from(cores()) * 1000),
        whole(&MEMORY_BYTES, memory_bytes()),
        directory(&RUNTIME_DIR, &base.runtime),
    ];
    entries.extend(base.state.as_deref().map(|state| directory(&STATE_DIR, state)));
    entries.extend(base.cache.as_deref().map(|cache| directory(&CACHE_DIR, cache)));
    entries
}

/// A machine may be larger than what a setting takes.
fn whole(setting: &Setting, number: u64) -> Entry {
    let number = match setting.kind {
        super::Kind::Whole { min, max } => number.clamp(min, max),
        _ => number,
    };
    entry(setting, Given::Whole(number.into()))
}

fn entry(setting: &Setting, given: Given) -> Entry {
    Entry { key: setting.key.to_owned(), given, origin: Origin::Default }
}
