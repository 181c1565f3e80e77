//! Flow files: the grammar of `flow.toml` (and of the same model in JSON, which Python's `@flow` writes).
//!
//! ```toml
//! schema = "eclosion/flow/v1"
//! name = "automl"
//! code = "."                                # the root that modules are imported from, relative to this file
//! result = "report"                         # whose output is the run's result; default: the only task nobody needs
//!
//! [environment]
//! requirements = ["scikit-learn==1.9.1"]
//! preload = ["numpy"]                       # imported once in the zygote
//!
//! [parameters]
//! seed = 7                                  # a default; `--set seed=8` overrides it. `seed` also seeds the run
//!
//! [tasks.load]
//! run = "steps:load"                        # module:qualname
//! with = { path = "${param.data}" }
//!
//! [tasks.train]
//! run = "steps:train"
//! each = ["logistic", "forest"]             # a fan-out: a list, "${param.NAME}" or "${TASK}" whose output is a list
//! with = { table = "${load}", model = "${item}" }
//! retries = 2
//! timeout = "2m"
//! resources = { cpu = 1, memory = "1GiB" }  # beyond its memory the task is killed, with all that it started
//! processes = 4                             # the same with more processes than this
//! open_files = 256                          # opening more raises; so does writing a file beyond `file_size = "1GiB"`
//!                                           # resources may name what else the kernel was told of: gpu0_vram = "8GiB"
//! locks = ["db", "index:shared"]            # alone, or with others who share it
//! rates = { openai = 1 }                    # of `rates.openai = "60/min"` in the kernel's settings
//! cache = "v1"                              # equal steps of any run share one result; see below
//! ```
//!
//! A step with `cache` has a content key: function, code hash, environment, arguments by content, this version text, and
//! the seed. The seed counts where somebody set it, as the parameter `seed`: then each task instance has its own. A seed
//! that was derived from the run's content was chosen by nobody, so a result made under another one is as good. A task
//! that draws no random numbers says `cache_seed = false`. `cache` beside `name` is the default of all tasks, `"off"`
//! exempts one. A result whose code was edited while it was computed is not kept.
//!
//! A string that is exactly one `${…}` becomes the value itself, of whatever type; inside a longer string, parameters
//! and items are filled in as text and task outputs are refused. `$${` stands for a literal `${`.
//! References: `${param.NAME}`, `${item}`, `${TASK}` (for a fan-out: the list of its outputs, in order).
//! A task's output is an argument as a whole: inside lists and maps only parameters and items are filled in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::Timestamp;

/// The `schema` line of a flow file.
pub const FLOW_SCHEMA: &str = "eclosion/flow/v1";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowSpec {
    pub schema: String,
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// In a file: relative to it. As submitted: absolute.
    #[serde(default = "default_code")]
    pub code: String,
    /// The hash of every `.py` file below `code`; filled in by whoever submits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code_hash: String,
    /// What to name to run it again: an absolute `flow.toml`, or `FILE.py:flow`; filled in by whoever submits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(default)]
    pub environment: EnvironmentSpec,
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub tasks: BTreeMap<String, TaskSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The `cache` of every task that has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
}

fn default_code() -> String {
    ".".into()
}

/// What an environment is made from; its hash is its identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSpec {
    /// An interpreter, by path or by name on PATH. Default: `python3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<String>,
    /// PEP 508 requirements. None: the interpreter is used as it is.
    #[serde(default)]
    pub requirements: Vec<String>,
    /// Modules that the zygote imports before it forks. They may only be imported, never compute.
    #[serde(default)]
    pub preload: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// `module:qualname`.
    pub run: String,
    /// Keyword arguments; `${…}` are references.
    #[serde(default)]
    pub with: BTreeMap<String, serde_json::Value>,
    /// A fan-out over a list: one instance of the task for each item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub each: Option<serde_json::Value>,
    /// Tasks that must have succeeded before, beside those that are referred to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// How often an attempt that raised is tried again.
    #[serde(default)]
    pub retries: u32,
    #[serde(default)]
    pub backoff: Backoff,
    /// `"30s"`, `"2m"`; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Beyond a worker's default lease (1 cpu): `cpu` as a number, `memory` as `"2GiB"` or bytes, anything else that the
    /// kernel was told of as a number or a size.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, serde_json::Value>,
    /// Held by an attempt while it runs: `"db"` alone, `"db:shared"` with others who share it. A lock is there by being
    /// named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<String>,
    /// How often of a rate an attempt counts: `{ openai = 1 }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, u64>,
    #[serde(default)]
    pub priority: Priority,
    /// Processes that it may have at a time, the worker itself included; with more it is killed. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Descriptors that it may have open at a time; opening more raises in the task. None: the user's own limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u32>,
    /// How long a file may grow that it writes, as `"1GiB"` or bytes; writing on raises in the task. None: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<serde_json::Value>,
    /// A version: a result is kept under its content key, and taken where the key is the same. `"off"`, or none: computed
    /// every time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Whether a seed that was set is part of the key; default: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_seed: Option<bool>,
}

/// Waiting before the n-th retry: `initial · factorⁿ⁻¹`, at most `max`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Backoff {
    #[serde(default = "Backoff::initial_ms")]
    pub initial_ms: u64,
    #[serde(default = "Backoff::factor")]
    pub factor: f64,
    #[serde(default = "Backoff::max_ms")]
    pub max_ms: u64,
}

impl Backoff {
    fn initial_ms() -> u64 {
        1_000
    }
    fn factor() -> f64 {
        2.0
    }
    fn max_ms() -> u64 {
        100_000
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial_ms: Self::initial_ms(), factor: Self::factor(), max_ms: Self::max_ms() }
    }
}

/// Served in this order; waiting tasks age upwards.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Interactive,
    #[default]
    Normal,
    Batch,
}

impl Priority {
    /// By this the waiting are ordered, earliest first: a lower class stands `aging_ms` (batch: four times that) behind
    /// what arrives at the same moment, so whoever has waited that much longer is served first.
    #[must_use]
    pub fn rank(self, since: Timestamp, aging_ms: u64) -> Timestamp {
        since.plus_ms(match self {
            Priority::Interactive => 0,
            Priority::Normal => aging_ms,
            Priority::Batch => aging_ms.saturating_mul(4),
        })
    }
}
