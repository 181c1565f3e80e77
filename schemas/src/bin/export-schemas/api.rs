//! The table of operations, events and wire types as JSON Schema, with one table of definitions for all.

use std::collections::BTreeMap;

use eclosion_schemas::events::{self, Event};
use eclosion_schemas::frame::{self, Envelope};
use eclosion_schemas::operation::Spec;
use eclosion_schemas::ops;
use eclosion_schemas::view;
use eclosion_schemas::{Error, Payload};
use schemars::{JsonSchema, schema_for};
use serde_json::{Map, Value, json};

/// What is exported; `types` are the definitions, by name.
pub(crate) struct Api {
    pub(crate) types: BTreeMap<String, Value>,
    pub(crate) operations: Vec<Value>,
    worker_operations: Vec<Value>,
    events: Vec<Value>,
    messages: Map<String, Value>,
}

pub(crate) fn build() -> Result<Api, String> {
    let mut api = Api {
        types: BTreeMap::new(),
        operations: Vec::new(),
        worker_operations: Vec::new(),
        events: Vec::new(),
        messages: Map::new(),
    };
    let table = ops::table().map_err(|why| why.to_string())?;
    for spec in table.iter() {
        let described = api.operation(spec)?;
        api.operations.push(described);
    }
    api.worker_operations()?;
    api.events()?;
    api.message::<Envelope>("envelope")?;
    api.message::<Error>("error")?;
    api.message::<ops::pool::WorkerUpRequest>("worker_hello")?;
    api.message::<view::RunView>("run_state")?;
    api.message::<view::TaskView>("task_state")?;
    Ok(api)
}

impl Api {
    pub(crate) fn to_text(&self) -> Result<String, String> {
        let value = json!({
            "schema": "eclosion/api/v1",
            "api": frame::API,
            "api_compatible": frame::API_COMPATIBLE,
            "operations": self.operations,
            "worker_operations": self.worker_operations,
            "events": self.events,
            "messages": self.messages,
            "$defs": self.types,
        });
        serde_json::to_string_pretty(&sorted(value)).map(|text| text + "\n").map_err(|why| why.to_string())
    }

    fn operation(&mut self, spec: &Spec) -> Result<Value, String> {
        let mut described = spec.describe();
        for (key, schema) in [("request", &spec.request_schema), ("reply", &spec.reply_schema)] {
            described[key] = self.refer(schema())?;
        }
        if spec.streams {
            described["item"] = self.refer((spec.item_schema)())?;
        }
        Ok(described)
    }

    /// What travels between a worker and its holder alone, and is in no table.
    fn worker_operations(&mut self) -> Result<(), String> {
        let execute = json!({
            "name": ops::task::EXECUTE,
            "caller": "kernel",
            "request": self.refer(schema_for!(ops::task::Execute))?,
            "item": self.refer(schema_for!(ops::task::ExecuteItem))?,
            "reply": self.refer(schema_for!(Payload))?,
        });
        let stage = json!({
            "name": ops::artifact::STAGE,
            "caller": "worker",
            "request": self.refer(schema_for!(ops::artifact::StageRequest))?,
            "item": null,
            "reply": self.refer(schema_for!(ops::artifact::StageReply))?,
            "reply_descriptors": 1,
        });
        let open = json!({
            "name": ops::artifact::OPEN,
            "caller": "worker",
            "request": self.refer(schema_for!(ops::artifact::OpenRequest))?,
            "item": null,
            "reply": self.refer(schema_for!(ops::artifact::OpenReply))?,
            "reply_descriptors": 1,
        });
        self.worker_operations = vec![execute, stage, open];
        self.arenas()
    }

    fn arenas(&mut self) -> Result<(), String> {
        use ops::arena::{self, ATTACH, LEND, MAPPED, RELEASE};
        let attach = self.refer(schema_for!(arena::AttachRequest))?;
        let attached = self.refer(schema_for!(arena::AttachReply))?;
        let lend = self.refer(schema_for!(arena::LendRequest))?;
        let lent = self.refer(schema_for!(arena::LendReply))?;
        let mapped = self.refer(schema_for!(arena::MappedRequest))?;
        let release = self.refer(schema_for!(arena::ReleaseRequest))?;
        let empty = self.refer(schema_for!(ops::kernel::Empty))?;
        for (name, caller, request, reply) in [
            (ATTACH, "worker or client", attach, attached),
            (LEND, "worker", lend, lent),
            (MAPPED, "worker", mapped, empty.clone()),
            (RELEASE, "client", release, empty),
        ] {
            let described =
                json!({"name": name, "caller": caller, "request": request, "item": null, "reply": reply});
            self.worker_operations.push(described);
        }
        Ok(())
    }

    fn events(&mut self) -> Result<(), String> {
        self.event::<events::RunStarted>()?;
        self.event::<events::RunCancelling>()?;
        self.event::<events::RunFinished>()?;
        self.event::<events::AttemptStarted>()?;
        self.event::<events::AttemptStopped>()?;
        self.event::<events::AttemptWaiting>()?;
        self.event::<events::AttemptRefused>()?;
        self.event::<events::StepCommitted>()?;
        self.event::<events::StepFailed>()?;
        self.event::<events::StepReady>()?;
        self.event::<events::WorkerRequested>()?;
        self.event::<events::WorkerStarted>()?;
        self.event::<events::WorkerAttached>()?;
        self.event::<events::WorkerStopping>()?;
        self.event::<events::WorkerDied>()?;
        self.event::<events::EnvironmentRequested>()?;
        self.event::<events::EnvironmentReady>()?;
        self.event::<events::EnvironmentFailed>()?;
        self.event::<events::schedule::ScheduleSet>()?;
        self.event::<events::schedule::SchedulePaused>()?;
        self.event::<events::schedule::ScheduleResumed>()?;
        self.event::<events::schedule::ScheduleRemoved>()?;
        self.event::<events::schedule::TickFired>()?;
        self.event::<events::schedule::TickQueued>()?;
        self.event::<events::schedule::TickSkipped>()?;
        self.event::<events::schedule::TickCancelling>()?;
        self.event::<events::schedule::TickEnded>()?;
        self.event::<events::service::ServiceDeclared>()?;
        self.event::<events::service::ServiceStarted>()?;
        self.event::<events::service::ServiceReady>()?;
        self.event::<events::service::ServiceEnded>()?;
        self.event::<events::service::ServiceStopped>()?;
        self.event::<events::service::ServiceForgotten>()?;
        self.event::<events::LeaseGranted>()?;
        self.event::<events::LeaseReleased>()?;
        self.event::<events::LeaseTaken>()?;
        self.event::<events::LeaseRenewed>()?;
        self.event::<events::LeaseRefused>()?;
        self.event::<events::ArtifactPinned>()?;
        self.event::<events::ArtifactUnpinned>()?;
        self.event::<events::ArtifactTagged>()?;
        self.event::<events::ArtifactUntagged>()?;
        self.event::<events::StepReused>()?;
        self.event::<events::StepMissed>()?;
        self.event::<events::CacheDropped>()?;
        self.event::<events::GcPassDue>()?;
        self.event::<events::GcCollected>()?;
        self.event::<events::GcMoved>()?;
        self.event::<events::GcPurging>()?;
        self.event::<events::GcRestoring>()?;
        self.event::<events::GcRestored>()?;
        self.event::<events::GcErased>()?;
        self.event::<events::GcPassed>()?;
        self.event::<events::WorkerCordoned>()?;
        self.event::<events::WorkerUncordoned>()?;
        self.event::<events::PoolDrained>()?;
        self.event::<events::PoolResumed>()?;
        self.event::<events::TaskQuarantined>()?;
        self.event::<events::TaskReleased>()?;
        self.event::<events::OperatorActed>()?;
        self.event::<events::OperatorEnded>()?;
        Ok(())
    }

    fn event<E: Event + JsonSchema>(&mut self) -> Result<(), String> {
        let value = self.refer(schema_for!(E))?;
        self.events.push(json!({"kind": E::KIND, "version": E::VERSION, "value": value}));
        Ok(())
    }

    fn message<T: JsonSchema>(&mut self, name: &str) -> Result<(), String> {
        let value = self.refer(schema_for!(T))?;
        self.messages.insert(name.to_owned(), value);
        Ok(())
    }

    /// Moves a schema and its definitions into the one table; a scalar stays where it is.
    fn refer(&mut self, schema: impl Into<Value>) -> Result<Value, String> {
        let mut schema = schema.into();
        let Some(fields) = schema.as_object_mut() else { return Ok(schema) };
        fields.remove("$schema");
        let definitions = fields.remove("$defs");
        let title = fields.remove("title").and_then(|title| title.as_str().map(str::to_owned));
        for (name, definition) in definitions.as_ref().and_then(Value::as_object).into_iter().flatten() {
            self.define(name, definition.clone())?;
        }
        match title {
            Some(name) if name.starts_with(char::is_uppercase) => {
                self.define(&name, schema)?;
                Ok(json!({"$ref": format!("#/$defs/{name}")}))
            }
            _ => Ok(schema),
        }
    }

    fn define(&mut self, name: &str, definition: Value) -> Result<(), String> {
        let definition = sorted(definition);
        match self.types.get(name) {
            Some(known) if *known != definition => Err(format!(
                "two types are called {name}: give one of them another name with #[schemars(rename)]"
            )),
            Some(_) => Ok(()),
            None => {
                self.types.insert(name.to_owned(), definition);
                Ok(())
            }
        }
    }
}

/// Sorts the keys of every map, whether or not serde_json was built to keep their order.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> =
                fields.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        scalar => scalar,
    }
}
