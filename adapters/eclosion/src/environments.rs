//! Implements the pool manager's port for environments: builds in the background, publishes progress, reports the end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use eclosion_bus::{Publication, Subject};
use eclosion_environments::{Environments, Progress};
use eclosion_kernel::Kernel;
use eclosion_pool_manager::EnvironmentBuilder;
use eclosion_schemas::EnvironmentId;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::pool::{EnvironmentBuilt, EnvironmentBuiltRequest};

use crate::report::until_heard;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Builds(Arc<Shared>);

struct Shared {
    environments: Arc<Environments>,
    kernel: OnceLock<Kernel>,
    /// Told twice is built once.
    building: Mutex<BTreeSet<EnvironmentId>>,
}

impl Builds {
    pub(crate) fn new(environments: Arc<Environments>) -> Self {
        Self(Arc::new(Shared { environments, kernel: OnceLock::new(), building: Mutex::default() }))
    }

    /// Once the kernel has started.
    pub(crate) fn attach(&self, kernel: &Kernel) {
        // A builder belongs to one kernel; a second attach is the same one.
        let _ = self.0.kernel.set(kernel.clone());
    }

    async fn run(&self, kernel: &Kernel, environment: EnvironmentId, spec: EnvironmentSpec) {
        let progress = |progress: Progress| publish(kernel, &environment, progress);
        let built = self.0.environments.build(&environment, &spec, progress).await;
        let (python, error) = match built {
            Ok(python) => (Some(python.to_string_lossy().into_owned()), None),
            Err(error) => (None, Some(error)),
        };
        let request = EnvironmentBuiltRequest { environment: environment.clone(), python, error };
        if let Err(refusal) = until_heard::<EnvironmentBuilt>(kernel.bus(), request).await {
            tracing::warn!(%environment, %refusal, "nobody heard that it was built");
        }
        self.0.building.lock().unwrap_or_else(PoisonError::into_inner).remove(&environment);
    }
}

fn publish(kernel: &Kernel, environment: &EnvironmentId, progress: Progress) {
    let Ok(subject) = format!("environment/{environment}/progress").parse::<Subject>() else { return };
    let journal = kernel.journal();
    kernel.bus().publish(&subject, Publication::new(journal.epoch(), journal.marks().synced, progress));
}

impl EnvironmentBuilder for Builds {
    fn build(&self, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        let Some(kernel) = self.0.kernel.get().cloned() else { return };
        let first =
            self.0.building.lock().unwrap_or_else(PoisonError::into_inner).insert(environment.clone());
        if first {
            let (builds, environment, spec) = (self.clone(), environment.clone(), spec.clone());
            tokio::spawn(async move { builds.run(&kernel, environment, spec).await });
        }
    }
}
