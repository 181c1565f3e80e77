//! The latest ticks of each schedule: rows of the table `ticks`, each derived from one record alone.
//!
//! The key is the schedule's name, 0, and the tick's number modulo [`TICKS_KEPT`] (4 bytes, big-endian): a later tick takes
//! the place of the oldest, so that a schedule's history is bounded without anybody looking for what to remove. A tick that
//! has run for longer than so many others takes the place of a later one when it ends; while it runs it is in memory.

use eclosion_kernel::core::{Query, Reads};
use eclosion_kernel::journal::{Record, RowChange};
use eclosion_schemas::ScheduleName;
use eclosion_schemas::events::Event;
use eclosion_schemas::events::schedule::{ScheduleRemoved, TickEnded, TickFired, TickQueued, TickSkipped};
use eclosion_schemas::schedule::TickView;

const TICKS: &str = "ticks";
/// Ticks of one schedule that are kept.
pub const TICKS_KEPT: u32 = 128;

/// Derives the rows of a record: the projection of the scheduler.
pub fn project(record: &Record, rows: &mut Vec<RowChange>) {
    match &*record.kind {
        TickFired::KIND => rows.extend(record.event::<TickFired>().map(|event| row(&event.tick))),
        TickQueued::KIND => rows.extend(record.event::<TickQueued>().map(|event| row(&event.tick))),
        TickSkipped::KIND => rows.extend(record.event::<TickSkipped>().map(|event| row(&event.tick))),
        TickEnded::KIND => rows.extend(record.event::<TickEnded>().map(|event| row(&event.tick))),
        ScheduleRemoved::KIND => {
            let name = record.event::<ScheduleRemoved>().map(|event| event.name.clone());
            let all = name.into_iter().flat_map(|name| (0..TICKS_KEPT).map(move |place| key(&name, place)));
            rows.extend(all.map(|key| RowChange { table: TICKS, key, value: None }));
        }
        _ => {}
    }
}

/// Our own types always have a msgpack form; without one there would be no row, and no wrong one.
fn row(tick: &TickView) -> RowChange {
    let place = u32::try_from(tick.n % u64::from(TICKS_KEPT)).unwrap_or_default();
    RowChange { table: TICKS, key: key(&tick.schedule, place), value: rmp_serde::to_vec_named(tick).ok() }
}

fn prefix(name: &ScheduleName) -> Vec<u8> {
    format!("{name}\0").into_bytes()
}

fn key(name: &ScheduleName, place: u32) -> Vec<u8> {
    [prefix(name), place.to_be_bytes().to_vec()].concat()
}

pub(crate) fn history(name: &ScheduleName) -> Query {
    Query::Scan { table: TICKS, prefix: prefix(name), newest_first: false, limit: TICKS_KEPT }
}

pub(crate) fn found_history(reads: &Reads, name: &ScheduleName) -> Vec<TickView> {
    let rows = reads.rows(&history(name)).iter();
    rows.filter_map(|(_, value)| rmp_serde::from_slice(value).ok()).collect()
}
