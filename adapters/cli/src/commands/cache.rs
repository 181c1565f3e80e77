//! `cache`: the results that are used again, and why one was not.

use eclosion_schemas::ops::cache::{
    CacheEntry, Drop, DropRequest, Explain, ExplainRequest, List, ListRequest,
};
use eclosion_schemas::{CacheKey, Error, RunId, TaskId};

use crate::arguments::cache::Cache;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

pub(super) async fn perform(globals: &Globals, cache: Cache) -> Result<u8, Error> {
    match cache {
        Cache::Ls { function, limit } => list(globals, function, limit).await,
        Cache::Explain { run, task } => explain(globals, run, task).await,
        Cache::Drop { what, all, reason } => forget(globals, what, all, reason).await,
    }
}

async fn list(globals: &Globals, function: Option<String>, limit: u32) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let list = client.call::<List>(ListRequest { function, limit }).await?;
    if globals.json {
        document("cache", &list)?;
        return Ok(exit::OK);
    }
    if list.entries.is_empty() {
        talk("nothing is kept; a task says cache = \"v1\" in its flow, or @task(cache=\"v1\")");
        return Ok(exit::OK);
    }
    print(&table(&["key", "function", "version", "output", "age"], list.entries.iter().map(row)))?;
    if list.cut > 0 {
        talk(&format!("{} more; show them: --limit {}", list.cut, list.cut + list.entries.len() as u64));
    }
    Ok(exit::OK)
}

fn row(entry: &CacheEntry) -> Vec<String> {
    vec![
        entry.key.to_string(),
        entry.ingredients.function.clone(),
        entry.ingredients.version.clone(),
        entry.from.to_string(),
        render::duration(render::now().since_ms(entry.at)),
    ]
}

async fn explain(globals: &Globals, run: RunId, task: TaskId) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let reply = client.call::<Explain>(ExplainRequest { run, task }).await?;
    if globals.json {
        document("cache-explain", &reply)?;
        return Ok(exit::OK);
    }
    reply.findings.iter().try_for_each(|finding| print(finding))?;
    Ok(exit::OK)
}

/// A function has a colon in its name, a key has none.
async fn forget(globals: &Globals, what: Option<String>, all: bool, reason: String) -> Result<u8, Error> {
    let (function, key) = match what {
        Some(what) if what.contains(':') => (Some(what), None),
        Some(what) => (None, Some(key(&what)?)),
        None => (None, None),
    };
    let client = session::attach(globals).await?;
    let reply = client.call::<Drop>(DropRequest { key, function, all, reason }).await?;
    if globals.json {
        document("cache-drop", &reply)?;
    } else {
        let results = if reply.dropped == 1 { "result" } else { "results" };
        talk(&format!("forgot {} {results}; no output was deleted", reply.dropped));
    }
    Ok(exit::OK)
}

fn key(text: &str) -> Result<CacheKey, Error> {
    CacheKey::new(text).map_err(|why| {
        Error::invalid("cache.key", why.to_string()).help("eclosion cache ls shows keys and functions")
    })
}
