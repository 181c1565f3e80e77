//! What an application may declare: names that are its own.
//!
//! An operation is `OWNER.verb`, an event `OWNER.fact`, an address `/OWNER/…`. The owners in [`RESERVED`] are ours, those
//! of later releases among them, so that an application which works today is not in the way of tomorrow's kernel. That
//! two of the application's own names do not clash, the table (operations), the bus (addresses) and the kernel's builder
//! (deciders of events) say themselves.

use eclosion_schemas::operation::Spec;
use eclosion_schemas::{Code, Error};

/// First words of our operations, events and addresses, of this release and of later ones.
pub(crate) const RESERVED: &[&str] = &[
    "actor",
    "arbitration",
    "artifact",
    "artifacts",
    "attempt",
    "audit",
    "bus",
    "cache",
    "call",
    "calls",
    "chaos",
    "conductor",
    "config",
    "dag",
    "dead",
    "decision",
    "eclosion",
    "environment",
    "extension",
    "extensions",
    "files",
    "flow",
    "gc",
    "journal",
    "kernel",
    "lease",
    "listener",
    "log",
    "logs",
    "memory",
    "operator",
    "pool",
    "run",
    "schedule",
    "scheduler",
    "secret",
    "service",
    "services",
    "sessions",
    "stale",
    "step",
    "stream",
    "task",
    "tool",
    "tools",
    "tracking",
    "view",
    "worker",
    "workers",
];

/// An operation of an application: its name has an owner that is not us, and so has the address that serves it.
///
/// # Errors
/// `invalid` for a name without an owner, `denied` for an owner that is reserved.
pub(crate) fn check_operation(spec: &Spec) -> Result<(), Error> {
    check_name("operation", &spec.name)?;
    check_address(&spec.address)
}

/// The name of an operation or an event.
///
/// # Errors
/// As [`check_operation`].
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    match name.split_once('.') {
        Some((owner, rest)) if is_word(owner) && !rest.is_empty() => check_owner(what, name, owner),
        _ => {
            let text = format!("the {what} `{name}` does not say whose it is");
            Err(Error::invalid(format!("{what}.name"), text).help("call it OWNER.NAME, in small letters"))
        }
    }
}

/// # Errors
/// As [`check_operation`].
pub(crate) fn check_address(address: &str) -> Result<(), Error> {
    let owner = address.trim_start_matches('/').split('/').next().unwrap_or_default();
    check_owner("address", address, owner)
}

/// Where an application publishes.
///
/// # Errors
/// `denied` for a first word that is reserved.
#[cfg(feature = "ipc")]
pub(crate) fn check_subject(subject: &str) -> Result<(), Error> {
    check_owner("subject", subject, subject.trim_start_matches('@').split('/').next().unwrap_or_default())
}

fn is_word(owner: &str) -> bool {
    !owner.is_empty()
        && owner
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte))
}

fn check_owner(what: &str, name: &str, owner: &str) -> Result<(), Error> {
    if !RESERVED.contains(&owner) {
        return Ok(());
    }
    let text = format!("the {what} `{name}` begins with `{owner}`, which is the kernel's own");
    Err(Error::new(Code::Denied, format!("{what}.reserved"), text).help("begin it with a word of your own"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_ours_is_reserved() {
        for spec in eclosion_schemas::ops::table().unwrap().iter() {
            assert_eq!(
                check_name("operation", &spec.name).unwrap_err().reason,
                "operation.reserved",
                "{}",
                spec.name
            );
            assert_eq!(
                check_address(&spec.address).unwrap_err().reason,
                "address.reserved",
                "{}",
                spec.address
            );
        }
    }

    #[test]
    fn a_name_says_whose_it_is() {
        assert_eq!(check_name("operation", "greet.hello"), Ok(()));
        for bad in ["hello", "", ".hello", "greet.", "Greet.hello", "gr eet.x"] {
            assert_eq!(check_name("operation", bad).unwrap_err().reason, "operation.name", "{bad}");
        }
    }
}
