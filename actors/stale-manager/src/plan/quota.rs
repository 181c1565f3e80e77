//! When everything together is too much, or the disk nearly full: the trash first, then what is cheapest to lose.

use super::{BTreeMap, Found, Item, ItemKind, Plan, Planning, Rule, RunId, bytes, holders};

/// Holders named in a finding.
const NAMED_MAX: usize = 5;

/// What is too much, and of what.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    pub(super) used_bytes: u64,
    /// To be given back.
    pub(super) needed_bytes: u64,
    pub(super) why: String,
    /// Only the trash is taken for it: a disk that others fill is no reason to lose what is kept.
    trash_only: bool,
}

impl Planning<'_> {
    pub(super) fn pressure(&self) -> Pressure {
        let used_bytes = self.used_bytes();
        let (quota, min) = (self.options.quota_bytes, self.options.disk_free_min_bytes);
        let over = used_bytes.saturating_sub(quota);
        let lacking = self.survey.disk.map_or(0, |disk| min.saturating_sub(disk.free_bytes));
        if over > 0 {
            let why = format!("{} are used, the quota is {}", bytes(used_bytes), bytes(quota));
            return Pressure { used_bytes, needed_bytes: over.max(lacking), why, trash_only: false };
        }
        let free = self.survey.disk.map_or(0, |disk| disk.free_bytes);
        let why = match lacking {
            0 => String::new(),
            _ => format!("the disk has {} free, less than {}", bytes(free), bytes(min)),
        };
        Pressure { used_bytes, needed_bytes: lacking, why, trash_only: true }
    }

    /// What other rules move into the trash comes back with the next plan, which purges it.
    pub(super) fn relieve(&mut self, pressure: &Pressure) {
        let planned: u64 = self.items.iter().map(|planned| planned.shown.bytes).sum();
        let mut left = pressure.needed_bytes.saturating_sub(planned);
        if pressure.needed_bytes == 0 {
            return;
        }
        let trash: Vec<Item> = self.state.trashed.iter().map(|(_, item)| item.clone()).collect();
        // Also when what other rules plan is enough: that is only on its way into the trash.
        let mut now_needed = pressure.needed_bytes;
        for item in trash {
            if now_needed == 0 {
                break;
            }
            let freed = self.purge(&item, Rule::Quota, format!("{}; the trash goes first", pressure.why));
            now_needed = now_needed.saturating_sub(freed);
            left = left.saturating_sub(freed);
        }
        if pressure.trash_only {
            return;
        }
        for kind in
            [ItemKind::Segment, ItemKind::Scratch, ItemKind::Log, ItemKind::Artifact, ItemKind::Environment]
        {
            left = self.relieve_by(kind, left, pressure);
        }
        self.relieve_by_runs(left, pressure);
    }

    fn relieve_by(&mut self, kind: ItemKind, mut left: u64, pressure: &Pressure) -> u64 {
        if !self.is_meant(kind) {
            return left;
        }
        for (index, found) in self.found(kind) {
            if left == 0 {
                break;
            }
            // What runs name goes with the runs, or not at all.
            let is_named = kind == ItemKind::Artifact
                && !holders(self.state, self.survey, found, &self.leaving).is_empty();
            if !is_named && self.hit(index, found, Rule::Quota, pressure.why.clone()) {
                left = left.saturating_sub(found.bytes);
            }
        }
        left
    }

    /// The oldest run, with what it was the last to name; then the next.
    fn relieve_by_runs(&mut self, mut left: u64, pressure: &Pressure) {
        if left == 0 || !self.is_meant(ItemKind::Run) {
            return;
        }
        let mut named: BTreeMap<&RunId, Vec<(usize, &Found)>> = BTreeMap::new();
        for (index, found) in self.found(ItemKind::Artifact) {
            found.named_by.iter().for_each(|run| named.entry(run).or_default().push((index, found)));
        }
        for (index, found) in self.found(ItemKind::Run) {
            if left == 0 {
                break;
            }
            let Ok(run) = RunId::new(found.item.id.as_str()) else { continue };
            if !self.hit(index, found, Rule::Quota, pressure.why.clone()) {
                continue;
            }
            left = left.saturating_sub(found.bytes);
            if !self.is_meant(ItemKind::Artifact) {
                continue;
            }
            for (index, found) in named.get(&run).into_iter().flatten() {
                let is_free = holders(self.state, self.survey, found, &self.leaving).is_empty();
                if is_free
                    && self.hit(
                        *index,
                        found,
                        Rule::Quota,
                        format!("{}; run {run} was the last to name it", pressure.why),
                    )
                {
                    left = left.saturating_sub(found.bytes);
                }
            }
        }
    }

    pub(super) fn finish(self, pressure: &Pressure) -> Plan {
        let mut findings: Vec<String> = self
            .survey
            .unreadable
            .iter()
            .map(|what| format!("Retention could not look at {what}; nothing of it is collected."))
            .collect();
        findings.extend(self.exceeded(pressure));
        if let Some(disk) = self.survey.disk
            && disk.free_bytes < self.options.disk_free_min_bytes
        {
            findings.push(format!(
                "The disk is nearly full: {} of {} are free. See: eclosion gc plan; the trash goes at once with: eclosion gc trash --empty",
                bytes(disk.free_bytes),
                bytes(disk.total_bytes)
            ));
        }
        let (totals, used_bytes) = (self.totals(), pressure.used_bytes);
        Plan { items: self.items, held: self.held, totals, used_bytes, findings }
    }

    /// The quota is exceeded, and what is not held does not suffice.
    fn exceeded(&self, pressure: &Pressure) -> Option<String> {
        let quota = self.options.quota_bytes;
        let over = pressure.used_bytes.saturating_sub(quota);
        let going: u64 = self.items.iter().map(|planned| planned.shown.bytes).sum();
        if over == 0 || going >= over || self.only.is_some() {
            return None;
        }
        let moving: u64 = self.state.kept.values().map(|kept| kept.bytes).sum();
        if going + moving >= over {
            return None;
        }
        let mut holders: Vec<String> = self.holding_most();
        holders.truncate(NAMED_MAX);
        let who =
            if holders.is_empty() { "what was used a moment ago".to_owned() } else { holders.join("; ") };
        Some(format!(
            "The quota of {} is exceeded by {}, and what is left is held: {who}. See: eclosion gc plan; raise retention.quota_bytes, or end what holds it",
            bytes(quota),
            bytes(over - going - moving)
        ))
    }

    /// Unfinished runs by what they alone hold, then what else rules hit in vain.
    fn holding_most(&self) -> Vec<String> {
        let mut by_holder: BTreeMap<String, u64> = BTreeMap::new();
        for (_, found) in self.found(ItemKind::Artifact) {
            let unfinished = found.named_by.iter().find(|run| self.state.runs.contains_key(*run));
            if let Some(run) = unfinished {
                *by_holder.entry(format!("unfinished run {run}")).or_default() += found.bytes;
            }
        }
        for held in &self.held {
            for holder in &held.held_by {
                *by_holder.entry(holder.clone()).or_default() += held.bytes;
            }
        }
        let mut holders: Vec<_> = by_holder.into_iter().collect();
        holders.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        holders.into_iter().map(|(holder, held)| format!("{holder} ({})", bytes(held))).collect()
    }
}
