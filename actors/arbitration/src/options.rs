//! What there is to share, and whose share is how large.

use std::collections::BTreeMap;

use eclosion_schemas::Tenant;
use eclosion_schemas::error::Error;
use eclosion_schemas::ops::arbitration::{LOCK_WHOLE, Scarce};

use crate::rate::Rate;

/// The default of [`ArbitrationOptions::lease_grace_ms`].
pub const LEASE_GRACE_MS: u64 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArbitrationOptions {
    /// `cpu` in thousandths of a core, `memory` in bytes; anything else that can be counted. Locks need no mention.
    pub capacity: BTreeMap<String, u64>,
    pub rates: BTreeMap<String, Rate>,
    /// Shares of the tenants; whoever is not named has a weight of 1.
    pub weights: BTreeMap<Tenant, u32>,
    /// Who waits this much longer is served before the next higher class.
    pub aging_ms: u64,
    /// A wish that has waited this long for something scarce gets what becomes free of it, before smaller ones.
    pub patience_ms: u64,
    /// How long a client that held a lease by its session may take to come back.
    pub lease_grace_ms: u64,
    /// Wishes held; above it they are refused and made again later.
    pub wishes_max: usize,
    /// Of one tenant, so that nobody takes all the places.
    pub wishes_of_tenant_max: usize,
}

impl ArbitrationOptions {
    #[must_use]
    pub fn new(cpu_millis: u64, memory_bytes: u64) -> Self {
        Self {
            capacity: BTreeMap::from([("cpu".into(), cpu_millis), ("memory".into(), memory_bytes)]),
            rates: BTreeMap::new(),
            weights: BTreeMap::new(),
            aging_ms: 30_000,
            patience_ms: 5_000,
            lease_grace_ms: LEASE_GRACE_MS,
            wishes_max: 65_536,
            wishes_of_tenant_max: 32_768,
        }
    }

    /// # Errors
    /// `invalid` names the option and what it may be.
    pub fn validate(self) -> Result<Self, Error> {
        if self.weights.values().any(|weight| *weight == 0) {
            return Err(Error::invalid("arbitration.options", "a tenant's weight must be at least 1"));
        }
        if self.wishes_max == 0 || self.wishes_of_tenant_max == 0 {
            let text = "arbitration.wishes_max and wishes_of_tenant_max must be at least 1";
            return Err(Error::invalid("arbitration.options", text));
        }
        Ok(self)
    }

    /// The most that one wish can ever get, by the key that it asks with.
    #[must_use]
    pub fn ceilings(&self) -> BTreeMap<String, u64> {
        let rates = self.rates.iter().map(|(name, rate)| (Scarce::Rate(name).to_string(), rate.burst()));
        self.capacity.clone().into_iter().chain(rates).collect()
    }

    /// Of a lock or a resource all that there is, of a rate what may be taken at once.
    pub(crate) fn capacity(&self, key: &str) -> u64 {
        match Scarce::of(key) {
            Scarce::Lock(_) => LOCK_WHOLE,
            Scarce::Rate(name) => self.rates.get(name).map_or(0, Rate::burst),
            Scarce::Resource(name) => self.capacity.get(name).copied().unwrap_or_default(),
        }
    }

    /// The rate that a key names.
    pub(crate) fn rate(&self, key: &str) -> Option<(&str, &Rate)> {
        let Scarce::Rate(name) = Scarce::of(key) else { return None };
        self.rates.get_key_value(name).map(|(name, rate)| (name.as_str(), rate))
    }

    pub(crate) fn weight(&self, tenant: &Tenant) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(1).max(1)
    }
}
