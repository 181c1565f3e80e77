//! The open table of operations.
//!
//! An operation is declared once, as a type that implements [`Operation`]; router, clients, `describe`, JSON Schemas
//! and completion follow from it. The kernel's own are in [`crate::ops`]; an application adds its own with
//! [`Spec::of`]. A name belongs to one owner: a second declaration of it is refused by [`Table::declare`].

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::error::Error;

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
    /// The api number that brought it.
    const SINCE: u32 = 1;
    const DOC: &'static str;
    /// A request that is well formed; shown by `describe` and checked by a test.
    fn example() -> Self::Request;
}

/// The item type of an operation that does not stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub enum NoItem {}

/// A typed value on its way through the bus; encoded only when a transport needs bytes.
pub type Value = Box<dyn Any + Send>;

type Decode = fn(&[u8]) -> Result<Value, Error>;
type Encode = fn(&(dyn Any + Send)) -> Result<Vec<u8>, Error>;

/// An operation as data: what the router, `describe` and a transport need without knowing its types.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: &'static str,
    pub address: &'static str,
    pub role: Role,
    pub durability: Durability,
    pub streams: bool,
    pub mutates: bool,
    pub since: u32,
    pub doc: &'static str,
    /// msgpack with named fields in, the typed request out.
    pub decode_request: Decode,
    /// The typed reply in, msgpack with named fields out.
    pub encode_reply: Encode,
    pub encode_item: Encode,
    /// The typed request in, JSON for people out; secrets show as their names.
    pub show_request: fn(&(dyn Any + Send)) -> Option<serde_json::Value>,
    pub example: fn() -> serde_json::Value,
    pub request_schema: fn() -> schemars::Schema,
    pub reply_schema: fn() -> schemars::Schema,
    pub item_schema: fn() -> schemars::Schema,
}

impl Spec {
    #[must_use]
    pub fn of<O: Operation>() -> Self {
        Self {
            name: O::NAME,
            address: O::ADDRESS,
            role: O::ROLE,
            durability: O::DURABILITY,
            streams: O::STREAMS,
            mutates: O::MUTATES,
            since: O::SINCE,
            doc: O::DOC,
            decode_request: |bytes| {
                let request: O::Request = codec::decode(bytes).map_err(|why| {
                    Error::invalid(
                        "request.malformed",
                        format!("the request of {} is malformed: {why}", O::NAME),
                    )
                    .cause(why.reason())
                    .help(format!("eclosion describe {}", O::NAME))
                })?;
                Ok(Box::new(request))
            },
            encode_reply: encode_as::<O::Reply>,
            encode_item: encode_as::<O::Item>,
            show_request: |request| serde_json::to_value(request.downcast_ref::<O::Request>()?).ok(),
            example: || serde_json::to_value(O::example()).unwrap_or_default(),
            request_schema: || schemars::schema_for!(O::Request),
            reply_schema: || schemars::schema_for!(O::Reply),
            item_schema: || schemars::schema_for!(O::Item),
        }
    }

    /// The operation as data, as `kernel.describe` answers it.
    #[must_use]
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({
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
            "item": self.streams.then(self.item_schema),
        })
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
    specs: BTreeMap<&'static str, Arc<Spec>>,
}

impl Table {
    /// Adds an operation.
    ///
    /// # Errors
    /// `already_exists` when the name is taken.
    pub fn declare(&mut self, spec: Spec) -> Result<(), Error> {
        if self.specs.contains_key(spec.name) {
            return Err(Error::new(
                crate::Code::AlreadyExists,
                "operation.name",
                format!("operation {} is declared already", spec.name),
            ));
        }
        self.specs.insert(spec.name, Arc::new(spec));
        Ok(())
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
