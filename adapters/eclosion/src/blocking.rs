//! A kernel for programs without a runtime: it owns one, and every method waits.
//!
//! ```
//! # fn main() -> Result<(), eclosion::schemas::Error> {
//! let kernel = eclosion::blocking::Kernel::start(eclosion::Kernel::builder().ephemeral())?;
//! assert!(!kernel.get().rows().is_empty());
//! kernel.shutdown();
//! # Ok(()) }
//! ```
//!
//! Dropped without a shutdown it ends like a kernel that was killed: what was acknowledged is in the journal, and that is
//! all. Its methods may not be called from inside a runtime, where waiting would stop everything else.

use std::time::Duration;

use eclosion_bus::{Delivery, Filter, Subscription};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::OnFull;
use eclosion_schemas::{Code, Error};
use tokio::runtime::{Handle, Runtime};

use crate::builder::Builder;

/// How long what is still under way may take to be dropped.
const LEAVE: Duration = Duration::from_millis(300);
/// Changes that wait for a slow reader before some are dropped, counted.
const CHANGES_MAX: usize = 1024;

/// See the head of this file.
#[derive(Debug)]
pub struct Kernel {
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    kernel: crate::Kernel,
}

impl Kernel {
    /// Starts a runtime, and the kernel on it.
    ///
    /// # Errors
    /// `precondition` inside a runtime; what [`Builder::start`] says otherwise.
    pub fn start(builder: Builder) -> Result<Self, Error> {
        outside()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("eclosion")
            .enable_all()
            .build()
            .map_err(|why| Error::new(Code::Unavailable, "blocking.runtime", why.to_string()))?;
        let kernel = runtime.block_on(builder.start())?;
        Ok(Self { runtime: Some(runtime), kernel })
    }

    /// The kernel itself, for what does not wait.
    #[must_use]
    pub fn get(&self) -> &crate::Kernel {
        &self.kernel
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// What the actor says, or that it died, or `deadline`.
    pub fn ask<O: Operation>(&self, request: O::Request) -> Result<O::Reply, Error> {
        self.wait(self.kernel.bus().ask::<O>(request).into_future())?
    }

    /// As [`Kernel::ask`], waiting at most `deadline`.
    ///
    /// # Errors
    /// As [`Kernel::ask`].
    pub fn ask_within<O: Operation>(
        &self,
        request: O::Request,
        deadline: Duration,
    ) -> Result<O::Reply, Error> {
        self.wait(self.kernel.bus().ask::<O>(request).deadline(deadline).into_future())?
    }

    /// What is published from now on, after the states that are kept.
    ///
    /// # Errors
    /// `invalid` for a malformed filter.
    pub fn subscribe(&self, filter: &str) -> Result<Changes<'_>, Error> {
        let subscription = self.kernel.bus().subscribe(Filter::new(filter)?, OnFull::Gap, CHANGES_MAX);
        Ok(Changes { kernel: self, subscription })
    }

    /// Ends everything, the journal synced to its end, and the runtime.
    pub fn shutdown(self) {
        // Inside a runtime it cannot be waited for, and ends as if it were killed.
        let _ = self.wait(self.kernel.shutdown());
    }

    /// Waits for anything else on the kernel's runtime.
    ///
    /// # Errors
    /// `precondition` inside a runtime.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        outside()?;
        match &self.runtime {
            Some(runtime) => Ok(runtime.block_on(work)),
            None => Err(Error::internal("blocking.over", "the kernel is gone")),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        match outside() {
            Ok(()) => runtime.shutdown_timeout(LEAVE),
            Err(_) => runtime.shutdown_background(),
        }
    }
}

/// Deliveries, one after the other. It ends with the kernel.
#[derive(Debug)]
pub struct Changes<'a> {
    kernel: &'a Kernel,
    subscription: Subscription,
}

impl Iterator for Changes<'_> {
    type Item = Delivery;

    fn next(&mut self) -> Option<Delivery> {
        self.kernel.wait(self.subscription.next()).ok().flatten()
    }
}

fn outside() -> Result<(), Error> {
    if Handle::try_current().is_err() {
        return Ok(());
    }
    let text = "a runtime is entered here already, and the blocking kernel would stop it";
    Err(Error::new(Code::Precondition, "blocking.inside_runtime", text)
        .help("use eclosion::Kernel and .await"))
}
