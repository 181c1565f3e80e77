//! The cores, as they sit in a simulated kernel.

use eclosion_arbitration::ArbitrationOptions;
use eclosion_pool_manager::PoolOptions;

use super::*;
use eclosion_stale_manager::{Limits, RetentionOptions};

use crate::jobs::{CPU_MILLIS, MEMORY_BYTES};

/// A core in this world.
pub(crate) trait Simulated: Core + Sized {
    const WHO: Who;
    fn core(world: &World) -> Self;
    fn seat(kernel: &mut Kernel) -> &mut Seat<Self>;
    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects;
    /// Whether it asks this actor for something.
    fn asks(effect: &Self::Effect, target: Who) -> bool;
    /// Whether it need not wait for *written*, as the actor says.
    fn stays_inside(effect: &Self::Effect) -> bool {
        EVERYBODY.iter().any(|who| Self::asks(effect, *who))
    }
}

impl Simulated for Artifacts {
    const WHO: Who = Who::Artifacts;

    fn core(_: &World) -> Self {
        Artifacts
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.artifacts
    }

    fn effects(_: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::None
    }

    fn asks(_: &Self::Effect, _: Who) -> bool {
        false
    }
}

impl Simulated for Arbitration {
    const WHO: Who = Who::Arbitration;

    fn core(world: &World) -> Self {
        let twice = u64::from(world.has(Mutant::GrantTwice)) + 1;
        Arbitration { options: ArbitrationOptions::new(CPU_MILLIS * twice, MEMORY_BYTES * twice) }
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.arbitration
    }

    fn effects(_: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::None
    }

    fn asks(_: &Self::Effect, _: Who) -> bool {
        false
    }
}

impl Simulated for Pool {
    const WHO: Who = Who::Pool;

    fn core(world: &World) -> Self {
        let mut options = PoolOptions::new(3);
        options.idle_ms = 1_500;
        let bodies = world.kernel.as_ref().map(|kernel| kernel.bodies.clone()).unwrap_or_default();
        Pool { options, bodies }
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.pool
    }

    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::Pool(effects)
    }

    fn asks(effect: &Self::Effect, target: Who) -> bool {
        use eclosion_pool_manager::Effect::{Acquire, Release};
        target == Who::Arbitration && matches!(effect, Acquire(_) | Release(_))
    }
}

impl Simulated for DagTracker {
    const WHO: Who = Who::Dag;

    fn core(_: &World) -> Self {
        DagTracker::default()
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.dag
    }

    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::Dag(effects)
    }

    fn asks(effect: &Self::Effect, target: Who) -> bool {
        target == Who::Pool && !matches!(effect, eclosion_dag_tracker::Effect::Look(_))
    }
}

impl Simulated for Scheduler {
    const WHO: Who = Who::Scheduler;

    fn core(_: &World) -> Self {
        Scheduler::default()
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.scheduler
    }

    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::Scheduler(effects)
    }

    fn asks(effect: &Self::Effect, target: Who) -> bool {
        use eclosion_scheduler::Effect::{Cancel, Start};
        let is_asked = match effect {
            Start { spec, .. } => matches!(spec.action, eclosion_schemas::schedule::Action::Run { .. }),
            Cancel { .. } => true,
        };
        target == Who::Dag && is_asked
    }
}

impl Simulated for Stale {
    const WHO: Who = Who::Stale;

    /// Everything is short, so that a world of seconds sees what a machine sees in a month.
    fn core(_: &World) -> Self {
        let kept = |age_ms, count_max| Limits { age_ms, count_max, bytes_max: 1 << 40 };
        let options = RetentionOptions {
            interval_ms: 600,
            quota_bytes: 60_000,
            disk_free_min_bytes: 0,
            trash_grace_ms: 900,
            runs: kept(1_500, 6),
            logs: kept(1_500, 4),
            environments: kept(1_200, 1),
            record_age_ms: 3_000,
            record_count_max: 12,
            unnamed_ms: 600,
            leftover_ms: 500,
            origins: BTreeMap::new(),
        };
        Stale { options }
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.stale
    }

    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::Stale(effects)
    }

    fn asks(_: &Self::Effect, _: Who) -> bool {
        false
    }
}

impl Simulated for Audit {
    const WHO: Who = Who::Audit;

    fn core(_: &World) -> Self {
        Audit
    }

    fn seat(kernel: &mut Kernel) -> &mut Seat<Self> {
        &mut kernel.audit
    }

    fn effects(_: Vec<(EffectId, Self::Effect)>) -> Effects {
        Effects::None
    }

    fn asks(_: &Self::Effect, _: Who) -> bool {
        false
    }
}
