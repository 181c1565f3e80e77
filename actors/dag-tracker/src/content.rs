//! What a run is made of, as hashes (P8): content, seeds, keys and ids.
//!
//! Every hash is BLAKE3 over a label that names its purpose and version, then length-prefixed parts, so that no two
//! purposes and no two splits into parts can meet. Derived seeds have 32 bits, which every library takes.

use std::collections::BTreeMap;

use blake3::{Hash, Hasher};
use eclosion_schemas::events::Ingredients;
use eclosion_schemas::flow::{EnvironmentSpec, FlowSpec};
use eclosion_schemas::{CacheKey, Digest, EnvironmentId, Payload, RunId, TaskId};
use serde::Serialize;
use serde_json::{Value, json};

/// Crockford's base 32: no letter that is read as another.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The identity of an environment: sixteen hexadecimal characters of the hash of what it is made from.
#[must_use]
pub fn environment_id(spec: &EnvironmentSpec) -> EnvironmentId {
    let hash = labeled("environment/v1", &[canonical(&json!(spec)).as_bytes()]);
    id(&hash.to_hex()[..16])
}

/// The run's content and its seed: the parameter `seed` if it is a whole number, else derived from the rest.
pub(crate) fn content(
    flow: &FlowSpec,
    environment: &EnvironmentId,
    parameters: &BTreeMap<String, Value>,
) -> (String, u64) {
    let mut shape = json!(flow);
    if let Value::Object(fields) = &mut shape {
        // Said below, or without influence on what is computed.
        for field in ["environment", "parameters", "description", "code_hash", "source"] {
            fields.remove(field);
        }
        if !flow.code_hash.is_empty() {
            fields.remove("code");
        }
    }
    let parts =
        [canonical(&shape), flow.code_hash.clone(), environment.to_string(), canonical(&json!(parameters))];
    let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();
    let unseeded = labeled("content/v1", &parts);
    let seed = seed_set(parameters).unwrap_or_else(|| seed_of(&unseeded));
    let content = labeled("run/v1", &[unseeded.as_bytes(), &seed.to_be_bytes()]);
    (content.to_hex().to_string(), seed)
}

/// The seed that somebody chose: the parameter `seed`, if it is a whole number.
pub(crate) fn seed_set(parameters: &BTreeMap<String, Value>) -> Option<u64> {
    let seed = parameters.get("seed")?;
    seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned))
}

/// A value by its content: its body, and each part by its digest.
pub(crate) fn of_payload(payload: &Payload) -> Hash {
    let parts = payload.parts.iter().flat_map(|part| {
        let digest = part.digest.as_ref().map(Digest::as_str).unwrap_or_default();
        [digest, part.codec.as_str(), part.name.as_deref().unwrap_or_default()].map(str::as_bytes)
    });
    let parts: Vec<&[u8]> = std::iter::once(payload.body.as_ref()).chain(parts).collect();
    labeled("payload/v1", &parts)
}

/// The outputs of a fan-out, in order.
pub(crate) fn of_payloads(payloads: &[Payload]) -> Hash {
    let hashes: Vec<Hash> = payloads.iter().map(of_payload).collect();
    let parts: Vec<&[u8]> = hashes.iter().map(|hash| hash.as_bytes().as_slice()).collect();
    labeled("payloads/v1", &parts)
}

/// What equal steps have in common and no others. Arguments come by name, with the whole hash of each.
pub(crate) fn cache_key(ingredients: &Ingredients, arguments: &BTreeMap<&str, Hash>) -> CacheKey {
    let Ingredients { function, version, code_hash, environment, seed, .. } = ingredients;
    let seed = seed.map(u64::to_be_bytes);
    let mut parts: Vec<&[u8]> =
        [function.as_str(), version, code_hash, environment.as_str()].map(str::as_bytes).into();
    parts.push(seed.as_ref().map_or(&[], |seed| seed.as_slice()));
    for (name, hash) in arguments {
        parts.extend([name.as_bytes(), hash.as_bytes().as_slice()]);
    }
    id(&labeled("step/v1", &parts).to_hex()[..32])
}

/// The same in every attempt and in every run of equal content.
pub(crate) fn task_seed(run_seed: u64, task: &TaskId) -> u64 {
    seed_of(&labeled("task-seed/v1", &[&run_seed.to_be_bytes(), task.as_str().as_bytes()]))
}

/// The same in every attempt, another in every run (P-EXEC-4).
pub(crate) fn idempotency_key(run: &RunId, task: &TaskId, content: &str) -> String {
    let parts = [run.as_str().as_bytes(), task.as_str().as_bytes(), content.as_bytes()];
    labeled("idempotency-key/v1", &parts).to_hex()[..32].to_owned()
}

/// A number below `below` that is the same for the same run, task and count of failures.
pub(crate) fn jitter(run: &RunId, task: &TaskId, failures: u32, below: u64) -> u64 {
    let parts = [run.as_str().as_bytes(), task.as_str().as_bytes(), &failures.to_be_bytes()];
    seed_of(&labeled("jitter/v1", &parts)) % below.max(1)
}

/// A fresh id out of a number that nobody could have guessed; `round` counts collisions.
pub(crate) fn run_id(entropy: u64, round: u32) -> RunId {
    let hash = labeled("run-id/v1", &[&entropy.to_be_bytes(), &round.to_be_bytes()]);
    let text: String =
        hash.as_bytes()[..8].iter().map(|byte| char::from(BASE32[usize::from(byte % 32)])).collect();
    id(&text)
}

fn labeled(label: &str, parts: &[&[u8]]) -> Hash {
    let mut hasher = Hasher::new();
    for part in std::iter::once(label.as_bytes()).chain(parts.iter().copied()) {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

fn seed_of(hash: &Hash) -> u64 {
    hash.as_bytes()[..4].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// JSON with sorted keys and no spaces.
fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write_canonical(value, &mut text);
    text
}

fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Array(values) => {
            text.push('[');
            for (n, value) in values.iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                write_canonical(value, text);
            }
            text.push(']');
        }
        Value::Object(entries) => {
            // Whether serde_json keeps keys sorted depends on a feature that any crate may switch on.
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_unstable_by_key(|(key, _)| *key);
            text.push('{');
            for (n, (key, value)) in sorted.into_iter().enumerate() {
                if n > 0 {
                    text.push(',');
                }
                write_plain(key, text);
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::String(string) => write_plain(string, text),
        plain => write_plain(plain, text),
    }
}

fn write_plain<T: Serialize + ?Sized>(plain: &T, text: &mut String) {
    // A string, number, bool or null always has a JSON form.
    text.push_str(&serde_json::to_string(plain).unwrap_or_default());
}

/// An id out of characters that ids are made of.
#[expect(clippy::unreachable, reason = "hexadecimal and base 32 are well-formed ids of any length used here")]
fn id<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| unreachable!("a well-formed id"))
}
