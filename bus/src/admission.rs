//! What every way into the bus checks alike: is there such an operation, may this role call it, is this a cursor.

use std::sync::Arc;

use eclosion_schemas::operation::Spec;
use eclosion_schemas::ops::kernel::{OnFull, SubscribeRequest};
use eclosion_schemas::suggest::nearest;
use eclosion_schemas::{Code, Epoch, Error, Role, Seq};

use crate::address::Filter;
use crate::bus::Bus;
use crate::publish::Subscription;

/// Changes that may wait for one subscriber.
const SUBSCRIPTION_CAPACITY: usize = 1024;

impl Bus {
    /// The operation, if `role` may call it.
    ///
    /// # Errors
    /// `unimplemented` for a name that nobody has declared, `denied`.
    pub fn admitted(&self, method: &str, role: Role) -> Result<Arc<Spec>, Error> {
        let table = self.table();
        let Some(spec) = table.get(method) else {
            let shown: String = method.chars().take(64).collect();
            let text = format!("there is no operation `{shown}`");
            let error = Error::new(Code::Unimplemented, "operation.unknown", text);
            return Err(match nearest(method, table.iter().map(|spec| &*spec.name)) {
                Some(name) => error.help(format!("did you mean {name}?")),
                None => error.help("eclosion describe"),
            });
        };
        if !role.permits(spec.role) {
            let text = format!("{} needs the role {:?}, which is not {role:?}", spec.name, spec.role);
            return Err(Error::new(Code::Denied, "call.role", text.to_lowercase()));
        }
        Ok(Arc::clone(spec))
    }

    /// What `bus.subscribe` asks for.
    ///
    /// # Errors
    /// `denied` for who would make publishers wait, `invalid` for a malformed filter or cursor.
    pub fn subscription(&self, request: &SubscribeRequest) -> Result<Subscription, Error> {
        if request.on_full == OnFull::Block {
            let text = "a client cannot make publishers wait: on_full is gap, latest or close";
            return Err(Error::new(Code::Denied, "subscribe.block", text));
        }
        let filter = Filter::new(&request.filter)?;
        let start = request.start.as_deref().map(cursor).transpose()?;
        Ok(self.subscribe_from(filter, request.on_full, SUBSCRIPTION_CAPACITY, start))
    }
}

/// `EPOCH:SEQ`.
fn cursor(text: &str) -> Result<(Epoch, Seq), Error> {
    let parsed = text
        .split_once(':')
        .and_then(|(epoch, seq)| Some((Epoch(epoch.parse().ok()?), Seq(seq.parse().ok()?))));
    parsed.ok_or_else(|| {
        let shown: String = text.chars().take(64).collect();
        Error::invalid("subscribe.start", format!("`{shown}` is no cursor EPOCH:SEQ"))
    })
}
