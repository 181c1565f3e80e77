//! How much of what is kept, and for how long.

use std::collections::BTreeMap;

use eclosion_schemas::error::Error;
use eclosion_schemas::ops::gc::ItemKind;

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
const GIB: u64 = 1 << 30;

/// Of one kind. What exceeds any of the three is collected, the longest unused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub age_ms: u64,
    pub count_max: u64,
    pub bytes_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionOptions {
    /// Between two passes; 0: none by itself.
    pub interval_ms: u64,
    /// For everything together, trash included.
    pub quota_bytes: u64,
    /// Below this the disk counts as nearly full, and the trash is purged early.
    pub disk_free_min_bytes: u64,
    /// How long an item can be restored.
    pub trash_grace_ms: u64,
    pub runs: Limits,
    pub logs: Limits,
    pub environments: Limits,
    /// Records of deletions are kept this long, and at most so many of them.
    pub record_age_ms: u64,
    pub record_count_max: u64,
    /// Bytes that nothing names are kept this long since they were written: somebody may be about to name them.
    pub unnamed_ms: u64,
    /// What a dead owner left is kept this long.
    pub leftover_ms: u64,
    /// Where each of these was said, by key; for people.
    pub origins: BTreeMap<String, String>,
}

impl Default for RetentionOptions {
    fn default() -> Self {
        Self {
            interval_ms: HOUR_MS,
            quota_bytes: 64 * GIB,
            disk_free_min_bytes: GIB,
            trash_grace_ms: DAY_MS,
            runs: Limits { age_ms: 30 * DAY_MS, count_max: 10_000, bytes_max: 4 * GIB },
            logs: Limits { age_ms: 14 * DAY_MS, count_max: 10_000, bytes_max: GIB },
            environments: Limits { age_ms: 30 * DAY_MS, count_max: 32, bytes_max: 32 * GIB },
            record_age_ms: 90 * DAY_MS,
            record_count_max: 50_000,
            unnamed_ms: HOUR_MS,
            leftover_ms: HOUR_MS,
            origins: BTreeMap::new(),
        }
    }
}

impl RetentionOptions {
    /// # Errors
    /// `invalid` names the option and what it may be.
    pub fn validate(self) -> Result<Self, Error> {
        if self.quota_bytes == 0 {
            return Err(Error::invalid("retention.options", "retention.quota_bytes must be at least 1"));
        }
        Ok(self)
    }

    /// Artifacts, scratch and segments have none: they are collected when nothing names or owns them. Records have two of
    /// their own.
    #[must_use]
    pub fn limits(&self, kind: ItemKind) -> Option<Limits> {
        match kind {
            ItemKind::Run => Some(self.runs),
            ItemKind::Log => Some(self.logs),
            ItemKind::Environment => Some(self.environments),
            ItemKind::Artifact | ItemKind::Scratch | ItemKind::Segment | ItemKind::Record => None,
        }
    }

    /// What must not be taken for unused, whatever the quota: it was made or used just now.
    #[must_use]
    pub fn young_ms(&self, kind: ItemKind) -> u64 {
        match kind {
            ItemKind::Run | ItemKind::Record => 0,
            ItemKind::Log | ItemKind::Artifact | ItemKind::Environment => self.unnamed_ms,
            ItemKind::Scratch | ItemKind::Segment => self.leftover_ms,
        }
    }

    /// As the settings are called.
    #[must_use]
    pub fn settings(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("retention.interval_ms", self.interval_ms),
            ("retention.quota_bytes", self.quota_bytes),
            ("retention.disk_free_min_bytes", self.disk_free_min_bytes),
            ("retention.trash_grace_ms", self.trash_grace_ms),
            ("retention.run_age_ms", self.runs.age_ms),
            ("retention.run_count_max", self.runs.count_max),
            ("retention.run_bytes_max", self.runs.bytes_max),
            ("retention.log_age_ms", self.logs.age_ms),
            ("retention.log_count_max", self.logs.count_max),
            ("retention.log_bytes_max", self.logs.bytes_max),
            ("retention.environment_age_ms", self.environments.age_ms),
            ("retention.environment_count_max", self.environments.count_max),
            ("retention.environment_bytes_max", self.environments.bytes_max),
            ("retention.record_age_ms", self.record_age_ms),
            ("retention.record_count_max", self.record_count_max),
            ("retention.unnamed_ms", self.unnamed_ms),
            ("retention.leftover_ms", self.leftover_ms),
        ]
    }
}
