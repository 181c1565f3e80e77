//! Records of deletions: the one thing that retention itself piles up. The oldest go, by age or by count, as one item;
//! they go at once, because a record that came back would say nothing that is still true.

use std::ops::Range;

use eclosion_schemas::ItemId;
use eclosion_schemas::ops::gc::{Item, ItemKind, KindTotal, PlanItem, Rule, Step};

use super::{Planned, Planning, duration};
use crate::survey::Recorded;

/// Its name is never that of anything else.
const DELETIONS: &str = "deletions";

impl Planning<'_> {
    /// Those that are still there: a survey may be older than what was erased since.
    fn kept_records(&self) -> Range<usize> {
        let records = &self.survey.records;
        records.partition_point(|record| record.seq <= self.state.forgotten)..records.len()
    }

    pub(super) fn total_of_records(&self) -> KindTotal {
        let kept = self.kept_records();
        let bytes = of(&self.survey.records, &kept).iter().map(|record| record.bytes).sum();
        KindTotal { kind: ItemKind::Record, count: kept.len() as u64, bytes }
    }

    pub(super) fn records(&mut self) {
        let kept = self.kept_records();
        let all = of(&self.survey.records, &kept);
        let age_ms = self.options.record_age_ms;
        // Not a search: a clock that was put back leaves them out of order.
        let over = all.iter().take_while(|record| self.now.since_ms(record.at) >= age_ms).count();
        let excess =
            kept.len().saturating_sub(usize::try_from(self.options.record_count_max).unwrap_or(usize::MAX));
        let count = over.max(excess);
        let (Some(last), Ok(id)) = (all.get(..count).and_then(<[_]>::last), ItemId::new(DELETIONS)) else {
            return;
        };
        let (rule, why) = if over >= excess {
            (Rule::Age, format!("older than {}", duration(age_ms)))
        } else {
            (Rule::Count, format!("more than {}, and the oldest", self.options.record_count_max))
        };
        let records = kept.start..kept.start + count;
        let shown = PlanItem {
            item: Item::new(ItemKind::Record, id),
            step: Step::Purge,
            what: format!("{count} records of deletions"),
            rule,
            why,
            bytes: of(&self.survey.records, &records).iter().map(|record| record.bytes).sum(),
            last_used: last.at,
            held_by: Vec::new(),
        };
        self.items.push(Planned { shown, found: None, of: Vec::new(), records });
    }
}

fn of<'a>(records: &'a [Recorded], range: &Range<usize>) -> &'a [Recorded] {
    records.get(range.clone()).unwrap_or_default()
}
