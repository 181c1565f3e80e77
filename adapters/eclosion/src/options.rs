//! How a kernel with its subsystems is started: places, sizes, times.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use eclosion_arbitration::{ArbitrationOptions, Rate};
use eclosion_environments::EnvironmentOptions;
use eclosion_pool_manager::PoolOptions;
use eclosion_schemas::Error;
use eclosion_stale_manager::RetentionOptions;

use crate::config::{self, Settings, machine};
use crate::places::Places;

/// How a kernel is started.
#[derive(Debug, Clone)]
pub struct Options {
    pub places: Places,
    /// Workers at a time. Default: the cores of this machine.
    pub workers_max: u32,
    /// Workers kept, even idle, for each environment that an unfinished run uses.
    pub workers_min: u32,
    /// An idle worker ends after this.
    pub idle_ms: u64,
    /// A task that took no more than this may wait at a worker behind another.
    pub quick_ms: u64,
    /// When workers end between attempts: after so many, at an age, idle with more memory than this; 0: never.
    pub recycle_attempts: u64,
    pub recycle_age_ms: u64,
    pub recycle_rss_bytes: u64,
    /// What tasks that ask for it may hold together.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    /// Runs that have not finished; one more is refused, and told when to come again.
    pub unfinished_runs_max: u32,
    /// How long a client that held a lease by its session may take to come back.
    pub lease_grace_ms: u64,
    /// How often something may be used by all tasks together.
    pub rates: BTreeMap<String, Rate>,
    /// What else tasks may hold together, by name: bytes, or anything that is counted.
    pub resources: BTreeMap<String, u64>,
    /// How long workers outlive a kernel that died.
    pub grace_ms: u64,
    /// How long an attempt may take to end once it was cancelled, before its worker is terminated.
    pub cancel_grace_ms: u64,
    /// Workers are held to their limits by cgroups, where there are some for us. This process moves itself into a leaf of
    /// its own cgroup for that, so who embeds a kernel has to say so.
    pub cgroups: bool,
    /// For one build of an environment, waiting for another builder included.
    pub build_timeout_ms: u64,
    /// What is kept, and for how long.
    pub retention: RetentionOptions,
    /// The binary `eclosion`, which serves in the role `keeper`. Default: the one that is found on `PATH`. Without one
    /// there are no workers.
    pub keeper_binary: Option<PathBuf>,
    /// Go on from the last whole record of a damaged journal.
    pub accept_loss: bool,
}

impl Options {
    /// This machine's size, and the stated defaults.
    #[must_use]
    pub fn new(places: Places) -> Self {
        let cores = machine::cores();
        Self {
            places,
            workers_max: cores,
            workers_min: config::WORKERS_MIN_DEFAULT,
            idle_ms: config::IDLE_MS_DEFAULT,
            quick_ms: config::QUICK_MS_DEFAULT,
            recycle_attempts: 0,
            recycle_age_ms: 0,
            recycle_rss_bytes: 0,
            cpu_millis: u64::from(cores) * 1000,
            memory_bytes: machine::memory_bytes(),
            lease_grace_ms: config::LEASE_GRACE_MS_DEFAULT,
            unfinished_runs_max: config::UNFINISHED_RUNS_MAX_DEFAULT,
            rates: BTreeMap::new(),
            resources: BTreeMap::new(),
            grace_ms: config::GRACE_MS_DEFAULT,
            cancel_grace_ms: config::CANCEL_GRACE_MS_DEFAULT,
            cgroups: false,
            build_timeout_ms: config::BUILD_TIMEOUT_MS_DEFAULT,
            retention: RetentionOptions::default(),
            keeper_binary: None,
            accept_loss: false,
        }
    }

    /// What settings say, and nothing else: neither a file nor the environment is read.
    ///
    /// # Errors
    /// `precondition` for a setting without a value, `invalid` for a rate or a resource that is none.
    pub fn configured(settings: &Settings) -> Result<Self, Error> {
        let places = Places::configured(settings)?;
        // The table's ranges end far below.
        let count = |setting| settings.whole(setting).map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let (workers_min, workers_max) = (count(&config::WORKERS_MIN)?, count(&config::WORKERS_MAX)?);
        Ok(Self {
            places,
            workers_max,
            workers_min,
            idle_ms: settings.whole(&config::IDLE_MS)?,
            quick_ms: settings.whole(&config::QUICK_MS)?,
            recycle_attempts: settings.whole(&config::RECYCLE_ATTEMPTS)?,
            recycle_age_ms: settings.whole(&config::RECYCLE_AGE_MS)?,
            recycle_rss_bytes: settings.whole(&config::RECYCLE_RSS_BYTES)?,
            cpu_millis: settings.whole(&config::CPU_MILLIS)?,
            memory_bytes: settings.whole(&config::MEMORY_BYTES)?,
            lease_grace_ms: settings.whole(&config::LEASE_GRACE_MS)?,
            unfinished_runs_max: count(&config::UNFINISHED_RUNS_MAX)?,
            rates: config::rates(settings)?,
            resources: config::resources(settings)?,
            grace_ms: settings.whole(&config::GRACE_MS)?,
            cancel_grace_ms: settings.whole(&config::CANCEL_GRACE_MS)?,
            // Whoever is the whole process may say otherwise.
            cgroups: false,
            build_timeout_ms: settings.whole(&config::BUILD_TIMEOUT_MS)?,
            retention: config::retention(settings)?,
            keeper_binary: None,
            accept_loss: false,
        })
    }

    pub(crate) fn pool(&self) -> PoolOptions {
        PoolOptions {
            workers_min: self.workers_min,
            idle_ms: self.idle_ms,
            quick_ms: self.quick_ms,
            recycle_attempts: self.recycle_attempts,
            recycle_age_ms: self.recycle_age_ms,
            recycle_rss_bytes: self.recycle_rss_bytes,
            ..PoolOptions::new(self.workers_max)
        }
    }

    pub(crate) fn arbitration(&self) -> ArbitrationOptions {
        let mut options = ArbitrationOptions::new(self.cpu_millis, self.memory_bytes);
        options.capacity.extend(self.resources.clone());
        let lease_grace_ms = self.lease_grace_ms;
        ArbitrationOptions { rates: self.rates.clone(), lease_grace_ms, ..options }
    }

    pub(crate) fn environments(&self) -> EnvironmentOptions {
        let build_timeout = Duration::from_millis(self.build_timeout_ms);
        EnvironmentOptions { build_timeout, ..EnvironmentOptions::new(&self.places.cache) }
    }
}
