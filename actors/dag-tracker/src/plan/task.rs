//! One task's own checks: its name, function, arguments, fan-out, retries, time-out and resources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use eclosion_schemas::flow::{Backoff, FlowSpec, TaskSpec};
use eclosion_schemas::ops::arbitration::{LOCK_WHOLE, Scarce, never};
use eclosion_schemas::ops::task::Limits;
use eclosion_schemas::{Code, Error};
use serde_json::Value;

use super::template::{self, Reference, Scope, Template};
use super::{Each, Source, Task, units};

const NAME_BYTES_MAX: usize = 64;
/// What exempts a task from its flow's `cache`.
const CACHE_OFF: &str = "off";
/// More than this is a loop.
const RETRIES_MAX: u32 = 100;
/// Cores, bytes, slots: nobody has more, and sums of them stay far from overflow.
const AMOUNT_MAX: u64 = 1 << 50;
/// Resources, locks and rates of one task.
const SCARCE_MAX: usize = 64;
/// The longest name of one; a setting has no longer ones.
const SCARCE_BYTES_MAX: usize = 32;
/// The worker's own descriptors, and a few to import modules by.
const OPEN_FILES_MIN: u32 = 32;

/// A checked task that still names others by name.
pub(super) struct Draft {
    task: Task,
    arguments: Vec<(String, Template)>,
    each: Fan,
    after: Vec<String>,
}

/// Where a task names another.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key<'a> {
    Argument(&'a str),
    Each,
    After,
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Argument(name) => write!(f, "argument `{name}`"),
            Key::Each => f.write_str("`each`"),
            Key::After => f.write_str("`after`"),
        }
    }
}

enum Fan {
    One,
    Items(Arc<[Value]>),
    Output(String),
}

pub(super) fn draft(
    name: &str,
    spec: &TaskSpec,
    parameters: &BTreeMap<String, Value>,
    default_cache: Option<&str>,
) -> Result<Draft, Error> {
    check_name(name)?;
    check_function(name, &spec.run)?;
    let each = fan(name, spec.each.as_ref(), parameters)?;
    let scope = Scope { parameters, item: !matches!(each, Fan::One) };
    let mut arguments = Vec::with_capacity(spec.with.len());
    for (argument, value) in &spec.with {
        check_argument(name, argument)?;
        let place = format_args!("argument `{argument}` of task `{name}`");
        arguments.push((argument.clone(), template::compile(value, scope, place)?));
    }
    if let Fan::Items(items) = &each {
        try_items(name, &arguments, items)?;
    }
    if spec.retries > RETRIES_MAX {
        return Err(refuse(
            "flow.task",
            name,
            &format!("{} retries are more than {RETRIES_MAX}", spec.retries),
        )
        .help("retry a few times with a longer backoff"));
    }
    let timeout = spec
        .timeout
        .as_deref()
        .map(units::duration)
        .transpose()
        .map_err(|error| at(error, name, "timeout"))?;
    let task = Task {
        name: name.to_owned(),
        function: spec.run.clone(),
        arguments: Vec::new(),
        each: Each::One,
        needs: Vec::new(),
        dependants: Vec::new(),
        retries: spec.retries,
        backoff: checked_backoff(name, &spec.backoff)?,
        timeout_ms: timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        lease: lease(name, spec)?,
        limits: limits(name, spec)?,
        priority: spec.priority,
        cache: cache(name, spec.cache.as_deref().or(default_cache))?,
        cache_seed: spec.cache_seed.unwrap_or(true),
    };
    Ok(Draft { task, arguments, each, after: spec.after.clone() })
}

impl Draft {
    /// The tasks that it refers to, each with the key that does.
    pub(super) fn references(&self) -> impl Iterator<Item = (Key<'_>, &str)> {
        let arguments = self.arguments.iter().filter_map(|(argument, template)| match template {
            Template::Output(task) => Some((Key::Argument(argument), task.as_str())),
            _ => None,
        });
        let each = match &self.each {
            Fan::Output(task) => Some((Key::Each, task.as_str())),
            Fan::One | Fan::Items(_) => None,
        };
        let after = self.after.iter().map(|task| (Key::After, task.as_str()));
        arguments.chain(each).chain(after)
    }

    /// The same with numbers for names. Every name is known by now.
    pub(super) fn number(self, by_name: &BTreeMap<String, usize>) -> Task {
        let needs: BTreeSet<usize> =
            self.references().filter_map(|(_, task)| by_name.get(task)).copied().collect();
        let number = |name: &str| by_name.get(name).copied().unwrap_or_default();
        let arguments = self.arguments.into_iter().map(|(argument, template)| {
            let source = match template {
                Template::Fixed(payload) => Source::Fixed(payload),
                Template::Item => Source::Item,
                Template::Around(value) => Source::Around(value),
                Template::Output(task) => Source::Output(number(&task)),
            };
            (argument, source)
        });
        let arguments = arguments.collect();
        let each = match self.each {
            Fan::One => Each::One,
            Fan::Items(items) => Each::Items(items),
            Fan::Output(task) => Each::Output(number(&task)),
        };
        Task { arguments, each, needs: needs.into_iter().collect(), ..self.task }
    }
}

fn refuse(reason: &str, task: &str, why: &str) -> Error {
    Error::invalid(reason, format!("task `{task}`: {why}"))
}

fn at(mut error: Error, task: &str, key: &str) -> Error {
    error.message = format!("{key} of task `{task}`: {}", error.message);
    error
}

fn check_name(name: &str) -> Result<(), Error> {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if first && rest && name.len() <= NAME_BYTES_MAX && name != "item" {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let why = if name == "item" { "`item` means the item of a fan-out" } else { "this is not a name" };
    Err(refuse("flow.task", &shown, why).help(format!(
        "a name has at most {NAME_BYTES_MAX} of A-Z a-z 0-9 _ - and begins with a letter or _"
    )))
}

fn check_argument(task: &str, argument: &str) -> Result<(), Error> {
    if is_identifier(argument) {
        return Ok(());
    }
    Err(refuse("flow.task", task, &format!("`{argument}` is not the name of a Python argument"))
        .help("arguments are passed by keyword: letters, digits and _, not beginning with a digit"))
}

fn check_function(task: &str, run: &str) -> Result<(), Error> {
    let dotted = |text: &str| text.split('.').all(is_identifier);
    if run.split_once(':').is_some_and(|(module, name)| dotted(module) && dotted(name)) && run.len() <= 512 {
        return Ok(());
    }
    let shown: String = run.chars().take(128).collect();
    let likely = match run.rsplit_once('.') {
        Some((module, name)) if dotted(module) && is_identifier(name) => {
            format!("did you mean `{module}:{name}`?")
        }
        _ => "write run = \"module:function\", such as \"steps:load\"".into(),
    };
    Err(refuse("flow.function", task, &format!("`{shown}` does not name a function")).help(likely))
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_alphanumeric() || c == '_')
}

fn fan(task: &str, each: Option<&Value>, parameters: &BTreeMap<String, Value>) -> Result<Fan, Error> {
    let place = format_args!("`each` of task `{task}`");
    let no_list = |why: &str| {
        refuse("flow.each", task, why)
            .help("write each = [\"a\", \"b\"], each = \"${param.NAME}\" or each = \"${TASK}\"")
    };
    match each {
        None => Ok(Fan::One),
        Some(list @ Value::Array(_)) => match template::resolve(list, parameters, place)? {
            Value::Array(items) => Ok(Fan::Items(items.into())),
            _ => Err(no_list("`each` is not a list")),
        },
        Some(Value::String(text)) => match template::sole_reference(text, place)? {
            Some(Reference::Task(name)) => Ok(Fan::Output(name)),
            Some(Reference::Parameter(name)) => match template::parameter(&name, parameters, place)? {
                Value::Array(items) => Ok(Fan::Items(items.as_slice().into())),
                _ => Err(no_list(&format!("`each` goes over parameter `{name}`, which is not a list"))),
            },
            Some(Reference::Item) | None => Err(no_list("`each` is not a list")),
        },
        Some(_) => Err(no_list("`each` is not a list")),
    }
}

/// An item that cannot stand where it is to be put is refused now, not when its instance starts.
fn try_items(task: &str, arguments: &[(String, Template)], items: &[Value]) -> Result<(), Error> {
    for (argument, template) in arguments {
        if let Template::Around(value) = template {
            let place = format_args!("argument `{argument}` of task `{task}`");
            items.iter().try_for_each(|item| template::fill_item(value, item, place).map(drop))?;
        }
    }
    Ok(())
}

fn checked_backoff(task: &str, backoff: &Backoff) -> Result<Backoff, Error> {
    let year_ms = 366 * 24 * 60 * 60 * 1_000;
    if (1.0..=100.0).contains(&backoff.factor) && backoff.initial_ms <= year_ms && backoff.max_ms <= year_ms {
        return Ok(backoff.clone());
    }
    Err(refuse("flow.duration", task, "this backoff cannot be waited for")
        .help("factor is between 1 and 100, initial_ms and max_ms are at most 366 days"))
}

/// `None` for a task whose results are not kept.
fn cache(task: &str, version: Option<&str>) -> Result<Option<String>, Error> {
    let Some(version) = version.filter(|version| *version != CACHE_OFF) else { return Ok(None) };
    if !version.is_empty() && version.len() <= NAME_BYTES_MAX && !version.chars().any(char::is_control) {
        return Ok(Some(version.to_owned()));
    }
    Err(refuse("flow.cache", task, "`cache` is not a version")
        .help(format!("write cache = \"v1\", at most {NAME_BYTES_MAX} bytes, or cache = \"{CACHE_OFF}\"")))
}

/// All that an attempt holds, as arbitration's keys have it; `cpu` in cores.
fn lease(task: &str, spec: &TaskSpec) -> Result<BTreeMap<String, u64>, Error> {
    if spec.resources.len() + spec.locks.len() + spec.rates.len() > SCARCE_MAX {
        let why = format!("more than {SCARCE_MAX} resources, locks and rates");
        return Err(
            refuse("flow.size", task, &why).help("one lock can stand for what is always used together")
        );
    }
    let mut lease = BTreeMap::new();
    for (resource, value) in &spec.resources {
        check_scarce(task, "resource", resource)?;
        lease.insert(resource.clone(), amount(task, resource, value)?);
    }
    for lock in &spec.locks {
        let (name, parts) = match lock.strip_suffix(":shared") {
            Some(name) => (name, 1),
            None => (lock.as_str(), LOCK_WHOLE),
        };
        check_scarce(task, "lock", name)?;
        if lease.insert(Scarce::Lock(name).to_string(), parts).is_some() {
            return Err(refuse("flow.lock", task, &format!("lock `{name}` is named twice"))
                .help("name it once: alone, or with :shared behind it"));
        }
    }
    for (rate, tokens) in &spec.rates {
        check_scarce(task, "rate", rate)?;
        if !(1..=AMOUNT_MAX).contains(tokens) {
            return Err(refuse("flow.size", task, &format!("{tokens} is no amount of rate `{rate}`"))
                .help("write how often one attempt counts, mostly 1"));
        }
        lease.insert(Scarce::Rate(rate).to_string(), *tokens);
    }
    Ok(lease)
}

fn limits(task: &str, spec: &TaskSpec) -> Result<Option<Limits>, Error> {
    let least = |key: &str, limit: Option<u32>, least: u32| match limit {
        Some(few) if few < least => Err(refuse("flow.limit", task, &format!("{few} as `{key}` is too few"))
            .help(format!("the worker itself needs some: write at least {least}"))),
        limit => Ok(limit),
    };
    let file_bytes = spec.file_size.as_ref().map(units::size_bytes).transpose();
    let limits = Limits {
        processes: least("processes", spec.processes, 1)?,
        open_files: least("open_files", spec.open_files, OPEN_FILES_MIN)?,
        file_bytes: file_bytes.map_err(|error| at(error, task, "file_size"))?,
    };
    Ok(limits.any())
}

/// Whether every task asks for no more than there ever is. What is wrong in itself is left to [`draft`].
pub(super) fn check_ceilings(flow: &FlowSpec, ceilings: &BTreeMap<String, u64>) -> Result<(), Error> {
    for (task, spec) in &flow.tasks {
        for (key, amount) in lease(task, spec).unwrap_or_default() {
            // A flow counts cores, arbitration thousandths of one.
            let amount = if key == "cpu" { amount.saturating_mul(1_000) } else { amount };
            if let Some(mut error) = never(ceilings, &key, amount) {
                (error.code, error.reason) = (Code::Precondition, "flow.impossible".into());
                error.message = format!("task `{task}` could never start: {}", error.message);
                return Err(error);
            }
        }
    }
    Ok(())
}

fn check_scarce(task: &str, kind: &str, name: &str) -> Result<(), Error> {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if first && rest && name.len() <= SCARCE_BYTES_MAX {
        return Ok(());
    }
    let shown: String = name.chars().take(SCARCE_BYTES_MAX).collect();
    Err(refuse("flow.name", task, &format!("`{shown}` is no name of a {kind}")).help(format!(
        "a name has at most {SCARCE_BYTES_MAX} of A-Z a-z 0-9 _ - and begins with a letter or _"
    )))
}

/// A count, or a size: `3`, `"8GiB"`.
fn amount(task: &str, resource: &str, value: &Value) -> Result<u64, Error> {
    let counted = if resource == "memory" { None } else { whole(value) };
    if let Some(amount) = counted {
        return Ok(amount);
    }
    if resource != "cpu" && (resource == "memory" || value.is_string()) {
        let bytes = units::size_bytes(value).map_err(|error| at(error, task, resource))?;
        if bytes <= AMOUNT_MAX {
            return Ok(bytes);
        }
    }
    Err(refuse("flow.size", task, &format!("{value} is no amount of `{resource}`"))
        .help(format!("write a whole number between 1 and {AMOUNT_MAX}")))
}

fn whole(value: &Value) -> Option<u64> {
    let amount = value.as_u64().or_else(|| {
        // TOML and JSON writers turn 2 into 2.0 easily.
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && (1.0..=1e15).contains(float))?;
        format!("{float:.0}").parse().ok()
    })?;
    (1..=AMOUNT_MAX).contains(&amount).then_some(amount)
}
