//! What a refusal says. One shape everywhere: in Rust, on the wire, in Python, in the terminal.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The closed set of error codes; a caller may branch on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    Invalid,
    Unauthenticated,
    Denied,
    NotFound,
    AlreadyExists,
    Precondition,
    Conflict,
    Exhausted,
    Cancelled,
    Deadline,
    Unavailable,
    /// The outcome is not known: it may or may not have happened.
    Unknown,
    NoResponders,
    Unimplemented,
    Internal,
    DataLoss,
    SlowConsumer,
}

impl Code {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Invalid => "invalid",
            Code::Unauthenticated => "unauthenticated",
            Code::Denied => "denied",
            Code::NotFound => "not_found",
            Code::AlreadyExists => "already_exists",
            Code::Precondition => "precondition",
            Code::Conflict => "conflict",
            Code::Exhausted => "exhausted",
            Code::Cancelled => "cancelled",
            Code::Deadline => "deadline",
            Code::Unavailable => "unavailable",
            Code::Unknown => "unknown",
            Code::NoResponders => "no_responders",
            Code::Unimplemented => "unimplemented",
            Code::Internal => "internal",
            Code::DataLoss => "data_loss",
            Code::SlowConsumer => "slow_consumer",
        }
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the same request may be sent again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "policy", rename_all = "snake_case")]
pub enum Retry {
    #[default]
    #[schemars(title = "RetryNever")]
    Never,
    #[schemars(title = "RetryNow")]
    Now,
    #[schemars(title = "RetryAfter")]
    After { after_ms: u64 },
}

/// An error that crosses a boundary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message} ({code}, {reason})")]
pub struct Error {
    pub code: Code,
    /// A stable dotted id: `worker.oom`, `flow.cycle`.
    pub reason: String,
    /// One sentence for a person, without the code.
    pub message: String,
    #[serde(default)]
    pub retry: Retry,
    /// The command to run next, or how to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// What led to it, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The remote exception as data, where user code raised it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Box<RemoteException>>,
}

/// An exception of a worker's language, as data: it is never unpickled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemoteException {
    pub lang: String,
    /// `module.QualifiedName` of its type.
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
    /// Outermost first, as Python prints them.
    #[serde(default)]
    pub frames: Vec<RemoteFrame>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<RemoteException>>,
    /// Frames or causes were cut.
    #[serde(default)]
    pub truncated: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemoteFrame {
    pub file: String,
    pub line: u32,
    pub function: String,
    #[serde(default)]
    pub source: String,
    /// The frame lies in the user's own code and not in a library or the worker runtime.
    #[serde(default)]
    pub user: bool,
}

impl Error {
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            message: message.into(),
            retry: Retry::Never,
            help: None,
            causes: Vec::new(),
            remote: None,
        }
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Ends the help with the command to run next, unless it names one already.
    ///
    /// ```
    /// let error = eclosion_schemas::Error::invalid("flow.parameter", "there is no `sede`");
    /// let error = error.help("did you mean `seed`?").next("eclosion validate flow.toml");
    /// assert_eq!(error.help.as_deref(), Some("did you mean `seed`? Then: eclosion validate flow.toml"));
    /// ```
    #[must_use]
    pub fn next(mut self, command: &str) -> Self {
        self.help = Some(match self.help {
            None => command.to_owned(),
            Some(help) if help.contains("eclosion ") => help,
            Some(help) if help.ends_with(['?', '.']) => format!("{help} Then: {command}"),
            Some(help) => format!("{help}; then: {command}"),
        });
        self
    }

    pub fn invalid(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, reason, message)
    }

    pub fn not_found(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, reason, message)
    }

    pub fn internal(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::Internal, reason, message)
    }

    /// The one who held the request is gone before it answered; what was decided stands.
    pub fn died(address: &str, why: impl Into<String>) -> Self {
        Self::new(
            Code::Unavailable,
            "actor.died",
            format!("{address} died before it answered: {}", why.into()),
        )
        .retry(Retry::Now)
    }

    pub fn deadline(what: &str) -> Self {
        Self::new(Code::Deadline, "deadline", format!("{what} did not finish before its deadline"))
    }
}
