//! Python environments: content that is built once, and the runtime that every worker finds.
//!
//! An environment is what it is made from: its requirements and the interpreter's identity, hashed. It is built at its
//! final path under a lock, is valid once its marker is written, and is never changed after that. Without requirements
//! there is nothing to build: the interpreter is used as it is.
//!
//! ```text
//! CACHE/environments/HASH/           a virtual environment; eclosion.json, written last, makes it valid
//! CACHE/environments/HASH.lock       held by whoever builds it
//! CACHE/runtime/abi-ABI-msgspec-V/   msgspec for one interpreter ABI; eclosion.json as above
//! CACHE/runtime/V-HASH-ABI/          the `eclosion` package out of this binary, with a link to that msgspec; as above
//! ```
//!
//! Reading order: [`environments`] (what is built), [`interpreter`] (whose), [`place`] (once, whole or not at all),
//! [`resolver`] (uv or pip, in their own words), [`process`] (a resolver's process and its end), [`failure`] (what a
//! person is told), [`runtime`] (what workers import), [`builder`] (the pool manager's port).
//!
//! Invariants: (1) a directory without a marker is nobody's and is removed. (2) A resolver that was cancelled, or ran
//! out of time, is killed with its process group before its directory goes. (3) The environment's own packages come
//! before the runtime's on the module path, and the runtime is no part of the hash.

pub mod builder;
pub mod environments;
pub mod failure;
pub mod interpreter;
pub mod place;
pub mod process;
pub mod resolver;
pub mod runtime;
mod uses;

pub use builder::Builder;
pub use environments::{EnvironmentOptions, Environments};
pub use interpreter::Interpreter;
pub use resolver::Progress;
pub use uses::use_file;
