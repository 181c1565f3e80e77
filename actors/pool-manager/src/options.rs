//! How many workers there may be, how long they idle, and whose turn comes first.

use std::collections::BTreeMap;

use eclosion_schemas::Tenant;
use eclosion_schemas::error::Error;

/// How limits of memory and processes are kept: the launcher looks at each worker's tree.
pub const CONTAINMENT: &str = "sampling";
/// Or the system does as well.
pub const CONTAINMENT_BY_CGROUP: &str = "cgroup and sampling";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOptions {
    /// Workers of all environments together.
    pub workers_max: u32,
    /// Workers kept, even idle, for each environment that an unfinished run uses.
    pub workers_min: u32,
    /// An idle worker ends after this.
    pub idle_ms: u64,
    /// So many launches of one environment failing in a row make it a failed environment.
    pub launch_failures_max: u32,
    /// Between a failed launch and the next one; doubled each time.
    pub launch_backoff_ms: u64,
    /// How long a worker without a holder may stay unexplained before it is declared dead.
    pub missing_ms: u64,
    /// Who waits this much longer is served before the next higher class.
    pub aging_ms: u64,
    /// Shares of the tenants; whoever is not named has a weight of 1.
    pub weights: BTreeMap<Tenant, u32>,
    /// Wishes held; above it they are refused and sent again later.
    pub wishes_max: usize,
    /// Attempts that may wait at a worker behind the one that it computes; only such as are known to be quick.
    pub ahead_max: u32,
    /// A task that took no more than this is quick: to hand it over costs as much as to compute it.
    pub quick_ms: u64,
    /// A worker ends once it has finished so many attempts; 0: never.
    pub recycle_attempts: u64,
    /// A worker ends, between attempts, when it is as old; 0: never.
    pub recycle_age_ms: u64,
    /// An idle worker ends when its tree holds more than this; 0: never.
    pub recycle_rss_bytes: u64,
    /// How limits are kept, in the words that readers are shown.
    pub containment: String,
    pub why_no_cgroup: Option<String>,
}

impl PoolOptions {
    #[must_use]
    pub fn new(workers_max: u32) -> Self {
        Self {
            workers_max,
            workers_min: 0,
            idle_ms: 60_000,
            launch_failures_max: 3,
            launch_backoff_ms: 200,
            missing_ms: 2_000,
            aging_ms: 30_000,
            weights: BTreeMap::new(),
            wishes_max: 262_144,
            ahead_max: 4,
            quick_ms: 2,
            recycle_attempts: 0,
            recycle_age_ms: 0,
            recycle_rss_bytes: 0,
            containment: CONTAINMENT.into(),
            why_no_cgroup: None,
        }
    }

    /// # Errors
    /// `invalid` names the option and what it may be.
    pub fn validate(self) -> Result<Self, Error> {
        let invalid = |message: &str| Err(Error::invalid("pool.options", message));
        if self.workers_max == 0 {
            return invalid("pool.workers_max must be at least 1");
        }
        if self.workers_min > self.workers_max {
            return invalid("pool.workers_min must not be above pool.workers_max");
        }
        if self.launch_failures_max == 0 {
            return invalid("pool.launch_failures_max must be at least 1");
        }
        if self.weights.values().any(|weight| *weight == 0) {
            return invalid("a tenant's weight must be at least 1");
        }
        Ok(self)
    }

    pub(crate) fn weight(&self, tenant: &Tenant) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(1).max(1)
    }
}
