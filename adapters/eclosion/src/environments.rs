//! The pool manager is given its builder before there is a bus to report on; this closes the circle.

use std::sync::{Arc, OnceLock};

use eclosion_environments::{Builder, Environments};
use eclosion_kernel::Kernel;
use eclosion_pool_manager::EnvironmentBuilder;
use eclosion_schemas::EnvironmentId;
use eclosion_schemas::flow::EnvironmentSpec;

/// Cheap to clone. Nothing is asked of it before the kernel has started.
#[derive(Clone)]
pub(crate) struct Builds {
    environments: Arc<Environments>,
    builder: Arc<OnceLock<Builder>>,
}

impl Builds {
    pub(crate) fn new(environments: Arc<Environments>) -> Self {
        Self { environments, builder: Arc::default() }
    }

    /// Once the kernel has started.
    pub(crate) fn attach(&self, kernel: &Kernel) {
        self.builder.get_or_init(|| {
            Builder::new(Arc::clone(&self.environments), kernel.bus().clone(), kernel.journal().epoch())
        });
    }
}

impl EnvironmentBuilder for Builds {
    fn build(&self, environment: &EnvironmentId, spec: &EnvironmentSpec) {
        match self.builder.get() {
            Some(builder) => builder.build(environment, spec),
            None => tracing::error!(%environment, "asked for before the kernel has started"),
        }
    }
}
