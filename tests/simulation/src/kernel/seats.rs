//! The four cores, as they sit in a simulated kernel.

use eclosion_arbitration::ArbitrationOptions;
use eclosion_pool_manager::PoolOptions;

use super::*;
use crate::jobs::{CPU_MILLIS, MEMORY_BYTES};

/// A core in this world.
pub(crate) trait Simulated: Core + Sized {
    const WHO: Who;
    fn core(world: &World) -> Self;
    fn seat(kernel: &mut Kernel) -> &mut Seat<Self>;
    fn effects(effects: Vec<(EffectId, Self::Effect)>) -> Effects;
    /// Whether it asks this actor for something.
    fn asks(effect: &Self::Effect, target: Who) -> bool;
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
        let twice = u64::from(world.canary == Some(Canary::GrantTwice)) + 1;
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

    fn asks(_: &Self::Effect, target: Who) -> bool {
        target == Who::Pool
    }
}

impl From<Mail<Arbitration>> for Envelope {
    fn from(mail: Mail<Arbitration>) -> Self {
        Envelope::Arbitration(mail)
    }
}

impl From<Mail<Pool>> for Envelope {
    fn from(mail: Mail<Pool>) -> Self {
        Envelope::Pool(mail)
    }
}

impl From<Mail<DagTracker>> for Envelope {
    fn from(mail: Mail<DagTracker>) -> Self {
        Envelope::Dag(mail)
    }
}
