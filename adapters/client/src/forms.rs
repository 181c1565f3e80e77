//! How the bodies of each operation are written on one connection: msgpack, or bincode where both ends know it alike.
//!
//! ```text
//!   (unknown) ──the first call says our schema──▶ offered ──an answer says the same──▶ agreed
//! ```
//!
//! Until then, and with a kernel that knows the operation otherwise or speaks no bincode, everything is msgpack, and nobody
//! notices. A raw call is always msgpack: its caller has encoded it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use eclosion_schemas::frame::{BINCODE, Envelope, WireCodec};
use eclosion_schemas::operation::{Operation, positional_schema};
use eclosion_schemas::{Error, codec};

#[derive(Debug)]
pub(crate) struct Forms {
    /// The kernel speaks bincode.
    is_spoken: bool,
    known: Mutex<BTreeMap<&'static str, Form>>,
}

#[derive(Debug, Clone)]
enum Form {
    /// It has no layout, or was offered and nobody has answered.
    Named(Option<String>),
    ByPlace,
}

/// A request as it is sent.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) codec: WireCodec,
    pub(crate) bytes: Bytes,
    /// Our schema, where it is offered.
    pub(crate) schema: Option<String>,
}

impl Request {
    /// What is msgpack already.
    pub(crate) fn named(bytes: Bytes) -> Self {
        Self { codec: WireCodec::Msgpack, bytes, schema: None }
    }
}

impl Forms {
    pub(crate) fn new(welcome: &Envelope) -> Self {
        let features = welcome.features.as_deref().unwrap_or_default();
        let is_spoken = features.iter().any(|feature| feature == BINCODE);
        Self { is_spoken, known: Mutex::default() }
    }

    pub(crate) fn request<O: Operation>(&self, request: &O::Request) -> Result<Request, Error> {
        if !O::BY_PLACE {
            return Ok(Request::named(codec::encode(request)?.into()));
        }
        let (by_place, schema) = self.form::<O>();
        // A long one has no form by place.
        if by_place && let Ok(bytes) = codec::positional::encode(request) {
            return Ok(Request { codec: WireCodec::Bincode, bytes: bytes.into(), schema: None });
        }
        Ok(Request { codec: WireCodec::Msgpack, bytes: codec::encode(request)?.into(), schema })
    }

    /// Whether by place; and our schema, once.
    fn form<O: Operation>(&self) -> (bool, Option<String>) {
        if !self.is_spoken {
            return (false, None);
        }
        if let Some(known) = self.known().get(O::NAME) {
            return (matches!(known, Form::ByPlace), None);
        }
        let schema = positional_schema::<O>();
        self.known().insert(O::NAME, Form::Named(schema.clone()));
        (false, schema)
    }

    /// The kernel has answered to this schema: it is its own as well.
    pub(crate) fn agree(&self, schema: &str) {
        let name = schema.split('@').next().unwrap_or_default();
        if let Some(form) = self.known().get_mut(name)
            && matches!(form, Form::Named(Some(offered)) if offered == schema)
        {
            *form = Form::ByPlace;
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<&'static str, Form>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
