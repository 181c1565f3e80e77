//! How many workers there are to be: started for those who wait, ended when nobody has used them or another environment
//! needs their place.

use super::*;

impl Due<'_> {
    /// Starts workers for those who are still in line, makes room for them, and ends what idles.
    pub(super) fn workers(&mut self, line: &Line, idle: &Idle) {
        let alive = self.state.own_workers();
        let mut room = line.most(self.options.workers_max).saturating_sub(alive);
        let mut wanted = 0;
        let mut counter = self.state.worker_counter;
        for (environment, demand) in self.demand(line, idle) {
            if !self.may_launch(&environment) {
                continue;
            }
            let launches = demand.min(room);
            room -= launches;
            wanted += demand - launches;
            for _ in 0..launches {
                counter += 1;
                let worker = worker_id(self.epoch, counter);
                self.push(WorkerRequested { worker, environment: environment.clone() });
            }
        }
        let leaving = self.state.workers.values().filter(|worker| worker.stopping.is_some()).count();
        self.stop_idle(line, idle, wanted.saturating_sub(leaving));
    }

    /// How many more workers those in line and the calls could use, per environment.
    fn demand(&self, line: &Line, idle: &Idle) -> BTreeMap<EnvironmentId, usize> {
        let mut demand: BTreeMap<EnvironmentId, usize> = BTreeMap::new();
        for (environment, waiting) in line.environments() {
            *demand.entry(environment.clone()).or_default() += waiting;
        }
        for call in line.calls.values().filter(|call| call.waits()) {
            *demand.entry(call.environment.clone()).or_default() += 1;
        }
        for (id, _) in &line.answered {
            if let Some(waiting) = line.wish(*id).and_then(|wish| demand.get_mut(&wish.environment)) {
                *waiting -= 1;
            }
        }
        for (environment, wanted) in &mut demand {
            let starting = self.state.workers.values().filter(|worker| {
                worker.environment == *environment && matches!(worker.phase, WorkerPhase::Requested { .. })
            });
            let free = idle.get(environment).map_or(0, Vec::len);
            *wanted = wanted.saturating_sub(starting.count() + free);
        }
        demand
    }

    fn may_launch(&self, environment: &EnvironmentId) -> bool {
        self.state.environments.get(environment).is_some_and(|environment| {
            matches!(environment.phase, EnvironmentPhase::Ready { .. })
                && environment.launch_failures < self.options.launch_failures_max
                && launch_at(self.options, environment) <= self.now
        })
    }

    /// Ends workers that nobody has used for `idle_ms`, and `room` more that nobody waits for.
    fn stop_idle(&mut self, line: &Line, idle: &Idle, mut room: usize) {
        for (environment, workers) in idle {
            if line.tenants(environment).is_some() {
                continue;
            }
            let spare = spare(self.options, self.state, environment);
            let mut stopped = 0;
            for id in workers {
                let worker = self.state.workers.get(id).filter(|worker| !worker.attached);
                let Some(worker) = worker else { continue };
                let expired = stopped < spare && worker.since.plus_ms(self.options.idle_ms) <= self.now;
                if room > 0 {
                    room -= 1;
                    self.push(stopping(id, "another environment needs its place"));
                } else if expired {
                    self.push(stopping(id, "it was idle"));
                } else {
                    continue;
                }
                stopped += 1;
            }
        }
    }
}
