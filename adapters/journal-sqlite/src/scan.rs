//! Reading events in order, and proving each against the one before it.

use std::ops::ControlFlow;

use eclosion_schemas::{EffectId, Epoch, Seq, Timestamp};
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use crate::Position;
use crate::chain::{Chain, Link};
use crate::database::base;
use crate::error::{Damage, Failure, database, is_damage};

const SELECT: &str =
    "SELECT seq, epoch, at, kind, version, cause, body, chain FROM events WHERE seq > ?1 ORDER BY seq";

/// Visits the events after `from` until `visit` breaks; each has been verified before it is shown. Gives the last one
/// that was visited.
///
/// # Errors
/// [`Failure::Damaged`] at the first event that is missing or not what was written.
pub(crate) fn walk(
    connection: &Connection,
    from: Position,
    mut visit: impl FnMut(&Link<'_>, &Chain) -> ControlFlow<()>,
) -> Result<Position, Failure> {
    let mut last = from;
    let mut scratch = Vec::with_capacity(512);
    let mut statement = connection.prepare_cached(SELECT).map_err(database("reading"))?;
    let mut rows = statement.query([from.seq.0.cast_signed()]).map_err(database("reading"))?;
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(last),
            Err(why) => return Err(unreadable(last.seq, why)),
        };
        let (link, chain) = decode(row).map_err(|why| unreadable(last.seq, why))?;
        if link.seq != last.seq.next() {
            let message = format!("record {} is missing", last.seq.next());
            return Err(Damage::corrupt(last.seq, message).into());
        }
        if link.after(&last.chain, &mut scratch) != chain {
            let message = format!("record {} is not what was written", link.seq);
            return Err(Damage::corrupt(last.seq, message).into());
        }
        last = Position { seq: link.seq, chain };
        if visit(&link, &chain).is_break() {
            return Ok(last);
        }
    }
}

fn unreadable(intact: Seq, why: rusqlite::Error) -> Failure {
    if is_damage(&why) {
        return Damage::corrupt(intact, format!("what follows cannot be read: {why}")).into();
    }
    database("reading")(why)
}

/// The whole journal against its chain and against what was synced. Gives its last record.
pub(crate) fn verify(connection: &Connection, synced: Option<Position>) -> Result<Position, Failure> {
    let base = base(connection)?;
    let mut forked = None;
    let mut compare = |seq: Seq, chain: &Chain| {
        if synced.is_some_and(|synced| synced.seq == seq && synced.chain != *chain) {
            forked = Some(seq);
        }
    };
    compare(base.seq, &base.chain);
    let last = walk(connection, base, |link, chain| {
        compare(link.seq, chain);
        ControlFlow::Continue(())
    })?;
    if let Some(seq) = forked {
        let intact = Seq(seq.0.saturating_sub(1)).max(base.seq);
        return Err(Damage::corrupt(intact, format!("record {seq} is not the one that was synced")).into());
    }
    match synced {
        Some(synced) if last.seq < synced.seq => Err(Damage::truncated(last.seq, synced.seq.0).into()),
        _ => Ok(last),
    }
}

/// Where `seq` stands in the chain; the base, if that is later.
pub(crate) fn position(connection: &Connection, seq: Seq) -> Result<Option<Position>, Failure> {
    let base = base(connection)?;
    if seq <= base.seq {
        return Ok(Some(base));
    }
    let mut statement =
        connection.prepare_cached("SELECT chain FROM events WHERE seq = ?1").map_err(database("reading"))?;
    match statement.query_row([seq.0.cast_signed()], |row| row.get(0)) {
        Ok(chain) => Ok(Some(Position { seq, chain })),
        Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
        Err(why) => Err(unreadable(Seq(seq.0 - 1), why)),
    }
}

fn decode<'r>(row: &'r Row<'_>) -> rusqlite::Result<(Link<'r>, Chain)> {
    let wrong = |column: usize, kind| rusqlite::Error::InvalidColumnType(column, "events".into(), kind);
    let text = |column| row.get_ref(column)?.as_str().map_err(|_| wrong(column, Type::Text));
    let cause = match row.get_ref(5)?.as_str_or_null().map_err(|_| wrong(5, Type::Text))? {
        Some(text) => Some(effect(text).ok_or_else(|| wrong(5, Type::Text))?),
        None => None,
    };
    let link = Link {
        seq: Seq(row.get::<_, i64>(0)?.cast_unsigned()),
        epoch: Epoch(row.get(1)?),
        at: Timestamp(row.get::<_, i64>(2)?.cast_unsigned()),
        kind: text(3)?,
        version: row.get(4)?,
        cause,
        body: row.get_ref(6)?.as_blob().map_err(|_| wrong(6, Type::Blob))?,
    };
    Ok((link, row.get(7)?))
}

/// `SEQ.N`, as effects are shown.
fn effect(text: &str) -> Option<EffectId> {
    let (seq, n) = text.split_once('.')?;
    Some(EffectId { seq: Seq(seq.parse().ok()?), n: n.parse().ok()? })
}
