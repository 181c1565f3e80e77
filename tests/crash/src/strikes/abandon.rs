//! The kernel stops in the middle of a run, or is killed and nobody starts another: at once, or after the grace, nothing
//! of it is left.

use std::time::Duration;

use crate::failure::Failure;
use crate::round::Round;

/// Long enough to be seen, short enough to be waited for.
const GRACE_MS: u64 = 300;
/// The grace, what workers may take to obey SIGTERM, and a slow machine.
const ENDING: Duration = Duration::from_secs(20);

impl Round {
    pub(crate) async fn abandon(&mut self) -> Result<(), Failure> {
        // A grace is its keeper's from the beginning, so one that is to be short needs another keeper.
        // It stops in the middle of the run, and takes everybody along although there is work for them.
        self.kernel.stop(&self.client).await?;
        self.nothing_is_left(ENDING)?;
        self.account.kills.kernel += 1;
        self.account.kills.keeper += 1;
        self.kernel.set_grace(Some(GRACE_MS));
        self.client = self.kernel.start().await?;
        self.second_layer_runs().await?;
        for pid in self.busy().await?.into_keys() {
            self.ledger.has_started(pid).await?;
        }
        self.kernel.kill().await?;
        self.account.kills.kernel += 1;
        self.nothing_is_left(ENDING)?;
        // The keeper ended its workers, and no kernel saw it.
        self.account.kills.keeper += 1;
        self.kernel.set_grace(None);
        self.client = self.kernel.start().await?;
        Ok(())
    }
}
