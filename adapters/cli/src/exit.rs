//! Exit codes: what a script may branch on. One function from the error, one table in its test.

use eclosion_schemas::{Code, Error};

pub(crate) const OK: u8 = 0;
/// A run or a task failed, or was cancelled.
pub(crate) const FAILED: u8 = 1;
pub(crate) const USAGE: u8 = 2;
pub(crate) const NOT_FOUND: u8 = 3;
pub(crate) const CONFLICT: u8 = 4;
pub(crate) const UNREACHABLE: u8 = 5;
pub(crate) const DEADLINE: u8 = 6;
/// The kernel has no room now; the same again may succeed later.
pub(crate) const REJECTED: u8 = 7;
pub(crate) const DENIED: u8 = 8;
pub(crate) const VERSION: u8 = 9;
pub(crate) const DATA_LOSS: u8 = 10;
/// A defect of ours, or supervision that has given up.
pub(crate) const INTERNAL: u8 = 70;
pub(crate) const INTERRUPTED: u8 = 130;
pub(crate) const TERMINATED: u8 = 143;

/// The reason of an error that stands for a reader who closed our output: nothing went wrong.
pub(crate) const OUTPUT_CLOSED: &str = "output.closed";

/// What the process ends with after this error.
pub(crate) fn code_of(error: &Error) -> u8 {
    match error.reason.as_str() {
        OUTPUT_CLOSED => return OK,
        "hello.api" => return VERSION,
        // A name that nobody knows was most likely mistyped.
        "operation.unknown" => return NOT_FOUND,
        // It accepted the connection and says nothing: a script treats it as it treats one that is not there.
        "kernel.silent" => return UNREACHABLE,
        // It is there, and takes nothing now.
        "mailbox.draining" => return REJECTED,
        _ => {}
    }
    match error.code {
        Code::Invalid => USAGE,
        Code::NotFound => NOT_FOUND,
        Code::AlreadyExists | Code::Conflict | Code::Precondition => CONFLICT,
        Code::Unavailable | Code::NoResponders | Code::Unknown => UNREACHABLE,
        Code::Deadline => DEADLINE,
        Code::Exhausted | Code::SlowConsumer => REJECTED,
        Code::Unauthenticated | Code::Denied => DENIED,
        Code::Unimplemented => VERSION,
        Code::DataLoss => DATA_LOSS,
        Code::Cancelled => FAILED,
        Code::Internal => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_the_exit_code_that_is_documented() {
        let table = [
            (Code::Invalid, "flow.cycle", 2),
            (Code::NotFound, "run.unknown", 3),
            (Code::Conflict, "journal.locked", 4),
            (Code::AlreadyExists, "x", 4),
            (Code::Precondition, "artifact.uncommitted", 4),
            (Code::Unavailable, "kernel.unreachable", 5),
            (Code::NoResponders, "x", 5),
            (Code::Unknown, "connection.lost", 5),
            (Code::Deadline, "kernel.silent", 5),
            (Code::Deadline, "deadline", 6),
            (Code::Exhausted, "mailbox.full", 7),
            (Code::Unavailable, "mailbox.draining", 7),
            (Code::SlowConsumer, "x", 7),
            (Code::Denied, "places.owner", 8),
            (Code::Unauthenticated, "x", 8),
            (Code::Precondition, "hello.api", 9),
            (Code::Unimplemented, "operation.unknown", 3),
            (Code::Unimplemented, "operation.address", 9),
            (Code::DataLoss, "journal.damaged", 10),
            (Code::Cancelled, "x", 1),
            (Code::Internal, "x", 70),
            (Code::Unavailable, OUTPUT_CLOSED, 0),
        ];
        for (code, reason, expected) in table {
            assert_eq!(code_of(&Error::new(code, reason, "x")), expected, "{code} {reason}");
        }
    }
}
