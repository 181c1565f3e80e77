//! The pool manager's port: builds in the background, says how far it is, and reports the end until it is heard.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use eclosion_bus::{Bus, Publication, Subject};
use eclosion_pool_manager::EnvironmentBuilder;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{EnvironmentBuilt, EnvironmentBuiltRequest};
use eclosion_schemas::{Code, EnvironmentId, Epoch, Error, Seq};

use crate::environments::Environments;
use crate::resolver::Progress;

/// Between two tries to reach a pool manager that is starting again.
const SAY_AGAIN: Duration = Duration::from_millis(200);

/// Builds for one kernel. Cheap to clone; it must be called inside the kernel's runtime.
#[derive(Clone)]
pub struct Builder {
    environments: Arc<Environments>,
    bus: Bus,
    epoch: Epoch,
    /// What is being built: the same again changes nothing.
    building: Arc<Mutex<BTreeSet<EnvironmentId>>>,
    updates: Arc<AtomicU64>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("building", &self.building).finish_non_exhaustive()
    }
}

impl Builder {
    #[must_use]
    pub fn new(environments: Arc<Environments>, bus: Bus, epoch: Epoch) -> Self {
        Self { environments, bus, epoch, building: Arc::default(), updates: Arc::default() }
    }

    async fn run(self, environment: EnvironmentId, spec: EnvironmentSpec) {
        let built = self.environments.build(&spec, |progress| self.publish(&environment, progress)).await;
        let built = match built {
            // Its first worker shall not wait for the runtime, nor find that it cannot be had.
            Ok(python) => self.environments.runtime_paths(&python).await.map(|_| python),
            Err(error) => Err(error),
        };
        let request = match built {
            Ok(python) => EnvironmentBuiltRequest {
                environment: environment.clone(),
                python: Some(python.to_string_lossy().into_owned()),
                error: None,
            },
            Err(error) => {
                EnvironmentBuiltRequest { environment: environment.clone(), python: None, error: Some(error) }
            }
        };
        self.report(request).await;
        self.building.lock().unwrap_or_else(PoisonError::into_inner).remove(&environment);
    }

    /// Nobody need listen.
    fn publish(&self, environment: &EnvironmentId, progress: Progress) {
        if let Ok(subject) = Subject::new(format!("environment/{environment}/progress")) {
            let seq = Seq(self.updates.fetch_add(1, Ordering::Relaxed) + 1);
            self.bus.publish(&subject, Publication::new(self.epoch, seq, progress));
        }
    }

    /// Until the pool manager answers, or says that it never will. A kernel that ends takes the runtime, and this.
    async fn report(&self, request: EnvironmentBuiltRequest) {
        loop {
            match self.bus.ask::<EnvironmentBuilt>(request.clone()).await {
                Ok(_) => return,
                Err(error) if is_passing(&error) => tokio::time::sleep(SAY_AGAIN).await,
                Err(error) => {
                    return tracing::warn!(environment = %request.environment, %error, "a build's end was refused");
                }
            }
        }
    }
}

fn is_passing(error: &Error) -> bool {
    use Code::{Deadline, Exhausted, NoResponders, Unavailable, Unknown};
    matches!(error.code, Unavailable | Exhausted | Deadline | Unknown | NoResponders)
}

impl EnvironmentBuilder for Builder {
    fn build(&self, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        let is_new = self.building.lock().unwrap_or_else(PoisonError::into_inner).insert(environment.clone());
        if is_new {
            tokio::spawn(self.clone().run(environment.clone(), spec.clone()));
        }
    }
}
