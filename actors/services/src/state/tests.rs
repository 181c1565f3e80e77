//! Tables of cases over the core of services.

use std::any::Any;

use eclosion_kernel::engine::Engine;
use eclosion_kernel::journal::memory::MemoryStore;
use eclosion_kernel::journal::{Journal, JournalStore};

use super::*;

struct World {
    store: MemoryStore,
    journal: Journal,
    engine: Engine<Services>,
    now: u64,
}

impl World {
    fn on(store: MemoryStore, now: u64) -> Self {
        let journal = Journal::new(store.open(), Some(store.reader()));
        let mut engine = Engine::new(Services);
        engine.recover(&journal).unwrap();
        let mut world = Self { store, journal, engine, now };
        world.list();
        world
    }

    fn new() -> Self {
        Self::on(MemoryStore::default(), 0)
    }

    fn say<T: Any>(&mut self, command: &Command) -> Result<T, Error> {
        let reads = Reads::new(self.journal.epoch(), 0);
        let step = self.engine.handle(&self.journal, &reads, command, None, Timestamp(self.now));
        step.reply.unwrap().map(|reply| *reply.downcast::<T>().unwrap())
    }

    fn list(&mut self) -> Vec<ServiceView> {
        self.say::<ListReply>(&Command::List(ListRequest { name: None })).unwrap().services
    }

    fn shown(&mut self) -> ServiceView {
        self.list().remove(0)
    }

    fn start(&mut self, spec: ServiceSpec) -> Result<ServiceView, Error> {
        let request = StartRequest { name: name(), spec };
        self.say::<ServiceReply>(&Command::Start(Box::new(request))).map(|reply| reply.service)
    }

    fn stop(&mut self) -> ServiceView {
        let request = StopRequest { name: name(), reason: "enough".into() };
        self.say::<ServiceReply>(&Command::Stop(request)).unwrap().service
    }

    fn restart(&mut self) -> ServiceView {
        let request = StopRequest { name: name(), reason: String::new() };
        self.say::<ServiceReply>(&Command::Restart(request)).unwrap().service
    }

    fn up(&mut self, life: u64) {
        let request = UpRequest { of: life_of(life), address: "/counter".into(), pid: 7 };
        self.say::<Noted>(&Command::Up(request)).unwrap();
    }

    fn down(&mut self, life: u64, error: Option<Error>) {
        self.say::<Noted>(&Command::Down(DownRequest { of: life_of(life), error })).unwrap();
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.list();
    }

    fn owed(&self) -> Vec<u64> {
        self.engine.state().lives().iter().map(|of| of.life).collect()
    }

    /// The next life of the kernel, on what this one has written.
    fn next_kernel(mut self) -> Self {
        let batch = self.journal.unwritten(1_000);
        self.store.append(&batch, &[]).unwrap();
        Self::on(self.store, self.now + 1)
    }
}

fn name() -> ServiceName {
    ServiceName::new("counter").unwrap()
}

fn life_of(life: u64) -> ServiceLife {
    ServiceLife { name: name(), life }
}

fn spec(restart: RestartPolicy) -> ServiceSpec {
    ServiceSpec {
        object: "counter:Counter".into(),
        code: "/desk".into(),
        environment: Default::default(),
        restart,
        restarts_max: 2,
        window_ms: 1_000,
    }
}

fn killed() -> Option<Error> {
    Some(Error::new(Code::Unavailable, "worker.died", "killed"))
}

#[test]
fn a_service_is_owed_from_its_start_to_its_stop() {
    let mut world = World::new();
    assert_eq!(world.start(spec(RestartPolicy::OnFailure)).unwrap().state, ServiceState::Starting);
    assert_eq!((world.owed(), world.shown().life), (vec![1], 1));
    world.up(1);
    let shown = world.shown();
    assert_eq!(
        (shown.state, shown.address.as_deref(), shown.pid),
        (ServiceState::Ready, Some("/counter"), Some(7))
    );
    assert_eq!(world.stop().state, ServiceState::Stopped);
    assert_eq!((world.owed(), world.shown().state), (vec![], ServiceState::Stopped));
    // What its process says on its way out changes nothing.
    world.down(1, killed());
    assert_eq!(world.shown().state, ServiceState::Stopped);
}

#[test]
fn the_policy_says_whether_another_life_follows() {
    use RestartPolicy::{Always, Never, OnFailure};
    use ServiceState::{Failed, Starting, Stopped};
    for (policy, error, state) in [
        (Never, killed(), Failed),
        (Never, None, Stopped),
        (OnFailure, killed(), Starting),
        (OnFailure, None, Stopped),
        (Always, killed(), Starting),
        (Always, None, Starting),
    ] {
        let mut world = World::new();
        world.start(spec(policy)).unwrap();
        world.up(1);
        world.down(1, error.clone());
        // The first restart waits for nothing.
        assert_eq!(world.shown().state, state, "{policy:?} {error:?}");
        assert_eq!(world.owed(), if state == Starting { vec![2] } else { vec![] });
    }
}

#[test]
fn a_service_that_dies_again_and_again_waits_longer_and_is_given_up() {
    let mut world = World::new();
    world.start(spec(RestartPolicy::Always)).unwrap();
    world.down(1, killed());
    world.down(2, killed());
    let waits = world.shown();
    assert_eq!(
        (waits.state, waits.restarts, waits.again_at),
        (ServiceState::Backoff, 2, Some(Timestamp(40)))
    );
    assert!(world.owed().is_empty());
    world.wait(40);
    assert_eq!(world.owed(), [3]);
    world.down(3, killed());
    let failed = world.shown();
    assert_eq!((failed.state, failed.last_error), (ServiceState::Failed, killed()));
    // An operator begins it again, with all of its budget.
    assert_eq!(world.restart().restarts, 0);
    assert_eq!(world.owed(), [4]);
}

#[test]
fn deaths_outside_of_the_window_are_forgotten() {
    let mut world = World::new();
    world.start(spec(RestartPolicy::OnFailure)).unwrap();
    for life in 1..=10 {
        world.down(life, killed());
        world.wait(1_001);
        assert_eq!(world.owed(), [life + 1]);
    }
}

#[test]
fn the_next_kernel_begins_each_service_once_and_it_costs_them_nothing() {
    let mut world = World::new();
    world.start(spec(RestartPolicy::OnFailure)).unwrap();
    world.up(1);
    for life in 2..=9 {
        world = world.next_kernel();
        assert_eq!(world.owed(), [life]);
        let shown = world.shown();
        assert_eq!((shown.state, shown.restarts), (ServiceState::Starting, 0));
        // The last kernel's process says goodbye.
        world.down(life - 1, killed());
        assert_eq!(world.owed(), [life]);
        world.up(life);
    }
    world.stop();
    let mut world = world.next_kernel();
    assert_eq!((world.owed(), world.shown().state), (vec![], ServiceState::Stopped));
}

#[test]
fn a_start_is_the_same_start_or_is_refused() {
    let mut world = World::new();
    world.start(spec(RestartPolicy::Always)).unwrap();
    assert_eq!(world.start(spec(RestartPolicy::Always)).unwrap().life, 1);
    let other = world.start(spec(RestartPolicy::Never)).unwrap_err();
    assert_eq!((other.reason.as_str(), world.owed()), ("service.exists", vec![1]));
    world.stop();
    world.start(spec(RestartPolicy::Never)).unwrap();
    assert_eq!(world.owed(), [2]);
    for (broken, reason) in [
        (ServiceSpec { object: "counter".into(), ..spec(RestartPolicy::Never) }, "service.object"),
        (ServiceSpec { code: "desk".into(), ..spec(RestartPolicy::Never) }, "service.code"),
        (ServiceSpec { window_ms: 0, ..spec(RestartPolicy::Never) }, "service.budget"),
    ] {
        assert_eq!(world.start(broken).unwrap_err().reason, reason);
    }
    let unknown = StopRequest { name: ServiceName::new("nobody").unwrap(), reason: String::new() };
    assert_eq!(world.say::<ServiceReply>(&Command::Stop(unknown)).unwrap_err().reason, "service.unknown");
}

#[test]
fn only_so_many_are_known_and_the_oldest_that_is_over_gives_way() {
    let mut world = World::new();
    let numbered = |n: usize| StartRequest {
        name: ServiceName::new(format!("s{n}")).unwrap(),
        spec: spec(RestartPolicy::Never),
    };
    for n in 0..SERVICES_MAX {
        world.say::<ServiceReply>(&Command::Start(Box::new(numbered(n)))).unwrap();
    }
    let full = Command::Start(Box::new(numbered(SERVICES_MAX)));
    assert_eq!(world.say::<ServiceReply>(&full).unwrap_err().reason, "service.limit");
    for n in [9, 4] {
        world.now += 1;
        let stop = StopRequest { name: numbered(n).name, reason: String::new() };
        world.say::<ServiceReply>(&Command::Stop(stop)).unwrap();
    }
    world.say::<ServiceReply>(&full).unwrap();
    let names: Vec<_> = world.list().into_iter().map(|view| view.name.to_string()).collect();
    assert_eq!(names.len(), SERVICES_MAX);
    assert!(!names.contains(&"s9".to_owned()) && names.contains(&"s4".to_owned()));
}

#[test]
fn a_service_whose_code_can_never_be_served_is_given_up_at_once_with_the_reason() {
    let error =
        Error::new(Code::Internal, "task.raised", "desk:Desk is no service: SyntaxError: invalid syntax");
    let mut world = World::new();
    world.start(spec(RestartPolicy::Always)).unwrap();
    world.down(1, Some(error.clone()));
    let shown = world.shown();
    assert_eq!((shown.state, shown.last_error), (ServiceState::Failed, Some(error.clone())));
    assert!(world.owed().is_empty());
    // Mended, it is begun by an operator; and one that has served once is worth another life.
    world.restart();
    world.up(2);
    world.down(2, Some(error.clone()));
    assert_eq!(world.owed().len(), 1, "another life is owed: {:?}", world.shown());
    // So is one whose object raised something that may be over the next time.
    let mut world = World::new();
    world.start(spec(RestartPolicy::Always)).unwrap();
    world.down(1, Some(error.retry(Retry::Now)));
    assert_eq!(world.owed().len(), 1, "another life is owed: {:?}", world.shown());
}
