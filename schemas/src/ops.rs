//! The kernel's operations, one file per family; [`table`] holds them all.

pub mod actor;
pub mod arbitration;
pub mod arena;
pub mod artifact;
pub mod audit;
pub mod cache;
pub mod dead;
pub mod gc;
pub mod kernel;
pub mod lease;
pub mod log;
pub mod pool;
pub mod rerun;
pub mod run;
pub mod schedule;
pub mod service;
pub mod task;

use crate::error::Error;
use crate::operation::{Spec, Table};

/// The table that every kernel of ours starts with.
///
/// # Errors
/// Never, unless two of our own operations share a name; a test says so.
pub fn table() -> Result<Table, Error> {
    let mut table = Table::default();
    for spec in all() {
        table.declare(spec)?;
    }
    Ok(table)
}

/// What every kernel serves that has a socket: the kernel itself, its actors, dead letters, the audit record,
/// services.
#[must_use]
pub fn operators() -> Vec<Spec> {
    [kernel::all(), actor::all(), dead::all(), audit::all(), service::all()].into_iter().flatten().collect()
}

fn all() -> Vec<Spec> {
    let families = [
        run::all(),
        rerun::all(),
        task::all(),
        pool::all(),
        arbitration::all(),
        lease::all(),
        artifact::all(),
        schedule::all(),
        cache::all(),
        gc::all(),
        log::all(),
        service::managed(),
        operators(),
    ];
    families.into_iter().flatten().collect()
}

/// Declares an operation: request, reply, stream item, name, address, role, durability, flags, act, doc, example.
macro_rules! operation {
    (
        $(#[$meta:meta])* $name:ident { request: $request:ty, reply: $reply:ty, $(item: $item:ty,)?
        name: $wire:literal, address: $address:expr, role: $role:ident, durability: $durability:ident,
        $(mutates: $mutates:literal,)? $(act: $act:expr,)? doc: $doc:literal, example: $example:expr $(,)? }
    ) => {
        $(#[$meta])*
        #[doc = $doc]
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl $crate::operation::Operation for $name {
            type Request = $request;
            type Reply = $reply;
            type Item = $crate::ops::operation!(@item $($item)?);
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = $address;
            const ROLE: $crate::operation::Role = $crate::operation::Role::$role;
            const DURABILITY: $crate::operation::Durability = $crate::operation::Durability::$durability;
            const STREAMS: bool = $crate::ops::operation!(@streams $($item)?);
            const MUTATES: bool = $crate::ops::operation!(@flag $($mutates)?);
            const DOC: &'static str = $doc;
            fn example() -> Self::Request {
                $example
            }
            $(fn act() -> Option<$crate::operation::ActOf<Self::Request>> {
                Some($act)
            })?
        }
    };
    (@item) => { $crate::operation::NoItem };
    (@item $item:ty) => { $item };
    (@streams) => { false };
    (@streams $item:ty) => { true };
    (@flag) => { false };
    (@flag $flag:literal) => { $flag };
}
pub(crate) use operation;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_a_well_formed_request() {
        let table = table().unwrap();
        for spec in table.iter() {
            let bytes = rmp_serde::to_vec_named(&(spec.example)()).unwrap();
            assert!((spec.decode_request)(&bytes).is_ok(), "{}", spec.name);
            assert!(spec.address.starts_with('/'), "{}", spec.name);
        }
    }

    #[test]
    fn an_act_says_what_it_is_done_to_and_gives_one_answer() {
        let table = table().unwrap();
        for spec in table.iter() {
            let Some(act) = &spec.act else { continue };
            let request =
                (spec.decode_request)(&rmp_serde::to_vec_named(&(spec.example)()).unwrap()).unwrap();
            let act = act(&*request).unwrap_or_else(|| panic!("{} of its example", spec.name));
            assert_eq!(act.action, spec.name);
            assert!(!act.target.is_empty() && spec.mutates && !spec.streams, "{}", spec.name);
        }
    }

    #[test]
    fn what_has_a_reason_is_an_act() {
        let table = table().unwrap();
        for spec in table.iter() {
            let takes_reason = (spec.request_schema)()["properties"].get("reason").is_some();
            let recorded = spec.act.is_some() || RECORDED_BY_THEMSELVES.contains(&&*spec.name);
            let of_clients = matches!(spec.role, crate::Role::Operate | crate::Role::Admin);
            assert!(!takes_reason || !of_clients || recorded, "{}", spec.name);
        }
    }

    /// They look at what they touch before, and the audit record has it with them.
    const RECORDED_BY_THEMSELVES: &[&str] = &[
        "actor.drain",
        "actor.kill",
        "actor.pause",
        "actor.restart",
        "actor.resume",
        "audit.begin",
        "dead.drop",
        "dead.replay",
    ];
}
