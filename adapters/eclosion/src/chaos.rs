//! `chaos.panic`: makes an actor of a kernel that was built to be killed panic. Absent from what users build.

use eclosion_bus::{Address, Control};
use eclosion_kernel::Kernel;
use eclosion_kernel::journal::Mark;
use eclosion_schemas::operation::NoItem;
use eclosion_schemas::{Durability, Error, Operation, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PanicRequest {
    /// `/dag`, `/listener`, `/sessions/3`, `/journal/syncer` …
    pub(crate) address: String,
}

#[derive(Debug)]
pub(crate) struct Panic;

impl Operation for Panic {
    type Request = PanicRequest;
    type Reply = ();
    type Item = NoItem;
    const NAME: &'static str = "chaos.panic";
    const ADDRESS: &'static str = eclosion_schemas::ops::kernel::ADDRESS;
    const ROLE: Role = Role::Admin;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Makes an actor panic.";
    fn example() -> PanicRequest {
        PanicRequest { address: "/dag".into() }
    }
}

pub(crate) fn panic(kernel: &Kernel, request: &PanicRequest) -> Result<(), Error> {
    match request.address.as_str() {
        "/journal/writer" => kernel.journal().interrupt(Mark::Written),
        "/journal/syncer" => kernel.journal().interrupt(Mark::Synced),
        other => {
            let address: Address =
                other.parse().map_err(|why| Error::invalid("address", format!("{other}: {why}")))?;
            let sent = kernel.bus().control(&address, Control::Panic("as asked".into()));
            sent.map_err(|refused| refused.to_error(other))?;
        }
    }
    Ok(())
}
