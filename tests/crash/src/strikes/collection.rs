//! The kernel is killed while it collects what a plan showed. The next one finishes; what a run that is under way or a pin
//! holds is there afterwards, byte for byte.

use std::collections::BTreeSet;
use std::fs;

use eclosion_client::CallOptions;
use eclosion_schemas::ops::artifact::{List, ListRequest, Pin, PinRequest, Verify, VerifyRequest};
use eclosion_schemas::ops::gc::{Apply, ApplyRequest, Plan, PlanRequest, Trash, TrashRequest};
use eclosion_schemas::ops::run::{Get, RunRequest};
use eclosion_schemas::view::TaskState;
use eclosion_schemas::{Operation, codec};

use crate::account::Collection;
use crate::failure::{Failure, ensure};
use crate::round::Round;
use crate::seed::Seed;
use crate::watch;

const WIDTH: u64 = 40;
/// Of what the first run has made, so much is held by a pin, and half by a run.
const PINNED_WIDTH: u64 = 4;

impl Round {
    pub(crate) async fn kill_collection(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        self.kernel.keep_nothing();
        self.begin_again().await?;

        // Nobody holds the first; one artifact of the second is pinned; the third is under way.
        self.blobs(1, WIDTH, 0).await?;
        self.run_succeeds().await?;
        self.blobs(1, PINNED_WIDTH, 0).await?;
        self.run_succeeds().await?;
        self.pin_one(dice).await?;
        let mut held = self.digests().await?;
        self.blobs(WIDTH / 2 + 1, WIDTH, 1).await?;
        self.until("the third run has everything in hand", |run| {
            run.tasks.iter().any(|task| task.task.as_str() == "finish" && task.state == TaskState::Running)
        })
        .await?;
        held.append(&mut self.digests().await?);

        let plan = self.client.call::<Plan>(PlanRequest { only: None }).await?;
        let planned: BTreeSet<String> = plan.items.iter().map(|item| item.item.to_string()).collect();
        ensure(planned.len() as u64 >= WIDTH / 2 - PINNED_WIDTH, || {
            format!("too little to be struck: {planned:?}")
        })?;
        self.strike_amid_collection(dice).await?;

        self.client = self.kernel.start().await?;
        self.client.call::<Apply>(ApplyRequest::default()).await?;
        let trash = self.client.call::<Trash>(TrashRequest {}).await?;
        let moving: Vec<_> = trash.items.iter().filter(|item| item.state != "trashed").collect();
        ensure(moving.is_empty(), || format!("a collection was not finished: {moving:?}"))?;
        self.what_is_held_is_there(&held).await?;
        self.account.collections.push(Collection { planned, held });
        self.open_gate(&format!("blobs-{}", self.run))?;
        self.run_succeeds().await
    }

    /// Some items are in the trash, and most are not.
    async fn strike_amid_collection(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        let trash = self.kernel.instance().join("artifacts/trash");
        fs::create_dir_all(&trash)?;
        let request = codec::encode(&ApplyRequest::default())?;
        let applying = self.client.open(Apply::NAME, request.into(), CallOptions::default()).await?;
        let moved = 1 + dice.below(WIDTH / 4) as usize;
        let count = || fs::read_dir(&trash).into_iter().flatten().count();
        watch::until(&trash, "some are in the trash", || (count() >= moved).then_some(())).await?;
        self.kernel.kill().await?;
        self.account.kills.kernel += 1;
        drop(applying);
        Ok(())
    }

    /// A run of so many artifacts, each by its number, so that runs have some of them in common.
    async fn blobs(&mut self, first: u64, width: u64, holds: u64) -> Result<(), Failure> {
        self.start("flow/blobs.toml", &[("first", first), ("width", width), ("holds", holds)], width).await
    }

    async fn pin_one(&self, dice: &mut Seed) -> Result<(), Failure> {
        let name = format!("{}/blob[{}]", self.run, dice.below(PINNED_WIDTH));
        self.client.call::<Pin>(PinRequest { name, holder: "crash".into(), reason: "held".into() }).await?;
        Ok(())
    }

    async fn digests(&self) -> Result<BTreeSet<String>, Failure> {
        let request = ListRequest { run: Some(self.run.clone()), prefix: String::new(), limit: 1000 };
        let artifacts = self.client.call::<List>(request).await?.artifacts;
        Ok(artifacts.iter().filter_map(|made| Some(made.digest.as_ref()?.to_string())).collect())
    }

    async fn what_is_held_is_there(&self, held: &BTreeSet<String>) -> Result<(), Failure> {
        // What lies in the trash is named still, and is not where it was.
        let verified = self.client.call::<Verify>(VerifyRequest { name: None }).await?;
        let lost: Vec<_> = verified.bad.iter().filter(|digest| held.contains(digest.as_str())).collect();
        ensure(lost.is_empty() && verified.checked >= held.len() as u64, || {
            format!("{} are held, of these are lost: {lost:?}", held.len())
        })?;
        let run = self.client.call::<Get>(RunRequest { run: self.run.clone() }).await?;
        ensure(!run.run.state.is_final(), || format!("a run that was under way ended: {:?}", run.run.state))
    }
}
