//! Which rule hits what, in which order, and who holds it. A pure function of the state, a survey and the time.
//!
//! Order of a plan: what leaves the trash because its time is over; then kind by kind as [`ItemKind`] lists them (runs
//! before what runs name, records of deletions last), the longest unused first, equal ones by their ids; then, if everything together is still too
//! much, the trash, oldest first, and after it what is cheapest to lose: leftovers, logs, bytes that nothing names,
//! environments, and last runs with what they alone name.
//!
//! Invariants: (1) An item stands in it at most once. (2) What somebody holds, or was used a moment ago, stands among
//! the held and never among the items. (3) The oldest that exceed a limit are hit, held or not: a held item does not push
//! out a younger one. The quota passes over the held, because it has to be met.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use eclosion_schemas::ops::gc::{Item, ItemKind, KindTotal, PlanItem, Rule, Step};
use eclosion_schemas::{RunId, Timestamp};

use crate::options::RetentionOptions;
use crate::state::{Phase, State, TRASH_ITEMS_MAX};
use crate::survey::{Found, Survey};

mod holders;
mod quota;
mod records;

use holders::holders;

/// Items that a plan lists; more are counted.
pub(crate) const SHOWN_MAX: usize = 1_000;

#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) items: Vec<Planned>,
    pub(crate) held: Vec<PlanItem>,
    pub(crate) totals: Vec<KindTotal>,
    pub(crate) used_bytes: u64,
    pub(crate) findings: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) shown: PlanItem,
    /// Its place in the survey; nothing of what leaves the trash.
    pub(crate) found: Option<usize>,
    /// The collected runs that named it.
    pub(crate) of: Vec<RunId>,
    /// Of records: which of the survey's go.
    pub(crate) records: Range<usize>,
}

/// See the head of this file.
pub(crate) fn plan(
    options: &RetentionOptions,
    state: &State,
    survey: &Survey,
    only: Option<ItemKind>,
    now: Timestamp,
) -> Plan {
    let mut planning = Planning::new(options, state, survey, only, now);
    planning.purge_what_is_over();
    for kind in ItemKind::ALL {
        planning.kind(kind);
    }
    let pressure = planning.pressure();
    planning.relieve(&pressure);
    planning.finish(&pressure)
}

/// A plan while it is made.
struct Planning<'a> {
    options: &'a RetentionOptions,
    state: &'a State,
    survey: &'a Survey,
    only: Option<ItemKind>,
    now: Timestamp,
    /// Of each kind, the indices of what was found, the longest unused first.
    by_kind: BTreeMap<ItemKind, Vec<usize>>,
    items: Vec<Planned>,
    held: Vec<PlanItem>,
    /// In the plan, one way or the other.
    seen: BTreeSet<Item>,
    /// Runs that this plan collects.
    leaving: BTreeSet<RunId>,
}

impl<'a> Planning<'a> {
    fn new(
        options: &'a RetentionOptions,
        state: &'a State,
        survey: &'a Survey,
        only: Option<ItemKind>,
        now: Timestamp,
    ) -> Self {
        let mut by_kind: BTreeMap<ItemKind, Vec<usize>> = BTreeMap::new();
        for (index, found) in survey.found.iter().enumerate() {
            // A copy of it is in the trash or on its way, or was since: it is looked at again when that is over.
            let was_moved = state.recent.has_left_after(&found.item, survey.as_of);
            if !was_moved && !state.kept.contains_key(&found.item) {
                by_kind.entry(found.item.kind).or_default().push(index);
            }
        }
        for indices in by_kind.values_mut() {
            indices.sort_by_key(|index| {
                survey.found.get(*index).map(|found| (last_used(state, found), &found.item))
            });
        }
        let (items, held, seen, leaving) = Default::default();
        Self { options, state, survey, only, now, by_kind, items, held, seen, leaving }
    }

    fn found(&self, kind: ItemKind) -> impl Iterator<Item = (usize, &'a Found)> + use<'a> {
        let survey = self.survey;
        let indices = self.by_kind.get(&kind).cloned().unwrap_or_default();
        indices.into_iter().filter_map(move |index| Some((index, survey.found.get(index)?)))
    }

    fn is_meant(&self, kind: ItemKind) -> bool {
        self.only.is_none_or(|only| only == kind)
    }

    /// Grace that is over, and more than the trash may hold.
    fn purge_what_is_over(&mut self) {
        let over = |since: Timestamp| self.now.since_ms(since) >= self.options.trash_grace_ms;
        let excess = self.state.trashed.len().saturating_sub(TRASH_ITEMS_MAX);
        let trashed = self.state.trashed.iter().enumerate();
        let due: Vec<_> = trashed
            .take_while(|(rank, (since, _))| *rank < excess || over(*since))
            .map(|(_, (since, item))| (item, if over(*since) { Rule::Grace } else { Rule::Count }))
            .collect();
        for (item, rule) in due {
            let why = match rule {
                Rule::Grace => format!("its {} in the trash are over", duration(self.options.trash_grace_ms)),
                _ => format!("the trash holds more than {TRASH_ITEMS_MAX} items"),
            };
            self.purge(item, rule, why);
        }
    }

    /// Returns the bytes that it gives back: none of what is to come back.
    fn purge(&mut self, item: &Item, rule: Rule, why: String) -> u64 {
        let Some(kept) = self.state.kept.get(item).filter(|kept| kept.phase == Phase::Trashed) else {
            return 0;
        };
        if self.state.comes_back(item) || !self.is_meant(item.kind) || !self.seen.insert(item.clone()) {
            return 0;
        }
        let shown = PlanItem {
            item: item.clone(),
            step: Step::Purge,
            what: kept.what.clone(),
            rule,
            why,
            bytes: kept.bytes,
            last_used: kept.since,
            held_by: Vec::new(),
        };
        self.items.push(Planned { shown, found: None, of: Vec::new(), records: 0..0 });
        kept.bytes
    }

    fn kind(&mut self, kind: ItemKind) {
        if !self.is_meant(kind) {
            return;
        }
        match (kind, self.options.limits(kind)) {
            (ItemKind::Artifact, _) => self.unnamed(),
            (ItemKind::Record, _) => self.records(),
            (_, None) => self.leftovers(kind),
            (_, Some(limits)) => self.limited(kind, limits),
        }
    }

    /// By age, by count, by bytes; the first that hits is named.
    fn limited(&mut self, kind: ItemKind, limits: crate::options::Limits) {
        let all: Vec<_> = self.found(kind).collect();
        let excess = (all.len() as u64).saturating_sub(limits.count_max);
        let total: u64 = all.iter().map(|(_, found)| found.bytes).sum();
        let mut left = total;
        for (rank, (index, found)) in all.into_iter().enumerate() {
            let age_ms = self.now.since_ms(last_used(self.state, found));
            let hit = if age_ms >= limits.age_ms {
                Some((
                    Rule::Age,
                    format!("not used for {}, kept for {}", duration(age_ms), duration(limits.age_ms)),
                ))
            } else if (rank as u64) < excess {
                Some((Rule::Count, format!("more than {} of its kind, and the oldest", limits.count_max)))
            } else if left > limits.bytes_max {
                let (total, max) = (bytes(total), bytes(limits.bytes_max));
                Some((Rule::Bytes, format!("{kind}s take {total} of {max}, and it is the oldest")))
            } else {
                None
            };
            left = left.saturating_sub(found.bytes);
            if let Some((rule, why)) = hit {
                self.hit(index, found, rule, why);
            }
        }
    }

    /// Bytes that no kept run names. What is named is not even shown: that is nearly everything.
    fn unnamed(&mut self) {
        for (index, found) in self.found(ItemKind::Artifact) {
            let young = self.now.since_ms(found.last_used) < self.options.unnamed_ms;
            if !young && holders(self.state, self.survey, found, &self.leaving).is_empty() {
                let why = match found.named_by.len() {
                    0 => "nothing names it".into(),
                    runs => format!("every run that named it is collected ({runs})"),
                };
                self.hit(index, found, Rule::Unnamed, why);
            }
        }
    }

    fn leftovers(&mut self, kind: ItemKind) {
        for (index, found) in self.found(kind) {
            let age_ms = self.now.since_ms(found.last_used);
            if age_ms >= self.options.leftover_ms {
                let why = format!("nobody owns it, and it was left {} ago", duration(age_ms));
                self.hit(index, found, Rule::Leftover, why);
            }
        }
    }

    /// Whether it was put into the plan; it may be held.
    fn hit(&mut self, index: usize, found: &Found, rule: Rule, why: String) -> bool {
        if !self.seen.insert(found.item.clone()) {
            return false;
        }
        let mut held_by = holders(self.state, self.survey, found, &self.leaving);
        let used = last_used(self.state, found);
        let young_ms = self.options.young_ms(found.item.kind);
        if held_by.is_empty() && self.now.since_ms(used) < young_ms {
            held_by.push(format!("used within the last {}", duration(young_ms)));
        }
        let (item, what) = (found.item.clone(), found.what.clone());
        let is_held = !held_by.is_empty();
        let (step, bytes) = (Step::Trash, found.bytes);
        let shown = PlanItem { item, step, what, rule, why, bytes, last_used: used, held_by };
        if is_held {
            self.held.push(shown);
            return false;
        }
        if found.item.kind == ItemKind::Run {
            self.leaving.extend(RunId::new(found.item.id.as_str()));
        }
        let of = found.named_by.clone();
        self.items.push(Planned { shown, found: Some(index), of, records: 0..0 });
        true
    }

    fn totals(&self) -> Vec<KindTotal> {
        let total = |kind| {
            if kind == ItemKind::Record {
                return self.total_of_records();
            }
            let bytes = self.found(kind).map(|(_, found)| found.bytes).sum();
            KindTotal { kind, count: self.found(kind).count() as u64, bytes }
        };
        ItemKind::ALL.into_iter().map(total).collect()
    }

    /// Everything there is, trash and what is on its way included.
    fn used_bytes(&self) -> u64 {
        let found: u64 = self.totals().iter().map(|total| total.bytes).sum();
        found + self.state.kept.values().map(|kept| kept.bytes).sum::<u64>()
    }
}

/// The later of what the disk and what the records say.
fn last_used(state: &State, found: &Found) -> Timestamp {
    let recorded = holders::places(state, found).map(|place| place.used).max();
    recorded.map_or(found.last_used, |recorded| recorded.max(found.last_used))
}

/// For people: `3d`, `2h`, `5m`, `7s`, `0s`.
pub(crate) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        172_800.. => format!("{}d", seconds / 86_400),
        7_200.. => format!("{}h", seconds / 3_600),
        120.. => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// For people: `512 B`, `3 KiB`, `1.5 GiB` in tenths.
pub(crate) fn bytes(count: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", count / unit, count % unit * 10 / unit),
        None => format!("{count} B"),
    }
}
