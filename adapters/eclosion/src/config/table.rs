//! Every setting there is. `eclosion config show` prints this table with what counts now.
//!
//! A setting has one key, one variable and one sentence, its unit is part of its name, and [`crate::Options`] or
//! [`crate::Places`] uses it: a test says so of each.

use super::{Kind, Preset, Setting};
use crate::DEFAULT_INSTANCE;

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// What a timer may be set to.
const WEEK_MS: u64 = 7 * DAY_MS;
/// What a time of retention may be set to.
const DECADE_MS: u64 = 3653 * DAY_MS;
const GIB: u64 = 1 << 30;
/// The largest whole number that TOML has.
const TOML_MAX: u64 = i64::MAX as u64;
/// More processes than any machine runs well; a bound, so that a slip of the finger does not become a fork bomb.
const WORKERS: u64 = 4096;

pub(crate) const WORKERS_MIN_DEFAULT: u32 = 0;
pub(crate) const IDLE_MS_DEFAULT: u64 = 60_000;
pub(crate) const QUICK_MS_DEFAULT: u64 = 2;
pub(crate) const CANCEL_GRACE_MS_DEFAULT: u64 = 5_000;
pub(crate) const GRACE_MS_DEFAULT: u64 = 60_000;
pub(crate) const UNFINISHED_RUNS_MAX_DEFAULT: u32 = 1_024;
pub(crate) const LEASE_GRACE_MS_DEFAULT: u64 = 5_000;
pub(crate) const BUILD_TIMEOUT_MS_DEFAULT: u64 = 600_000;

pub static INSTANCE: Setting = Setting {
    key: "kernel.instance",
    kind: Kind::Name,
    default: Preset::Name(DEFAULT_INSTANCE),
    variable: "ECLOSION_INSTANCE",
    doc: "Which kernel of this user is meant.",
};

pub static LISTEN: Setting = Setting {
    key: "kernel.listen",
    kind: Kind::Path,
    default: Preset::Derived("places.runtime_dir/INSTANCE.sock"),
    variable: "ECLOSION_LISTEN",
    doc: "The socket that a kernel binds.",
};

pub static SOCKET: Setting = Setting {
    key: "client.socket",
    kind: Kind::Path,
    default: Preset::Derived("kernel.listen"),
    variable: "ECLOSION_SOCKET",
    doc: "The socket of a running kernel, to be dialed; when it is set, no command starts a kernel.",
};

pub static STATE_DIR: Setting = Setting {
    key: "places.state_dir",
    kind: Kind::Path,
    default: Preset::Derived("$XDG_STATE_HOME/eclosion"),
    variable: "ECLOSION_STATE_DIR",
    doc: "Journal, artifacts and logs, in a directory for each instance.",
};

pub static RUNTIME_DIR: Setting = Setting {
    key: "places.runtime_dir",
    kind: Kind::Path,
    default: Preset::Derived("$XDG_RUNTIME_DIR/eclosion, else /tmp/eclosion-UID"),
    variable: "ECLOSION_RUNTIME_DIR",
    doc: "The sockets; short, because a socket's path is at most 107 bytes.",
};

pub static CACHE_DIR: Setting = Setting {
    key: "places.cache_dir",
    kind: Kind::Path,
    default: Preset::Derived("$XDG_CACHE_HOME/eclosion"),
    variable: "ECLOSION_CACHE_DIR",
    doc: "Built environments and the Python runtime; all instances share it.",
};

pub static UNFINISHED_RUNS_MAX: Setting = Setting {
    key: "kernel.unfinished_runs_max",
    kind: Kind::Whole { min: 1, max: 1_000_000 },
    default: Preset::Whole(UNFINISHED_RUNS_MAX_DEFAULT as u64),
    variable: "ECLOSION_UNFINISHED_RUNS_MAX",
    doc: "Runs that have not finished; one more is refused, and told when a place is likely to be free.",
};

pub static WORKERS_MAX: Setting = Setting {
    key: "pool.workers_max",
    kind: Kind::Whole { min: 1, max: WORKERS },
    default: Preset::Derived("the cores of this machine"),
    variable: "ECLOSION_WORKERS_MAX",
    doc: "Workers at a time, of all environments together.",
};

pub static WORKERS_MIN: Setting = Setting {
    key: "pool.workers_min",
    kind: Kind::Whole { min: 0, max: WORKERS },
    default: Preset::Whole(WORKERS_MIN_DEFAULT as u64),
    variable: "ECLOSION_WORKERS_MIN",
    doc: "Workers kept, even idle, for each environment that an unfinished run uses.",
};

pub static IDLE_MS: Setting = Setting {
    key: "pool.idle_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(IDLE_MS_DEFAULT),
    variable: "ECLOSION_IDLE_MS",
    doc: "An idle worker ends after this.",
};

pub static QUICK_MS: Setting = Setting {
    key: "pool.quick_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(QUICK_MS_DEFAULT),
    variable: "ECLOSION_QUICK_MS",
    doc: "A task that took no more than this may wait at a worker behind another, for a moment.",
};

pub static RECYCLE_ATTEMPTS: Setting = Setting {
    key: "pool.recycle_attempts",
    kind: Kind::Whole { min: 0, max: 1_000_000_000 },
    default: Preset::Whole(0),
    variable: "ECLOSION_RECYCLE_ATTEMPTS",
    doc: "A worker ends once it has finished so many attempts; 0: never.",
};

pub static RECYCLE_AGE_MS: Setting = Setting {
    key: "pool.recycle_age_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(0),
    variable: "ECLOSION_RECYCLE_AGE_MS",
    doc: "A worker ends at this age, between attempts; 0: never.",
};

pub static RECYCLE_RSS_BYTES: Setting = Setting {
    key: "pool.recycle_rss_bytes",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Whole(0),
    variable: "ECLOSION_RECYCLE_RSS_BYTES",
    doc: "An idle worker that holds more memory than this ends; 0: never.",
};

pub static CANCEL_GRACE_MS: Setting = Setting {
    key: "pool.cancel_grace_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(CANCEL_GRACE_MS_DEFAULT),
    variable: "ECLOSION_CANCEL_GRACE_MS",
    doc: "How long an attempt may take to end once it was cancelled, before its worker is terminated.",
};

pub static GRACE_MS: Setting = Setting {
    key: "keeper.grace_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(GRACE_MS_DEFAULT),
    variable: "ECLOSION_GRACE_MS",
    doc: "How long workers outlive a kernel that died.",
};

pub static BUILD_TIMEOUT_MS: Setting = Setting {
    key: "environment.build_timeout_ms",
    kind: Kind::Whole { min: 1_000, max: WEEK_MS },
    default: Preset::Whole(BUILD_TIMEOUT_MS_DEFAULT),
    variable: "ECLOSION_BUILD_TIMEOUT_MS",
    doc: "For one build of an environment, waiting for another builder included.",
};

pub static CPU_MILLIS: Setting = Setting {
    key: "arbitration.cpu_millis",
    kind: Kind::Whole { min: 0, max: 1_000_000_000 },
    default: Preset::Derived("1000 for each core of this machine"),
    variable: "ECLOSION_CPU_MILLIS",
    doc: "What tasks that ask for cpu may hold together, in thousandths of a core.",
};

pub static MEMORY_BYTES: Setting = Setting {
    key: "arbitration.memory_bytes",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Derived("the memory of this machine"),
    variable: "ECLOSION_MEMORY_BYTES",
    doc: "What tasks that ask for memory may hold together.",
};

pub static LEASE_GRACE_MS: Setting = Setting {
    key: "arbitration.lease_grace_ms",
    kind: Kind::Whole { min: 0, max: WEEK_MS },
    default: Preset::Whole(LEASE_GRACE_MS_DEFAULT),
    variable: "ECLOSION_LEASE_GRACE_MS",
    doc: "How long a client that held a lease by its session may take to come back before the lease ends.",
};

pub static RATES: Setting = Setting {
    key: "rates.*",
    kind: Kind::Text,
    default: Preset::Derived("no rate is limited"),
    variable: "ECLOSION_RATES",
    doc: "How often something may be used by all tasks together, such as rates.openai = \"60/min burst 10\".",
};

pub static RESOURCES: Setting = Setting {
    key: "resources.*",
    kind: Kind::Text,
    default: Preset::Derived("cpu and memory alone are counted"),
    variable: "ECLOSION_RESOURCES",
    doc: "What tasks that ask for it may hold together, such as resources.gpu0_vram = \"8GiB\" or resources.licences = 3.",
};

pub static RETENTION_INTERVAL_MS: Setting = Setting {
    key: "retention.interval_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_INTERVAL_MS",
    doc: "Between two passes of retention; 0: none by itself.",
};

pub static RETENTION_QUOTA_BYTES: Setting = Setting {
    key: "retention.quota_bytes",
    kind: Kind::Whole { min: 1, max: TOML_MAX },
    default: Preset::Whole(64 * GIB),
    variable: "ECLOSION_RETENTION_QUOTA_BYTES",
    doc: "What everything that is kept may take together, trash included.",
};

pub static RETENTION_DISK_FREE_MIN_BYTES: Setting = Setting {
    key: "retention.disk_free_min_bytes",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Whole(GIB),
    variable: "ECLOSION_RETENTION_DISK_FREE_MIN_BYTES",
    doc: "With less than this free on the disk, the trash is purged early, and `status` says so.",
};

pub static RETENTION_TRASH_GRACE_MS: Setting = Setting {
    key: "retention.trash_grace_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(DAY_MS),
    variable: "ECLOSION_RETENTION_TRASH_GRACE_MS",
    doc: "How long what was collected can be restored.",
};

pub static RETENTION_RUN_AGE_MS: Setting = Setting {
    key: "retention.run_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(30 * DAY_MS),
    variable: "ECLOSION_RETENTION_RUN_AGE_MS",
    doc: "Finished runs are kept this long.",
};

pub static RETENTION_RUN_COUNT_MAX: Setting = Setting {
    key: "retention.run_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(10_000),
    variable: "ECLOSION_RETENTION_RUN_COUNT_MAX",
    doc: "Finished runs kept.",
};

pub static RETENTION_RUN_BYTES_MAX: Setting = Setting {
    key: "retention.run_bytes_max",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Whole(4 * GIB),
    variable: "ECLOSION_RETENTION_RUN_BYTES_MAX",
    doc: "What the rows of finished runs may take.",
};

pub static RETENTION_LOG_AGE_MS: Setting = Setting {
    key: "retention.log_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(14 * DAY_MS),
    variable: "ECLOSION_RETENTION_LOG_AGE_MS",
    doc: "What workers printed is kept this long.",
};

pub static RETENTION_LOG_COUNT_MAX: Setting = Setting {
    key: "retention.log_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(10_000),
    variable: "ECLOSION_RETENTION_LOG_COUNT_MAX",
    doc: "Workers whose output is kept.",
};

pub static RETENTION_LOG_BYTES_MAX: Setting = Setting {
    key: "retention.log_bytes_max",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Whole(GIB),
    variable: "ECLOSION_RETENTION_LOG_BYTES_MAX",
    doc: "What the output of workers may take.",
};

pub static RETENTION_ENVIRONMENT_AGE_MS: Setting = Setting {
    key: "retention.environment_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(30 * DAY_MS),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_AGE_MS",
    doc: "Environments that nobody uses are kept this long.",
};

pub static RETENTION_ENVIRONMENT_COUNT_MAX: Setting = Setting {
    key: "retention.environment_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(32),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_COUNT_MAX",
    doc: "Built environments kept.",
};

pub static RETENTION_ENVIRONMENT_BYTES_MAX: Setting = Setting {
    key: "retention.environment_bytes_max",
    kind: Kind::Whole { min: 0, max: TOML_MAX },
    default: Preset::Whole(32 * GIB),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_BYTES_MAX",
    doc: "What built environments may take.",
};

pub static RETENTION_RECORD_AGE_MS: Setting = Setting {
    key: "retention.record_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(90 * DAY_MS),
    variable: "ECLOSION_RETENTION_RECORD_AGE_MS",
    doc: "Records of deletions are kept this long; with the last one of a run goes what is known of it.",
};

pub static RETENTION_RECORD_COUNT_MAX: Setting = Setting {
    key: "retention.record_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(50_000),
    variable: "ECLOSION_RETENTION_RECORD_COUNT_MAX",
    doc: "Records of deletions kept.",
};

pub static RETENTION_UNNAMED_MS: Setting = Setting {
    key: "retention.unnamed_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_UNNAMED_MS",
    doc: "Bytes that nothing names are kept this long since they were written; what was used within it is never collected.",
};

pub static RETENTION_LEFTOVER_MS: Setting = Setting {
    key: "retention.leftover_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_LEFTOVER_MS",
    doc: "Scratch and shared memory of dead owners are kept this long.",
};

/// In the order in which they are shown.
pub static TABLE: [&Setting; 39] = [
    &INSTANCE,
    &LISTEN,
    &SOCKET,
    &STATE_DIR,
    &RUNTIME_DIR,
    &CACHE_DIR,
    &UNFINISHED_RUNS_MAX,
    &WORKERS_MAX,
    &WORKERS_MIN,
    &IDLE_MS,
    &QUICK_MS,
    &RECYCLE_ATTEMPTS,
    &RECYCLE_AGE_MS,
    &RECYCLE_RSS_BYTES,
    &CANCEL_GRACE_MS,
    &GRACE_MS,
    &BUILD_TIMEOUT_MS,
    &CPU_MILLIS,
    &MEMORY_BYTES,
    &LEASE_GRACE_MS,
    &RATES,
    &RESOURCES,
    &RETENTION_INTERVAL_MS,
    &RETENTION_QUOTA_BYTES,
    &RETENTION_DISK_FREE_MIN_BYTES,
    &RETENTION_TRASH_GRACE_MS,
    &RETENTION_RUN_AGE_MS,
    &RETENTION_RUN_COUNT_MAX,
    &RETENTION_RUN_BYTES_MAX,
    &RETENTION_LOG_AGE_MS,
    &RETENTION_LOG_COUNT_MAX,
    &RETENTION_LOG_BYTES_MAX,
    &RETENTION_ENVIRONMENT_AGE_MS,
    &RETENTION_ENVIRONMENT_COUNT_MAX,
    &RETENTION_ENVIRONMENT_BYTES_MAX,
    &RETENTION_RECORD_AGE_MS,
    &RETENTION_RECORD_COUNT_MAX,
    &RETENTION_UNNAMED_MS,
    &RETENTION_LEFTOVER_MS,
];
