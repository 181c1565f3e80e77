//! The open table of operations.
//!
//! An operation is declared once, as a type that implements [`Operation`]; router, clients, `describe`, JSON Schemas
//! and completion follow from it. The kernel's own are in [`crate::ops`]; an application adds its own with
//! [`Spec::of`]. A name belongs to one owner: a second declaration of it is refused by [`Table::declare`].
//!
//! A program in another process declares what it serves while the kernel runs; its types are known as JSON Schemas alone
//! ([`Spec::served`]), and its values travel as the bytes that they came as ([`Opaque`]).

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::error::Error;
use crate::ops::audit::Act;
use crate::ops::service::ServedOperation;

/// Who may call.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Reads only.
    View,
    /// Starts and stops work.
    Operate,
    /// Changes the kernel itself.
    Admin,
    /// A worker, on its own attempt.
    Worker,
    /// A program that serves addresses of its own.
    Service,
}

impl Role {
    /// `Admin` may do what `Operate` may, and `Operate` what `View` may; workers and services stand apart.
    #[must_use]
    pub fn permits(self, needed: Role) -> bool {
        match (self, needed) {
            (Role::Admin, Role::View | Role::Operate | Role::Admin)
            | (Role::Operate, Role::View | Role::Operate)
            | (Role::Service, Role::View) => true,
            (mine, needed) => mine == needed,
        }
    }
}

/// What an acknowledgement means.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Not journaled.
    Call,
    /// Written: survives SIGKILL of the kernel.
    Process,
    /// Synced: survives a power cut.
    Power,
}

/// One operation. `Item` is what a stream of it carries; [`NoItem`] for a plain call.
///
/// ```
/// use eclosion_schemas::operation::{Durability, NoItem, Operation, Role};
/// #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
/// struct Greet { name: String }
/// impl Operation for Greet {
///     type Request = Greet;
///     type Reply = String;
///     type Item = NoItem;
///     const NAME: &'static str = "demo.greet";
///     const ADDRESS: &'static str = "/demo";
///     const ROLE: Role = Role::View;
///     const DURABILITY: Durability = Durability::Call;
///     const DOC: &'static str = "Says hello.";
///     fn example() -> Greet { Greet { name: "Ada".into() } }
/// }
/// ```
pub trait Operation: Send + Sync + 'static {
    type Request: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    type Item: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
    const NAME: &'static str;
    /// The address that serves it.
    const ADDRESS: &'static str;
    const ROLE: Role;
    const DURABILITY: Durability;
    /// The reply is preceded by items.
    const STREAMS: bool = false;
    /// It changes something; clients send an idempotency key with it.
    const MUTATES: bool = false;
    /// Between Rust clients and a kernel that know its types alike, bodies are bincode ([`codec::positional`]). Said by each,
    /// because what reads and writes them is then compiled twice.
    const BY_PLACE: bool = false;
    /// The api number that brought it.
    const SINCE: u32 = 1;
    const DOC: &'static str;
    /// A request that is well formed; shown by `describe` and checked by a test.
    fn example() -> Self::Request;
    /// What says of a request to what it is done and why, where clients' calls are acts of operators: such a call is in the
    /// audit record before it is handled. It never streams.
    #[must_use]
    fn act() -> Option<ActOf<Self::Request>> {
        None
    }
}

/// Says of a request to what it is done and why; nothing of one that changes nothing.
pub type ActOf<Request> = fn(&Request) -> Option<Act>;

/// The item type of an operation that does not stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub enum NoItem {}

/// A typed value on its way through the bus; encoded only when a transport needs bytes.
pub type Value = Box<dyn Any + Send>;

type Decode = Arc<dyn Fn(&[u8]) -> Result<Value, Error> + Send + Sync>;
/// A typed value in, bytes out.
pub type Encode = fn(&(dyn Any + Send)) -> Result<Vec<u8>, Error>;
type Schema = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;
type ReadAct = Arc<dyn Fn(&(dyn Any + Send)) -> Option<Act> + Send + Sync>;

/// A request, an item or a reply whose type only the service and its callers know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opaque {
    pub operation: Arc<str>,
    /// msgpack, scanned for depth and size.
    pub body: bytes::Bytes,
}

/// An operation as data: what the router, `describe` and a transport need without knowing its types.
#[derive(Clone)]
pub struct Spec {
    pub name: Cow<'static, str>,
    pub address: Cow<'static, str>,
    pub role: Role,
    pub durability: Durability,
    pub streams: bool,
    pub mutates: bool,
    pub since: u32,
    pub doc: Cow<'static, str>,
    /// The client that serves it; nobody, if it is served in this process.
    pub owner: Option<Arc<str>>,
    /// msgpack with named fields in, the typed request out.
    pub decode_request: Decode,
    /// The typed reply in, msgpack with named fields out.
    pub encode_reply: Encode,
    pub encode_item: Encode,
    /// The same by place, for what is [`Operation::BY_PLACE`].
    pub positional: Option<Positional>,
    /// The typed request in, JSON for people out; secrets show as their names.
    pub show_request: fn(&(dyn Any + Send)) -> Option<serde_json::Value>,
    /// The typed request in, what the audit record has of it out ([`Operation::act`]).
    pub act: Option<ReadAct>,
    pub example: Schema,
    pub request_schema: Schema,
    pub reply_schema: Schema,
    pub item_schema: Schema,
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spec")
            .field("name", &self.name)
            .field("address", &self.address)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl Spec {
    #[must_use]
    pub fn of<O: Operation>() -> Self {
        Self {
            name: Cow::Borrowed(O::NAME),
            address: Cow::Borrowed(O::ADDRESS),
            role: O::ROLE,
            durability: O::DURABILITY,
            streams: O::STREAMS,
            mutates: O::MUTATES,
            since: O::SINCE,
            doc: Cow::Borrowed(O::DOC),
            owner: None,
            decode_request: Arc::new(|bytes| {
                if is_list(bytes) && has_fields::<O>() {
                    return Err(malformed(
                        O::NAME,
                        bytes,
                        "it takes a map of fields, not a list",
                        "codec.shape",
                    ));
                }
                let request: O::Request = codec::decode(bytes)
                    .map_err(|why| malformed(O::NAME, bytes, &why.to_string(), why.reason()))?;
                Ok(Box::new(request))
            }),
            encode_reply: encode_as::<O::Reply>,
            encode_item: encode_as::<O::Item>,
            positional: if O::BY_PLACE { Some(Positional::of::<O>()) } else { None },
            show_request: |request| serde_json::to_value(request.downcast_ref::<O::Request>()?).ok(),
            act: O::act().map(|act| -> ReadAct {
                Arc::new(move |request| {
                    Some(Act { action: O::NAME.into(), ..act(request.downcast_ref::<O::Request>()?)? })
                })
            }),
            example: Arc::new(|| serde_json::to_value(O::example()).unwrap_or_default()),
            request_schema: Arc::new(|| schemars::schema_for!(O::Request).to_value()),
            reply_schema: Arc::new(|| schemars::schema_for!(O::Reply).to_value()),
            item_schema: Arc::new(|| schemars::schema_for!(O::Item).to_value()),
        }
    }

    /// An operation that a client serves at one of its addresses.
    #[must_use]
    pub fn served(operation: &ServedOperation, address: &str, owner: &Arc<str>) -> Self {
        let name: Arc<str> = operation.name.as_str().into();
        let given = |value: &serde_json::Value| -> Schema {
            let value = value.clone();
            Arc::new(move || value.clone())
        };
        Self {
            name: Cow::Owned(operation.name.clone()),
            address: Cow::Owned(address.to_owned()),
            role: operation.role,
            durability: Durability::Call,
            streams: operation.streams,
            mutates: operation.mutates,
            since: 1,
            doc: Cow::Owned(operation.doc.clone()),
            owner: Some(Arc::clone(owner)),
            decode_request: Arc::new(move |bytes| Ok(Box::new(Opaque::new(&name, bytes)?))),
            encode_reply: Opaque::encode,
            encode_item: Opaque::encode,
            positional: None,
            show_request: |request| codec::json::show(&request.downcast_ref::<Opaque>()?.body).ok(),
            act: None,
            example: given(&operation.example),
            request_schema: given(&operation.request),
            reply_schema: given(&operation.reply),
            item_schema: given(&operation.item),
        }
    }

    /// The operation as data, as `kernel.describe` answers it.
    #[must_use]
    pub fn describe(&self) -> serde_json::Value {
        let mut described = serde_json::json!({
            "name": self.name,
            "address": self.address,
            "role": self.role,
            "durability": self.durability,
            "streams": self.streams,
            "mutates": self.mutates,
            "since": self.since,
            "doc": self.doc,
            "example": (self.example)(),
            "request": (self.request_schema)(),
            "reply": (self.reply_schema)(),
            "item": self.streams.then(|| (self.item_schema)()),
        });
        if let Some(owner) = &self.owner {
            described["owner"] = owner.as_ref().into();
        }
        described
    }
}

/// An operation's bodies as bincode ([`codec::positional`]).
#[derive(Debug, Clone)]
pub struct Positional {
    schema: fn() -> Option<String>,
    found: Arc<OnceLock<Option<String>>>,
    pub decode_request: fn(&[u8]) -> Result<Value, Error>,
    pub encode_reply: Encode,
    pub encode_item: Encode,
}

impl Positional {
    fn of<O: Operation>() -> Self {
        Self {
            schema: positional_schema::<O>,
            found: Arc::default(),
            decode_request: |bytes| {
                let request: O::Request = codec::positional::decode(bytes)
                    .map_err(|why| malformed(O::NAME, bytes, &why.to_string(), why.reason()))?;
                Ok(Box::new(request))
            },
            encode_reply: place_as::<O::Reply>,
            encode_item: place_as::<O::Item>,
        }
    }

    /// [`positional_schema`], found once.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.found.get_or_init(self.schema).as_deref()
    }
}

/// `NAME@LAYOUTS` of an operation: two programs that have the same read each other's bincode. `None` if it is not
/// [`Operation::BY_PLACE`], or one of its types has no layout.
#[must_use]
pub fn positional_schema<O: Operation>() -> Option<String> {
    // A branch on a constant: nothing behind it is compiled for the others.
    if !O::BY_PLACE {
        return None;
    }
    let layout = codec::positional::layout::<O::Request>()?;
    let reply = codec::positional::layout::<O::Reply>()?;
    let item = if O::STREAMS { codec::positional::layout::<O::Item>()? } else { 0 };
    Some(format!("{}@{layout:016x}{reply:016x}{item:016x}", O::NAME))
}

/// A body that is no request of the operation, or none at all.
#[must_use]
pub fn malformed(operation: &str, body: &[u8], why: &str, reason: &str) -> Error {
    let described = format!("eclosion describe {operation}");
    let (text, help) = match body.is_empty() {
        true => (
            format!("{operation} was called without a body"),
            format!("send a map, empty if it needs nothing: \"body\": {{}}; what it takes says {described}"),
        ),
        false => (format!("the request of {operation} is malformed: {why}"), described),
    };
    Error::invalid("request.malformed", text).cause(reason).help(help)
}

/// Whether msgpack begins a list.
fn is_list(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(0x90..=0x9f | 0xdc | 0xdd))
}

/// Whether its requests have names for what is in them. A list would be read by places then, which nobody has promised.
fn has_fields<O: Operation>() -> bool {
    let example = codec::encode(&O::example()).unwrap_or_default();
    matches!(example.first(), Some(0x80..=0x8f | 0xde | 0xdf))
}

fn place_as<T: Serialize + 'static>(value: &(dyn Any + Send)) -> Result<Vec<u8>, Error> {
    let value = value.downcast_ref::<T>();
    let value = value.ok_or_else(|| Error::internal("reply.type", "the value is not the operation's"))?;
    Ok(codec::positional::encode(value)?)
}

impl Opaque {
    /// # Errors
    /// `invalid` for bytes that are no msgpack, or too deep.
    pub fn new(operation: &Arc<str>, bytes: &[u8]) -> Result<Self, Error> {
        codec::scan(bytes).map_err(|why| malformed(operation, bytes, &why.to_string(), why.reason()))?;
        Ok(Self { operation: Arc::clone(operation), body: bytes::Bytes::copy_from_slice(bytes) })
    }

    fn encode(value: &(dyn Any + Send)) -> Result<Vec<u8>, Error> {
        let value = value.downcast_ref::<Self>();
        let value = value.ok_or_else(|| Error::internal("reply.type", "the value is not a service's"))?;
        Ok(value.body.to_vec())
    }
}

fn encode_as<T: Serialize + 'static>(value: &(dyn Any + Send)) -> Result<Vec<u8>, Error> {
    let value = value.downcast_ref::<T>().ok_or_else(|| {
        Error::internal("reply.type", format!("the value is not a {}", std::any::type_name::<T>()))
    })?;
    codec::encode(value).map_err(|why| Error::internal("reply.encode", why.to_string()))
}

/// The operations that one kernel knows.
#[derive(Debug, Clone, Default)]
pub struct Table {
    specs: BTreeMap<Cow<'static, str>, Arc<Spec>>,
}

impl Table {
    /// Adds an operation.
    ///
    /// # Errors
    /// `already_exists` when the name is taken.
    pub fn declare(&mut self, spec: Spec) -> Result<(), Error> {
        if self.specs.contains_key(&spec.name) {
            return Err(Error::new(
                crate::Code::AlreadyExists,
                "operation.name",
                format!("operation {} is declared already", spec.name),
            ));
        }
        self.specs.insert(spec.name.clone(), Arc::new(spec));
        Ok(())
    }

    /// Keeps the operations that `keep` says, as when those who served them are gone.
    pub fn retain(&mut self, mut keep: impl FnMut(&Spec) -> bool) {
        self.specs.retain(|_, spec| keep(spec));
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Spec>> {
        self.specs.get(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Spec>> {
        self.specs.values()
    }
}
