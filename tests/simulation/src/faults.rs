//! What goes wrong: actors panic, workers are killed, the kernel is killed, the power fails.

use std::sync::Arc;

use eclosion_arbitration::Arbitration;
use eclosion_artifact_store::Artifacts;
use eclosion_dag_tracker::DagTracker;
use eclosion_kernel::journal::{Append, AppendError};
use eclosion_pool_manager::Pool;
use eclosion_schemas::certificate::Death;

use crate::kernel::{Kernel, KernelEvent};
use crate::world::{EVERYBODY, Event, FAULTS_UNTIL_US, Who, World};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    Boot,
    Panic(Who),
    KillWorker,
    KillKernel,
    CutPower,
}

impl World {
    /// Some seeds are rough, some are quiet: at most five panics, six killed workers, four killed kernels, two power cuts.
    pub(crate) fn plan_faults(&mut self) {
        for (most, kind) in [(5, 0), (6, 1), (4, 2), (2, 3)] {
            for _ in 0..self.rng.range(0, most + 1) {
                let at_us = self.rng.range(1_000, FAULTS_UNTIL_US);
                let who = self.rng.pick(&EVERYBODY).copied().unwrap_or(Who::Pool);
                let fault = match kind {
                    0 => Fault::Panic(who),
                    1 => Fault::KillWorker,
                    2 => Fault::KillKernel,
                    _ => Fault::CutPower,
                };
                self.after(at_us, Event::Fault(fault));
            }
        }
        self.plan_sudden_ends();
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

    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Boot => self.boot(),
            Fault::Panic(Who::Artifacts) => self.panic::<Artifacts>(),
            Fault::Panic(Who::Arbitration) => self.panic::<Arbitration>(),
            Fault::Panic(Who::Pool) => self.panic::<Pool>(),
            Fault::Panic(Who::Dag) => self.panic::<DagTracker>(),
            Fault::KillWorker => {
                let workers: Vec<_> = self.machine.processes.keys().cloned().collect();
                if let Some(worker) = self.rng.pick(&workers).cloned() {
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
            Fault::CutPower => {
                self.checks.counts.power_cuts += 1;
                if self.kernel.is_some() {
                    self.end_kernel();
                }
                self.machine.end_all();
                self.disk.cut(&mut self.rng);
                self.say(|| "the power fails".into());
                self.check_after_cut();
            }
        }
    }

    /// SIGKILL: what is in the process is gone, a transaction under way has happened or not.
    fn end_kernel(&mut self) {
        self.check_replay();
        let Some(kernel) = self.kernel.take() else { return };
        self.life += 1;
        if kernel.writing > 0 && self.rng.per_mille(500) {
            let batch = kernel.journal.unwritten(kernel.writing);
            self.disk.write(&batch);
            self.check_written(&batch);
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
        let kernel = Kernel::new(&self.disk);
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
        self.begin::<Artifacts>(false);
        self.begin::<Arbitration>(false);
        self.begin::<Pool>(false);
        self.begin::<DagTracker>(false);
        self.attach_survivors();
        let after_us = self.rng.range(100, 50_000);
        self.soon(after_us, KernelEvent::Run);
    }
}
