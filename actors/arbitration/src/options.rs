//! What there is to share, and whose share is how large.

use std::collections::BTreeMap;

use eclosion_schemas::Tenant;
use eclosion_schemas::error::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbitrationOptions {
    /// `cpu` in thousandths of a core, `memory` in bytes; anything else that can be counted.
    pub capacity: BTreeMap<String, u64>,
    /// Shares of the tenants; whoever is not named has a weight of 1.
    pub weights: BTreeMap<Tenant, u32>,
    /// Who waits this much longer is served before the next higher class.
    pub aging_ms: u64,
    /// A wish that has waited this long for something scarce gets what becomes free of it, before smaller ones.
    pub patience_ms: u64,
    /// Wishes held; above it they are refused and made again later.
    pub wishes_max: usize,
}

impl ArbitrationOptions {
    #[must_use]
    pub fn new(cpu_millis: u64, memory_bytes: u64) -> Self {
        Self {
            capacity: BTreeMap::from([("cpu".into(), cpu_millis), ("memory".into(), memory_bytes)]),
            weights: BTreeMap::new(),
            aging_ms: 30_000,
            patience_ms: 5_000,
            wishes_max: 65_536,
        }
    }

    /// # Errors
    /// `invalid` names the option and what it may be.
    pub fn validate(self) -> Result<Self, Error> {
        if self.weights.values().any(|weight| *weight == 0) {
            return Err(Error::invalid("arbitration.options", "a tenant's weight must be at least 1"));
        }
        if self.wishes_max == 0 {
            return Err(Error::invalid("arbitration.options", "arbitration.wishes_max must be at least 1"));
        }
        Ok(self)
    }

    pub(crate) fn capacity(&self, resource: &str) -> u64 {
        self.capacity.get(resource).copied().unwrap_or_default()
    }

    pub(crate) fn weight(&self, tenant: &Tenant) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(1).max(1)
    }
}
