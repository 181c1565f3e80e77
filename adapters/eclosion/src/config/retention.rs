//! What the stale manager takes of the settings of retention.

use eclosion_schemas::Error;
use eclosion_stale_manager::{Limits, RetentionOptions};

use super::{Row, Setting, Settings, table};

/// What settings say of retention, each with where it was said.
///
/// # Errors
/// `precondition` for a setting without a value.
pub(crate) fn retention(settings: &Settings) -> Result<RetentionOptions, Error> {
    let of = |setting| settings.whole(setting);
    let limits = |age_ms: &'static Setting, count_max, bytes_max| -> Result<Limits, Error> {
        Ok(Limits { age_ms: of(age_ms)?, count_max: of(count_max)?, bytes_max: of(bytes_max)? })
    };
    let is_ours = |row: &&Row| row.setting.key.starts_with("retention.");
    let origins =
        settings.rows().filter(is_ours).map(|row| (row.setting.key.to_owned(), row.origin.to_string()));
    Ok(RetentionOptions {
        interval_ms: of(&table::RETENTION_INTERVAL_MS)?,
        quota_bytes: of(&table::RETENTION_QUOTA_BYTES)?,
        disk_free_min_bytes: of(&table::RETENTION_DISK_FREE_MIN_BYTES)?,
        trash_grace_ms: of(&table::RETENTION_TRASH_GRACE_MS)?,
        runs: limits(
            &table::RETENTION_RUN_AGE_MS,
            &table::RETENTION_RUN_COUNT_MAX,
            &table::RETENTION_RUN_BYTES_MAX,
        )?,
        logs: limits(
            &table::RETENTION_LOG_AGE_MS,
            &table::RETENTION_LOG_COUNT_MAX,
            &table::RETENTION_LOG_BYTES_MAX,
        )?,
        environments: limits(
            &table::RETENTION_ENVIRONMENT_AGE_MS,
            &table::RETENTION_ENVIRONMENT_COUNT_MAX,
            &table::RETENTION_ENVIRONMENT_BYTES_MAX,
        )?,
        record_age_ms: of(&table::RETENTION_RECORD_AGE_MS)?,
        record_count_max: of(&table::RETENTION_RECORD_COUNT_MAX)?,
        unnamed_ms: of(&table::RETENTION_UNNAMED_MS)?,
        leftover_ms: of(&table::RETENTION_LEFTOVER_MS)?,
        origins: origins.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Preset, TABLE};
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
