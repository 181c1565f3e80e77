//! The kernel is killed around ticks of a schedule, again and again. Each instant is decided once and none is missing,
//! and what a tick starts is started once.

use std::time::Duration;

use eclosion_schemas::ops::schedule::{ActRequest, History, HistoryRequest, Pause, Remove, Set, SetRequest};
use eclosion_schemas::schedule::{Action, Misfire, Overlap, ScheduleSpec, TickState, TickView, Trigger};
use eclosion_schemas::{ScheduleName, Timestamp};

use crate::account::Schedule;
use crate::failure::{Failure, ensure};
use crate::round::{Round, flow_of, parameters};
use crate::seed::Seed;

const EVERY_MS: u64 = 150;
const TICKS_MAX: u32 = 1_000;

impl Round {
    pub(crate) async fn kill_around_ticks(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        let name = format!("beat-{}", self.account.schedules.len());
        let schedule = ScheduleName::new(name.as_str()).map_err(Failure::new)?;
        self.client.call::<Set>(self.beating(schedule.clone())?).await?;
        self.account.schedules.push(Schedule { name, every_ms: EVERY_MS });
        for _ in 0..2 + dice.below(2) {
            let before = self.ticks(&schedule).await?.len();
            let more = async || Ok((self.ticks(&schedule).await?.len() > before).then_some(()));
            self.until_asked("it ticks", more).await?;
            // Anywhere between this tick and the next but one: nothing tells from outside when the next is decided.
            tokio::time::sleep(Duration::from_millis(dice.below(2 * EVERY_MS))).await;
            self.kernel.kill().await?;
            self.account.kills.kernel += 1;
            self.client = self.kernel.start().await?;
        }
        let pause = ActRequest { name: schedule.clone(), reason: "enough".into() };
        self.client.call::<Pause>(pause).await?;
        let all_ended = async || {
            let ticks = self.ticks(&schedule).await?;
            Ok(ticks.iter().all(has_ended).then_some(ticks))
        };
        let ticks = self.until_asked("what ticks have started has ended", all_ended).await?;
        let failed: Vec<_> = ticks.iter().filter(|tick| tick.state == TickState::Failed).collect();
        ensure(failed.is_empty(), || format!("ticks failed: {failed:?}"))?;
        self.client.call::<Remove>(ActRequest { name: schedule, reason: String::new() }).await?;
        Ok(())
    }

    fn beating(&self, name: ScheduleName) -> Result<SetRequest, Failure> {
        let flow = Box::new(flow_of("flow/beat.toml")?);
        let set = parameters(self.kernel.directory(), &[]);
        let trigger = Trigger::Every { every_ms: EVERY_MS, anchor: Timestamp::default() };
        let spec = ScheduleSpec {
            misfire: Some(Misfire::RunAll { max: TICKS_MAX }),
            grace_ms: Some(0),
            overlap: Some(Overlap::Allow { max: 64 }),
            ..ScheduleSpec::new(trigger, Action::Run { flow, set, tenant: None })
        };
        Ok(SetRequest { name, spec, replace: false })
    }

    async fn ticks(&self, name: &ScheduleName) -> Result<Vec<TickView>, Failure> {
        let request = HistoryRequest { name: name.clone(), limit: TICKS_MAX };
        Ok(self.client.call::<History>(request).await?.ticks)
    }
}

fn has_ended(tick: &TickView) -> bool {
    !matches!(tick.state, TickState::Queued | TickState::Starting | TickState::Running)
}
