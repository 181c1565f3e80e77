//! A tick's call of an operation that only the table knows: decoded, sent under the tick's key, repeated until it is
//! answered or its deadline has passed.
//!
//! A call may be received more than once, by a kernel and by the next, always under the same key; an operation that changes
//! something and honors its key does so once. Each kernel gives it the whole deadline.

use std::sync::Arc;
use std::time::Duration;

use eclosion_bus::{Address, Bus, Call, Context, Item};
use eclosion_schemas::codec::json;
use eclosion_schemas::operation::Spec;
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::{Code, Error, Role, ScheduleName};
use serde_json::Value;

const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// What is kept of a reply.
const REPLY_BYTES_MAX: usize = 4 * 1024;

pub(crate) struct Calling {
    pub(crate) name: ScheduleName,
    pub(crate) operation: String,
    pub(crate) request: Value,
    pub(crate) key: String,
    pub(crate) role: Role,
    pub(crate) deadline: Duration,
}

/// Whether a schedule may call this.
///
/// # Errors
/// What is wrong with the operation, the role or the request.
pub(crate) fn check(bus: &Bus, operation: &str, request: &Value, role: Role) -> Result<Arc<Spec>, Error> {
    let table = bus.table();
    let spec = table.get(operation).map(Arc::clone).ok_or_else(|| {
        let shown: String = operation.chars().take(64).collect();
        let error =
            Error::new(Code::Unimplemented, "operation.unknown", format!("there is no operation `{shown}`"));
        match nearest(operation, table.iter().map(|spec| &*spec.name)) {
            Some(name) => error.help(format!("did you mean {name}?")),
            None => error.help("eclosion describe"),
        }
    })?;
    if !role.permits(spec.role) {
        let message = format!("{} needs the role {:?}, and a schedule has {role:?}", spec.name, spec.role);
        return Err(Error::new(Code::Denied, "schedule.role", message.to_lowercase()));
    }
    if spec.streams {
        let message = format!("{} streams, and a schedule takes one answer", spec.name);
        return Err(Error::invalid("schedule.streams", message));
    }
    decoded(&spec, request)?;
    Ok(spec)
}

fn decoded(spec: &Spec, request: &Value) -> Result<eclosion_schemas::operation::Value, Error> {
    // Nothing said means nothing asked for.
    let request = if request.is_null() { "{}".to_owned() } else { request.to_string() };
    let bytes = json::to_msgpack(request.as_bytes())
        .map_err(|why| Error::invalid("schedule.request", format!("the request cannot be sent: {why}")))?;
    (spec.decode_request)(&bytes)
}

/// The answer, or the last refusal.
pub(crate) async fn call(bus: Bus, calling: Calling) -> Result<Value, Error> {
    let deadline = bus.clock().now() + calling.deadline;
    let mut backoff = BACKOFF;
    let mut last = Error::deadline(&calling.operation);
    let trying = async {
        loop {
            let refusal = match once(&bus, &calling, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(refusal) => refusal,
            };
            if !is_passing(refusal.code) {
                return Err(refusal);
            }
            last = refusal;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    };
    match tokio::time::timeout(calling.deadline, trying).await {
        Ok(outcome) => outcome,
        Err(_) => Err(last),
    }
}

/// What may be different the next time. An operation may come with a program that has not attached yet.
fn is_passing(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Exhausted | Code::NoResponders | Code::Unknown | Code::Unimplemented
    )
}

async fn once(bus: &Bus, calling: &Calling, deadline: std::time::Instant) -> Result<Value, Error> {
    let spec = check(bus, &calling.operation, &calling.request, calling.role)?;
    let request = decoded(&spec, &calling.request)?;
    let address = Address::new(&*spec.address)?;
    let context = Context {
        idem: Some(calling.key.clone()),
        role: calling.role,
        caller: Some(format!("schedule {}", calling.name).into()),
        ..Context::until(deadline)
    };
    let mut pending = bus.call(Call { spec: Arc::clone(&spec), address, request, context, credit: None });
    while let Some(item) = pending.next().await {
        if let Item::Reply(reply) = item {
            return shown(&(spec.encode_reply)(&*reply?)?);
        }
    }
    Err(Error::internal("schedule.call", format!("{} ended without an answer", spec.name)))
}

/// The reply as JSON, or its size where it is too large to be kept.
fn shown(reply: &[u8]) -> Result<Value, Error> {
    if reply.len() > REPLY_BYTES_MAX {
        return Ok(serde_json::json!({"not_kept_bytes": reply.len()}));
    }
    Ok(json::from_msgpack(reply)?)
}
