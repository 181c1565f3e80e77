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

/// Declares an operation: request, reply, stream item, name, address, role, durability, flags, doc, example.
macro_rules! operation {
    (
        $(#[$meta:meta])* $name:ident { request: $request:ty, reply: $reply:ty, $(item: $item:ty,)?
        name: $wire:literal, address: $address:expr, role: $role:ident, durability: $durability:ident,
        $(mutates: $mutates:literal,)? doc: $doc:literal, example: $example:expr $(,)? }
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
}
