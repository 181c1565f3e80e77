//! What the actor needs of the outside world.

use eclosion_schemas::ops::service::{ServiceLife, ServiceSpec};

/// Runs lives of services. Calls return at once; what comes of them is reported as `service.up` and `service.down`.
pub trait Runner: Send + Sync + 'static {
    /// One life. It may be asked for twice, as after a panic of the actor: a life that is known is done. It begins when the
    /// life before it is over, so that both never claim one address.
    fn run(&self, life: &ServiceLife, spec: &ServiceSpec);

    /// Only these are still wanted; others are ended, and nothing is reported of them.
    fn keep(&self, wanted: &[ServiceLife]);
}
