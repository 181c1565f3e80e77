//! Retention: what may be deleted and why, the deletions themselves, and the trash. Served by the stale manager;
//! whatever has to look at the disk first by `/stale/passes`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::audit::Act;
use super::operation;
use crate::error::Error;
use crate::ids::{ItemId, Seq, Timestamp};
use crate::operation::Spec;

pub const ADDRESS: &str = "/stale";
/// Who looks at the disk, and follows a pass to its end.
pub const PASSES: &str = "/stale/passes";

pub(super) fn all() -> Vec<Spec> {
    vec![
        Spec::of::<Plan>(),
        Spec::of::<Apply>(),
        Spec::of::<Restore>(),
        Spec::of::<Purge>(),
        Spec::of::<Trash>(),
        Spec::of::<Log>(),
        Spec::of::<Policy>(),
    ]
}

/// What retention looks after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemKind {
    /// A segment of shared memory whose owner is dead.
    Segment,
    /// A directory of attempts that nobody runs any more.
    Scratch,
    /// A finished run: its rows, its tasks' and its artifacts' names.
    Run,
    /// What one worker printed.
    Log,
    /// Bytes by their content.
    Artifact,
    /// A built environment.
    Environment,
    /// Records of deletions themselves: one item, `record/deletions`, of those that are too many or too old.
    Record,
}

impl ItemKind {
    pub const ALL: [Self; 7] =
        [Self::Segment, Self::Scratch, Self::Run, Self::Log, Self::Artifact, Self::Environment, Self::Record];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Scratch => "scratch",
            Self::Run => "run",
            Self::Log => "log",
            Self::Artifact => "artifact",
            Self::Environment => "environment",
            Self::Record => "record",
        }
    }
}

impl fmt::Display for ItemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ItemKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            Error::invalid("gc.kind", format!("`{text}` is no kind of item")).help(format!("one of {known}"))
        })
    }
}

/// One thing that may be collected; written `KIND/ID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Item {
    pub kind: ItemKind,
    pub id: ItemId,
}

impl Item {
    #[must_use]
    pub fn new(kind: ItemKind, id: ItemId) -> Self {
        Self { kind, id }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.id)
    }
}

impl FromStr for Item {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unnamed = || {
            Error::invalid("gc.item", format!("`{text}` names no item"))
                .help("items are KIND/ID, as `eclosion gc plan` and `eclosion gc trash` show them")
        };
        let (kind, id) = text.split_once('/').ok_or_else(unnamed)?;
        Ok(Self { kind: kind.parse()?, id: id.parse().map_err(|_| unnamed())? })
    }
}

/// Why something is collected or purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Not used for longer than its kind is kept.
    Age,
    /// More of its kind than are kept.
    Count,
    /// Its kind takes more bytes than it may.
    Bytes,
    /// Everything together takes more bytes than it may, or the disk is nearly full.
    Quota,
    /// Nothing that is kept names it.
    Unnamed,
    /// Whoever it belonged to is dead.
    Leftover,
    /// Its time in the trash is over.
    Grace,
    /// Somebody asked for it.
    Asked,
}

/// What an item of a plan comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Into the trash; it can be restored.
    Trash,
    /// Out of the trash, or without it where there is nothing to bring back; its space is free.
    Purge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PassCause {
    /// It was time.
    Due,
    Asked,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanItem {
    pub item: Item,
    pub step: Step,
    pub what: String,
    pub rule: Rule,
    pub why: String,
    pub bytes: u64,
    pub last_used: Timestamp,
    /// Who holds it; then it stays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KindTotal {
    pub kind: ItemKind,
    pub count: u64,
    pub bytes: u64,
}

/// What there is, and what retention would do about it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcPlanReply")]
pub struct PlanReply {
    pub at: Timestamp,
    /// In the order in which they are done.
    pub items: Vec<PlanItem>,
    /// Rules hit them, and they stay.
    pub held: Vec<PlanItem>,
    /// Of both, beyond what is listed.
    pub cut: u64,
    pub totals: Vec<KindTotal>,
    pub trash: u64,
    pub trash_bytes: u64,
    /// Everything, trash included.
    pub used_bytes: u64,
    pub quota_bytes: u64,
    pub findings: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcPlanRequest")]
pub struct PlanRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<ItemKind>,
}

operation!(Plan {
    request: PlanRequest,
    reply: PlanReply,
    name: "gc.plan",
    address: PASSES,
    role: View,
    durability: Call,
    doc: "Shows what would be deleted now and why, and what is held by whom.",
    example: PlanRequest { only: None },
});

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcApplyRequest")]
pub struct ApplyRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<ItemKind>,
    /// Recorded with every deletion.
    #[serde(default)]
    pub reason: String,
    /// Only what a plan with these items showed; everything that is due, if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<Item>,
}

impl ApplyRequest {
    fn target(&self) -> String {
        match (self.only, self.items.as_slice()) {
            (_, [item]) => item.to_string(),
            (_, [_, _, ..]) => format!("{} items", self.items.len()),
            (Some(only), []) => format!("what is due of kind {}", only.as_str()),
            (None, []) => "all that is due".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcApplyReply")]
pub struct ApplyReply {
    pub collected: u64,
    /// Moved into the trash.
    pub trashed_bytes: u64,
    pub purged: u64,
    pub freed_bytes: u64,
    /// Could not be done; `gc log` says why.
    pub failed: u64,
    pub held: u64,
    pub findings: Vec<String>,
}

operation!(Apply {
    request: ApplyRequest,
    reply: ApplyReply,
    name: "gc.apply",
    address: PASSES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(request.target(), &request.reason)),
    doc: "Does what the plan shows: each item is recorded, then moved into the trash or purged.",
    example: ApplyRequest { only: None, reason: "the disk is needed".into(), items: Vec::new() },
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcRestoreRequest")]
pub struct RestoreRequest {
    pub item: Item,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcRestoreReply")]
pub struct RestoreReply {
    /// What came back: the item, and with a run what only it named.
    pub restored: Vec<Item>,
}

operation!(Restore {
    request: RestoreRequest,
    reply: RestoreReply,
    name: "gc.restore",
    address: PASSES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(&request.item, &request.reason)),
    doc: "Brings an item back from the trash; a run with the artifacts and logs that went with it.",
    example: RestoreRequest {
        item: Item { kind: ItemKind::Run, id: example_id() },
        reason: "still needed".into(),
    },
});

/// The name of a run is the name of an item.
fn example_id() -> ItemId {
    ItemId::new("7k2m4q9d").unwrap_or_else(|_| unreachable!("eight letters and digits"))
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcPurgeRequest")]
pub struct PurgeRequest {
    /// Everything in the trash, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Item>,
    #[serde(default)]
    pub reason: String,
}

operation!(Purge {
    request: PurgeRequest,
    reply: ApplyReply,
    name: "gc.purge",
    address: PASSES,
    role: Operate,
    durability: Power,
    mutates: true,
    act: |request| Some(Act::on(
        request.item.as_ref().map_or_else(|| "the trash".to_owned(), ToString::to_string),
        &request.reason
    )),
    doc: "Empties the trash, or takes one item out of it for good.",
    example: PurgeRequest { item: None, reason: "the disk is needed".into() },
});

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcTrashRequest")]
pub struct TrashRequest {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrashItem {
    pub item: Item,
    pub what: String,
    pub bytes: u64,
    pub rule: Rule,
    pub since: Timestamp,
    /// Purged from then on; earlier if the quota needs it.
    pub until: Timestamp,
    /// `moving`, `trashed`, `restoring` or `purging`.
    pub state: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcTrashReply")]
pub struct TrashReply {
    pub items: Vec<TrashItem>,
    pub bytes: u64,
    pub cut: u64,
}

operation!(Trash {
    request: TrashRequest,
    reply: TrashReply,
    name: "gc.trash",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists what is in the trash, and until when.",
    example: TrashRequest {},
});

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcLogRequest")]
pub struct LogRequest {
    #[serde(default = "hundred")]
    pub limit: u32,
}

fn hundred() -> u32 {
    100
}

/// What was done to one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeletionRecord {
    pub seq: Seq,
    pub at: Timestamp,
    pub item: Item,
    /// `collected`, `purged`, `restored`, `kept`, `gone` or `failed`.
    pub action: String,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    pub why: String,
    #[serde(default)]
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcLogReply")]
pub struct LogReply {
    /// Newest first.
    pub records: Vec<DeletionRecord>,
}

operation!(Log {
    request: LogRequest,
    reply: LogReply,
    name: "gc.log",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Lists the records of deletions, newest first.",
    example: LogRequest { limit: 100 },
});

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcPolicyRequest")]
pub struct PolicyRequest {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicySetting {
    pub key: String,
    pub value: u64,
    /// Where it was said, for people; empty if the kernel was not told.
    pub origin: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "GcPolicyReply")]
pub struct PolicyReply {
    pub settings: Vec<PolicySetting>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_pass: Option<Timestamp>,
    pub next_pass: Option<Timestamp>,
    pub findings: Vec<String>,
}

operation!(Policy {
    request: PolicyRequest,
    reply: PolicyReply,
    name: "gc.policy",
    address: ADDRESS,
    role: View,
    durability: Call,
    doc: "Shows the settings of retention that this kernel runs with, and when it looks next.",
    example: PolicyRequest {},
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_read_as_it_is_written_and_nothing_else_is_one() {
        for kind in ItemKind::ALL {
            let text = format!("{kind}/a-1");
            assert_eq!(text.parse::<Item>().unwrap().to_string(), text);
        }
        for (text, reason) in
            [("run", "gc.item"), ("run/", "gc.item"), ("run/../x", "gc.item"), ("ruin/x", "gc.kind")]
        {
            assert_eq!(text.parse::<Item>().unwrap_err().reason, reason, "{text}");
        }
    }
}
