//! What readers see: the trash, and the settings that count.

use eclosion_schemas::Timestamp;
use eclosion_schemas::ops::gc::{PolicyReply, PolicySetting, TrashItem, TrashReply};

use crate::options::RetentionOptions;
use crate::state::{Phase, State};

/// Items that one list shows.
const TRASH_SHOWN_MAX: usize = 1_000;

#[must_use]
pub fn trash(options: &RetentionOptions, state: &State) -> TrashReply {
    let mut items: Vec<_> = state.kept.iter().collect();
    items.sort_by_key(|(item, kept)| (kept.since, *item));
    let bytes = items.iter().map(|(_, kept)| kept.bytes).sum();
    let cut = items.len().saturating_sub(TRASH_SHOWN_MAX) as u64;
    let shown = items.into_iter().take(TRASH_SHOWN_MAX).map(|(item, kept)| TrashItem {
        item: item.clone(),
        what: kept.what.clone(),
        bytes: kept.bytes,
        rule: kept.rule,
        since: kept.since,
        until: kept.since.plus_ms(options.trash_grace_ms),
        state: match kept.phase {
            Phase::Moving => "moving",
            Phase::Trashed => "trashed",
            Phase::Restoring => "restoring",
            Phase::Purging => "purging",
        }
        .into(),
    });
    TrashReply { items: shown.collect(), bytes, cut }
}

#[must_use]
pub fn policy(options: &RetentionOptions, state: &State, next_pass: Option<Timestamp>) -> PolicyReply {
    let setting = |(key, value): (&str, u64)| {
        let origin = options.origins.get(key).cloned().unwrap_or_default();
        PolicySetting { key: key.to_owned(), value, origin }
    };
    PolicyReply {
        settings: options.settings().into_iter().map(setting).collect(),
        last_pass: state.last_pass,
        next_pass,
        findings: state.findings.clone(),
    }
}
