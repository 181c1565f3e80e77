//! The settings of retention, and what the stale manager takes of them.

#[cfg(feature = "workers")]
use eclosion_schemas::Error;
#[cfg(feature = "workers")]
use eclosion_stale_manager::{Limits, RetentionOptions};

#[cfg(feature = "workers")]
use super::Settings;
use super::{Kind, Preset, Setting};

const HOUR_MS: u64 = 3600 * 1000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// What a time may be set to.
const DECADE_MS: u64 = 3653 * DAY_MS;
const GIB: u64 = 1 << 30;

pub static INTERVAL_MS: Setting = Setting {
    key: "retention.interval_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_INTERVAL_MS",
    doc: "Between two passes of retention; 0: none by itself.",
};

pub static QUOTA_BYTES: Setting = Setting {
    key: "retention.quota_bytes",
    kind: Kind::Whole { min: 1, max: i64::MAX as u64 },
    default: Preset::Whole(64 * GIB),
    variable: "ECLOSION_RETENTION_QUOTA_BYTES",
    doc: "What everything that is kept may take together, trash included.",
};

pub static DISK_FREE_MIN_BYTES: Setting = Setting {
    key: "retention.disk_free_min_bytes",
    kind: Kind::Whole { min: 0, max: i64::MAX as u64 },
    default: Preset::Whole(GIB),
    variable: "ECLOSION_RETENTION_DISK_FREE_MIN_BYTES",
    doc: "With less than this free on the disk, the trash is purged early, and `status` says so.",
};

pub static TRASH_GRACE_MS: Setting = Setting {
    key: "retention.trash_grace_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(DAY_MS),
    variable: "ECLOSION_RETENTION_TRASH_GRACE_MS",
    doc: "How long what was collected can be restored.",
};

pub static RUN_AGE_MS: Setting = Setting {
    key: "retention.run_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(30 * DAY_MS),
    variable: "ECLOSION_RETENTION_RUN_AGE_MS",
    doc: "Finished runs are kept this long.",
};

pub static RUN_COUNT_MAX: Setting = Setting {
    key: "retention.run_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(10_000),
    variable: "ECLOSION_RETENTION_RUN_COUNT_MAX",
    doc: "Finished runs kept.",
};

pub static RUN_BYTES_MAX: Setting = Setting {
    key: "retention.run_bytes_max",
    kind: Kind::Whole { min: 0, max: i64::MAX as u64 },
    default: Preset::Whole(4 * GIB),
    variable: "ECLOSION_RETENTION_RUN_BYTES_MAX",
    doc: "What the rows of finished runs may take.",
};

pub static LOG_AGE_MS: Setting = Setting {
    key: "retention.log_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(14 * DAY_MS),
    variable: "ECLOSION_RETENTION_LOG_AGE_MS",
    doc: "What workers printed is kept this long.",
};

pub static LOG_COUNT_MAX: Setting = Setting {
    key: "retention.log_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(10_000),
    variable: "ECLOSION_RETENTION_LOG_COUNT_MAX",
    doc: "Workers whose output is kept.",
};

pub static LOG_BYTES_MAX: Setting = Setting {
    key: "retention.log_bytes_max",
    kind: Kind::Whole { min: 0, max: i64::MAX as u64 },
    default: Preset::Whole(GIB),
    variable: "ECLOSION_RETENTION_LOG_BYTES_MAX",
    doc: "What the output of workers may take.",
};

pub static ENVIRONMENT_AGE_MS: Setting = Setting {
    key: "retention.environment_age_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(30 * DAY_MS),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_AGE_MS",
    doc: "Environments that nobody uses are kept this long.",
};

pub static ENVIRONMENT_COUNT_MAX: Setting = Setting {
    key: "retention.environment_count_max",
    kind: Kind::Whole { min: 0, max: u32::MAX as u64 },
    default: Preset::Whole(32),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_COUNT_MAX",
    doc: "Built environments kept.",
};

pub static ENVIRONMENT_BYTES_MAX: Setting = Setting {
    key: "retention.environment_bytes_max",
    kind: Kind::Whole { min: 0, max: i64::MAX as u64 },
    default: Preset::Whole(32 * GIB),
    variable: "ECLOSION_RETENTION_ENVIRONMENT_BYTES_MAX",
    doc: "What built environments may take.",
};

pub static UNNAMED_MS: Setting = Setting {
    key: "retention.unnamed_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_UNNAMED_MS",
    doc: "Bytes that nothing names are kept this long since they were written; what was used within it is never collected.",
};

pub static LEFTOVER_MS: Setting = Setting {
    key: "retention.leftover_ms",
    kind: Kind::Whole { min: 0, max: DECADE_MS },
    default: Preset::Whole(HOUR_MS),
    variable: "ECLOSION_RETENTION_LEFTOVER_MS",
    doc: "Scratch and shared memory of dead owners are kept this long.",
};

/// What settings say of retention, each with where it was said.
///
/// # Errors
/// `precondition` for a setting without a value.
#[cfg(feature = "workers")]
pub(crate) fn retention(settings: &Settings) -> Result<RetentionOptions, Error> {
    let of = |setting| settings.whole(setting);
    let is_ours = |row: &&super::Row| row.setting.key.starts_with("retention.");
    let origins =
        settings.rows().filter(is_ours).map(|row| (row.setting.key.to_owned(), row.origin.to_string()));
    Ok(RetentionOptions {
        interval_ms: of(&INTERVAL_MS)?,
        quota_bytes: of(&QUOTA_BYTES)?,
        disk_free_min_bytes: of(&DISK_FREE_MIN_BYTES)?,
        trash_grace_ms: of(&TRASH_GRACE_MS)?,
        runs: Limits {
            age_ms: of(&RUN_AGE_MS)?,
            count_max: of(&RUN_COUNT_MAX)?,
            bytes_max: of(&RUN_BYTES_MAX)?,
        },
        logs: Limits {
            age_ms: of(&LOG_AGE_MS)?,
            count_max: of(&LOG_COUNT_MAX)?,
            bytes_max: of(&LOG_BYTES_MAX)?,
        },
        environments: Limits {
            age_ms: of(&ENVIRONMENT_AGE_MS)?,
            count_max: of(&ENVIRONMENT_COUNT_MAX)?,
            bytes_max: of(&ENVIRONMENT_BYTES_MAX)?,
        },
        unnamed_ms: of(&UNNAMED_MS)?,
        leftover_ms: of(&LEFTOVER_MS)?,
        origins: origins.collect(),
    })
}

#[cfg(all(test, feature = "workers"))]
mod tests {
    use super::super::TABLE;
    use super::*;

    #[test]
    fn defaults_of_the_table_are_those_of_the_actor() {
        let actor = RetentionOptions::default();
        let ours = TABLE.iter().filter(|setting| setting.key.starts_with("retention."));
        let ours: Vec<_> = ours.map(|setting| (setting.key, setting.default)).collect();
        let expected = actor.settings().into_iter().map(|(key, value)| (key, Preset::Whole(value)));
        assert_eq!(ours, expected.collect::<Vec<_>>());
    }
}
