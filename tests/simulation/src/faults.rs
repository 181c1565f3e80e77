//! What goes wrong, and in which order.
//!
//! Every world has its single faults at random times: actors panic, workers are killed, the kernel is killed, the power
//! fails, the disk refuses. One nemesis more gives it a character of its own; see [`Nemesis`].

use std::sync::Arc;

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_audit::Audit;
use eclosion_dag_tracker::DagTracker;
use eclosion_kernel::journal::{Append, AppendError};
use eclosion_pool_manager::Pool;
use eclosion_scheduler::Scheduler;
use eclosion_schemas::certificate::Death;
use eclosion_schemas::ops::gc::ItemKind;
use eclosion_stale_manager::Stale;

use crate::disk::Failing;
use crate::kernel::{Kernel, KernelEvent, of};
use crate::machine::item;
use crate::mutants::Mutant;
use crate::rng::Rng;
use crate::world::{EVERYBODY, Event, FAULTS_UNTIL_US, Who, World};

/// What a world is tried by, beside its single faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nemesis {
    None,
    /// Actors go down one by one in one order, and come back in another.
    Swizzle,
    /// The next kernel is killed while it recovers, up to three deep.
    RecoveryCrash,
    /// The machine's clock is put forward and back, by seconds, hours and years.
    ClockJumps,
    /// One actor panics again and again, until its supervisor gives up.
    RestartStorm,
    /// All workers at once.
    WorkerMassacre,
}

impl Nemesis {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        match rng.range(0, 8) {
            0 | 1 => Self::Swizzle,
            2 => Self::RecoveryCrash,
            3 | 4 => Self::ClockJumps,
            5 => Self::RestartStorm,
            6 => Self::WorkerMassacre,
            _ => Self::None,
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Boot,
    Panic(Who),
    /// It goes down, and comes back after this.
    Down(Who, u64),
    KillWorker,
    KillWorkers,
    KillKernel,
    CutPower,
    Disk(Failing),
    /// The clock is put forward or back.
    Jump(i64),
    /// A mistake on purpose: leases end by the clock.
    ExpireLeases,
}

impl World {
    /// Some seeds are rough, some are quiet: at most five panics, six killed workers, four killed kernels, two power cuts
    /// and a disk that fails once; then the nemesis.
    pub(crate) fn plan_faults(&mut self) {
        for (most, kind) in [(5, 0), (6, 1), (4, 2), (2, 3), (1, 4)] {
            for _ in 0..self.rng.range(0, most + 1) {
                let who = self.rng.pick(&EVERYBODY).copied().unwrap_or(Who::Pool);
                let failing = [Failing::Write, Failing::Full, Failing::Sync];
                let failing = self.rng.pick(&failing).copied().unwrap_or(Failing::Sync);
                self.plan_one(match kind {
                    0 => Fault::Panic(who),
                    1 => Fault::KillWorker,
                    2 => Fault::KillKernel,
                    3 => Fault::CutPower,
                    _ => Fault::Disk(failing),
                });
            }
        }
        self.plan_sudden_ends();
        self.plan_nemesis();
    }

    fn plan_one(&mut self, fault: Fault) {
        let at_us = self.rng.range(1_000, FAULTS_UNTIL_US);
        self.after(at_us, Event::Fault(fault));
    }

    /// Some while somebody is being told that a run has started.
    fn plan_sudden_ends(&mut self) {
        let times: Vec<_> = self.client.jobs.iter().map(|(job, _)| job.at_us).collect();
        for at_us in times {
            let at_us = at_us + self.rng.range(50, 12_000);
            match self.rng.range(0, 20) {
                0 => self.after(at_us, Event::Fault(Fault::CutPower)),
                1 => self.after(at_us, Event::Fault(Fault::KillKernel)),
                _ => {}
            }
        }
    }

    fn plan_nemesis(&mut self) {
        *self.checks.counts.nemeses.entry(format!("{:?}", self.nemesis)).or_default() += 1;
        match self.nemesis {
            Nemesis::None | Nemesis::RecoveryCrash => {}
            Nemesis::Swizzle => {
                for _ in 0..self.rng.range(1, 3) {
                    self.plan_swizzle();
                }
            }
            Nemesis::ClockJumps => {
                for _ in 0..self.rng.range(1, 5) {
                    let jump = self.jump_ms();
                    self.plan_one(Fault::Jump(jump));
                }
            }
            Nemesis::RestartStorm => {
                let who = self.rng.pick(&EVERYBODY).copied().unwrap_or(Who::Dag);
                let from_us = self.rng.range(1_000, FAULTS_UNTIL_US - 1_000_000);
                for _ in 0..12 {
                    let at_us = from_us + self.rng.range(0, 900_000);
                    self.after(at_us, Event::Fault(Fault::Panic(who)));
                }
            }
            Nemesis::WorkerMassacre => {
                for _ in 0..3 {
                    self.plan_one(Fault::KillWorkers);
                }
            }
        }
    }

    /// A random part of the actors, one after the other; the last one down may be the first to come back.
    fn plan_swizzle(&mut self) {
        let mut at_us = self.rng.range(1_000, FAULTS_UNTIL_US - 1_500_000);
        let mut back_us = at_us + 700_000;
        let mut downs = Vec::new();
        for who in EVERYBODY {
            if self.rng.per_mille(600) {
                at_us += self.rng.range(1_000, 80_000);
                downs.push((at_us, who));
            }
        }
        while !downs.is_empty() {
            let index = usize::try_from(self.rng.range(0, downs.len() as u64)).unwrap_or_default();
            let (at_us, who) = downs.swap_remove(index);
            back_us += self.rng.range(1_000, 80_000);
            self.after(at_us, Event::Fault(Fault::Down(who, back_us - at_us)));
        }
    }

    /// Back by no more than what a world waits for at its end: whoever waits for an hour of the clock waits for it.
    fn jump_ms(&mut self) -> i64 {
        const HOUR_MS: i64 = 3_600_000;
        match self.rng.range(0, 6) {
            0 => HOUR_MS,
            1 => 10 * 365 * 24 * HOUR_MS,
            2 => i64::try_from(self.rng.range(100, 10_000)).unwrap_or_default(),
            _ => -i64::try_from(self.rng.range(100, 20_000)).unwrap_or_default(),
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Boot => self.boot(),
            Fault::Panic(who) => of!(who, self.panic()),
            Fault::Down(who, for_us) => of!(who, self.end_incarnation(for_us)),
            Fault::KillWorker => {
                let workers: Vec<_> = self.machine.processes.keys().cloned().collect();
                if let Some(worker) = self.rng.pick(&workers).cloned() {
                    self.checks.counts.workers_killed += 1;
                    self.end_process(&worker, Death::Killed { signal: 9, sender: None });
                }
            }
            Fault::KillWorkers => {
                for worker in self.machine.processes.keys().cloned().collect::<Vec<_>>() {
                    self.checks.counts.workers_killed += 1;
                    self.end_process(&worker, Death::Killed { signal: 9, sender: None });
                }
            }
            Fault::KillKernel => {
                if self.kernel.is_some() {
                    self.checks.counts.kernels_killed += 1;
                    self.end_kernel();
                }
            }
            Fault::CutPower => self.cut_power(),
            Fault::Disk(failing) => self.disk.fail_next(failing),
            Fault::Jump(ms) => {
                self.checks.counts.clock_jumps += 1;
                self.skew_ms += ms;
                self.say(|| format!("the clock is put by {ms} ms"));
            }
            Fault::ExpireLeases => self.expire_leases(),
        }
    }

    fn cut_power(&mut self) {
        self.checks.counts.power_cuts += 1;
        let safe = self.disk.mark();
        if self.kernel.is_some() {
            self.end_kernel();
        }
        self.machine.end_all();
        let (torn, missing) = self.disk.cut(&mut self.rng);
        let (nameless, torn_files) = self.files.cut(&mut self.rng);
        let counts = &mut self.checks.counts;
        counts.torn += torn + torn_files;
        counts.missing += missing;
        counts.nameless += nameless;
        self.say(|| "the power fails".into());
        self.check_after_cut(safe);
    }

    /// SIGKILL: what is in the process is gone, a transaction under way has happened or not.
    pub(crate) fn end_kernel(&mut self) {
        self.check_replay();
        let Some(kernel) = self.kernel.take() else { return };
        self.checks.counts.died_in_recovery += u64::from(!kernel.is_performing());
        self.files.put(item(ItemKind::Segment, &format!("segment-{}", self.life)), 500, Vec::new());
        self.life += 1;
        let is_poisoned = kernel.journal.poisoned().is_some();
        if kernel.writing > 0 && !is_poisoned && self.rng.per_mille(500) {
            let batch = kernel.journal.unwritten(kernel.writing);
            if self.disk.write(&batch).is_ok() {
                self.check_written(&batch);
            }
        }
        // Whatever it lets out now, nobody is there to perform it.
        kernel.journal.poison("killed");
        self.say(|| "the kernel is killed".into());
        let down_us = self.rng.range(1_000, 800_000);
        self.after(down_us, Event::Fault(Fault::Boot));
    }

    /// Fold, adopt, run.
    fn boot(&mut self) {
        if self.kernel.is_some() {
            return;
        }
        self.life += 1;
        let opened = match self.disk.open() {
            Ok(opened) => opened,
            Err(why) => return self.fail(format!("what was synced is lost: {why}")),
        };
        // As the journal does with its tail: what an earlier life has sealed is synced before it is shown.
        if !self.has(Mutant::OpenWithoutSync) {
            self.files.sync();
        }
        self.check_opened();
        let kernel = Kernel::new(&self.disk, opened, &self.files);
        let journal = Arc::clone(&kernel.journal);
        self.kernel = Some(kernel);
        self.say(|| format!("a kernel begins epoch {}", journal.epoch()));
        let nothing = Append {
            events: Vec::new(),
            at: self.now(),
            cause: None,
            folded: journal.marks().appended,
            folds: &[],
        };
        if let Err(AppendError::Refused(why)) = journal.append(&nothing) {
            return self.fail(format!("a new kernel cannot append: {why}"));
        }
        for who in EVERYBODY {
            of!(who, self.begin(false));
        }
        self.attach_survivors();
        let recovers_us = self.rng.range(100, 50_000);
        self.soon(recovers_us, KernelEvent::Run);
        if self.nemesis == Nemesis::RecoveryCrash && self.has_faults() && self.rng.per_mille(600) {
            let at_us = self.rng.range(0, recovers_us);
            let fault = if self.rng.per_mille(300) { Fault::CutPower } else { Fault::KillKernel };
            self.after(at_us, Event::Fault(fault));
        }
    }

    /// What the mutant does: a lease of half a second, whatever its attempt does.
    fn expire_leases(&mut self) {
        use eclosion_schemas::events::LeaseReleased;
        self.after(200_000, Event::Fault(Fault::ExpireLeases));
        let old = self.now().0.saturating_sub(500);
        let leases = self.checks.leases_older_than(eclosion_schemas::Timestamp(old));
        let Some(kernel) = &mut self.kernel else { return };
        let journal = Arc::clone(&kernel.journal);
        let events =
            leases.into_iter().map(|lease| LeaseReleased { lease, reason: "its time is over".into() }.into());
        let (events, folded) = (events.collect(), journal.marks().appended);
        let append = Append { events, at: self.now(), cause: None, folded, folds: &[] };
        // A poisoned journal takes nothing; then there is nothing to expire either.
        let _ = journal.append(&append);
        self.fold::<Arbitration>();
    }
}
