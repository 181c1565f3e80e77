//! What the pool manager needs of the outside world. Implemented over processes and sockets, and by simulated twins.
//!
//! Calls return at once; what comes of them is reported as an operation on `/pool` or `/dag`. Each may come twice: the
//! implementer treats a worker, an environment or a fence that it knows as done. Fences that one worker is given only
//! grow, so whatever is not above the last one executed or cancelled there is known.

use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::ReserveRequest;
use eclosion_schemas::ops::task::Execute;
use eclosion_schemas::{EnvironmentId, Fence, WorkerId};

/// Starts workers and talks to them.
pub trait Launcher: Send + Sync + 'static {
    /// Leads to `pool.worker_up` or `pool.worker_down`.
    fn launch(&self, worker: &WorkerId, environment: &EnvironmentId, python: &str, spec: &EnvironmentSpec);

    /// Leads to `step.commit` or `step.fail` on `/dag`; when that says `stale`, to `pool.worker_idle`.
    fn execute(&self, worker: &WorkerId, execute: Execute);

    /// Begins the ladder. Leads to `step.fail`, `pool.worker_idle` or `pool.worker_down`; a worker that does not compute
    /// this fence is reported idle at once.
    fn cancel(&self, worker: &WorkerId, fence: Fence);

    /// Lets the worker finish what it has in hand and end; one that is not up yet just ends. Leads to
    /// `pool.worker_down`.
    fn stop(&self, worker: &WorkerId);

    /// Kills the worker and all that came of it, for this reason. Leads to `pool.worker_down`.
    fn kill(&self, worker: &WorkerId, reason: &str);

    /// The workers that have a holder now, attached or still expected to attach, and those whose end is still on its way
    /// to the pool manager.
    fn live(&self) -> Vec<WorkerId>;

    /// The workers that calls and services have now, with what was reserved for them.
    fn reserved(&self) -> Vec<(WorkerId, ReserveRequest)>;
}

/// Makes environments.
pub trait EnvironmentBuilder: Send + Sync + 'static {
    /// Leads to `pool.environment_built`; progress is published on `environment/ID/progress`.
    fn build(&self, environment: &EnvironmentId, spec: &EnvironmentSpec);
}
