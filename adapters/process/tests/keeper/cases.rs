//! The tests, by name.

use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use eclosion_process::limits::Bounds;
use eclosion_process::{
    Cgroups, Groups, How, Keeper, KeeperEvent, Leftover, ProcessId, boot_id, procfs, socket, sweep,
};
use eclosion_schemas::Epoch;
use rustix::process::Signal;
use tokio::io::AsyncReadExt as _;

use crate::world::{GroupRoot, Kernel, Worker, World, wait_for_end, wait_until_alone, within};

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, Test)] = &[$((stringify!($name), || Box::pin($name()))),*];
    };
}

tests!(
    a_worker_is_spawned_and_its_end_is_told_with_status_and_memory,
    a_worker_has_a_cleared_environment_and_exactly_its_descriptors,
    a_new_kernel_adopts_the_workers_of_one_that_was_killed,
    nothing_is_left_when_the_grace_has_passed,
    without_a_grace_a_killed_kernel_takes_all_along,
    a_killed_keeper_is_noticed_and_nothing_of_it_stays,
    a_child_that_forked_twice_ends_with_its_worker,
    workers_survive_their_zygote_and_the_next_gets_another,
    what_cannot_start_is_told_in_its_own_words,
    bytes_from_outside_end_their_connection_and_nothing_else,
    two_kernels_at_once_start_one_keeper,
    the_sweep_kills_recorded_workers_and_nobody_with_a_reused_pid,
    the_real_runtime_says_hello_and_says_it_again_when_adopted,
    a_worker_is_in_its_group_before_it_speaks_and_the_group_goes_with_it,
    what_another_keeper_left_in_a_group_is_killed,
    the_system_kills_at_the_limit_of_memory_and_the_group_says_so,
);

const GRACE_MS: u64 = 60_000;
const END: Duration = Duration::from_secs(20);

async fn start(world: &World) -> Kernel {
    crate::world::python();
    let mut kernel = world.kernel(1).await;
    assert!(kernel.welcome().await.is_empty());
    kernel
}

async fn spawn(world: &World, kernel: &mut Kernel, name: &str) -> Worker {
    kernel.keeper.spawn(world.worker(name)).unwrap();
    kernel.spawned().await
}

async fn survivors(kernel: &mut Kernel) -> Vec<Worker> {
    let mut workers = Vec::new();
    for expected in kernel.welcome().await {
        let KeeperEvent::Survivor { worker, pid, start_ticks, stream } = kernel.next().await else {
            panic!("a survivor")
        };
        assert!(expected.alive);
        assert_eq!((&worker, pid, start_ticks), (&expected.worker, expected.pid, expected.start_ticks));
        workers.push(Worker::new(worker, ProcessId { pid, start_ticks }, stream));
    }
    workers
}

async fn finish(kernel: Kernel) {
    kernel.shut_down().await;
    wait_until_alone();
}

async fn a_worker_is_spawned_and_its_end_is_told_with_status_and_memory() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let cold = Instant::now();
    let mut first = spawn(&world, &mut kernel, "w-1").await;
    let cold = cold.elapsed();
    let warm = Instant::now();
    let second = spawn(&world, &mut kernel, "w-2").await;
    println!("  first worker {cold:?}, next {:?}", warm.elapsed());
    assert_eq!(
        procfs::row(first.process.pid).unwrap().parent,
        kernel.keeper.pid(),
        "it is the keeper's own child"
    );
    first.order("exit 3").await;
    let (id, how, peak_rss_bytes) = kernel.exited().await;
    assert_eq!((id, how), (first.id, How::Code(3)));
    assert!(peak_rss_bytes > 1 << 20, "{peak_rss_bytes}");
    kernel.keeper.signal(second.id.clone(), Signal::TERM.as_raw(), false).unwrap();
    let (id, how, _) = kernel.exited().await;
    assert_eq!((id, how), (second.id, How::Signal(15)));
    finish(kernel).await;
    assert!(!world.dir.path().join("keeper.sock").exists());
}

async fn a_worker_has_a_cleared_environment_and_exactly_its_descriptors() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let worker = spawn(&world, &mut kernel, "w-1").await;
    let file = |name: &str| {
        let bytes = std::fs::read(format!("/proc/{}/{name}", worker.process.pid)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let environment = file("environ");
    let names: Vec<_> = environment.split('\0').filter_map(|entry| entry.split('=').next()).collect();
    assert!(names.contains(&"TEST_ASKED") && names.contains(&"PYTHONHASHSEED") && names.contains(&"PATH"));
    let foreign = names.iter().filter(|name| name.starts_with("CARGO") || name.starts_with("SSL_"));
    assert_eq!(foreign.count(), 0, "{names:?}");
    let status = file("status");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Umask:\t0077"), "{status}");
    let limits = file("limits");
    let core: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max core")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"]);
    assert_eq!(file("oom_score_adj").trim(), "500");
    // Three standard ones, stream, lifeline, and the stand-in's selector.
    let open = std::fs::read_dir(format!("/proc/{}/fd", worker.process.pid)).unwrap().count();
    assert_eq!(open, 6);
    finish(kernel).await;
}

async fn a_new_kernel_adopts_the_workers_of_one_that_was_killed() {
    let world = World::new(GRACE_MS);
    let mut doomed = world.doomed_kernel(2).await;
    doomed.kill().await.unwrap();
    let mut kernel = world.kernel(2).await;
    let survivors = survivors(&mut kernel).await;
    assert_eq!(survivors.len(), 2);
    for mut worker in survivors {
        assert_eq!(worker.line().await, format!("adopted {}", worker.process.pid));
        worker.order("exit 0").await;
        assert_eq!(kernel.exited().await.1, How::Code(0), "its status is told to the new kernel");
    }
    finish(kernel).await;
}

async fn nothing_is_left_when_the_grace_has_passed() {
    let world = World::new(300);
    let temporary = world.dir.path().join("temporary");
    std::fs::create_dir(&temporary).unwrap();
    std::fs::write(temporary.join("17"), "half").unwrap();
    let mut doomed = world.doomed_kernel(2).await;
    doomed.kill().await.unwrap();
    wait_until_alone();
    assert!(!world.dir.path().join("keeper.sock").exists());
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert!(Keeper::connect(&world.config(), Epoch(2)).await.unwrap().is_none());
}

async fn without_a_grace_a_killed_kernel_takes_all_along() {
    let world = World::new(0);
    let mut doomed = world.doomed_kernel(1).await;
    doomed.kill().await.unwrap();
    wait_until_alone();
}

async fn a_killed_keeper_is_noticed_and_nothing_of_it_stays() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let mut worker = spawn(&world, &mut kernel, "w-1").await;
    let child = worker.ask_pid("child").await;
    let escapee = worker.ask_pid("escape").await;
    let keeper = procfs::row(kernel.keeper.pid()).unwrap();
    procfs::signal(keeper.id, Signal::KILL).unwrap();
    kernel.lost().await;
    assert!(kernel.keeper.spawn(world.worker("w-2")).is_err(), "requests say that it is lost");
    assert!(wait_for_end(worker.process.pid, END), "its lifeline ended");
    assert!(procfs::row(child).is_some() && procfs::row(escapee).is_some(), "they have no lifeline");
    sweep(world.dir.path(), &[]);
    wait_until_alone();
    // Its socket is still there, and in nobody's way.
    let mut kernel = world.kernel(2).await;
    assert!(kernel.welcome().await.is_empty());
    finish(kernel).await;
}

async fn a_child_that_forked_twice_ends_with_its_worker() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let mut other = spawn(&world, &mut kernel, "other").await;
    let stranger = other.ask_pid("escape").await;
    for (name, end) in [("w-1", "signal"), ("w-2", "exit")] {
        let mut worker = spawn(&world, &mut kernel, name).await;
        let child = worker.ask_pid("child").await;
        let escapee = worker.ask_pid("escape").await;
        let row = procfs::row(escapee).unwrap();
        assert_eq!(row.parent, kernel.keeper.pid(), "it was reparented to the keeper");
        if end == "signal" {
            kernel.keeper.signal(worker.id.clone(), Signal::KILL.as_raw(), true).unwrap();
        } else {
            worker.order("exit 0").await;
        }
        kernel.exited().await;
        assert!(wait_for_end(escapee, END) && wait_for_end(child, END), "{name}");
    }
    assert!(procfs::row(stranger).is_some_and(|row| !row.zombie), "another worker's is left alone");
    finish(kernel).await;
}

async fn workers_survive_their_zygote_and_the_next_gets_another() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let mut first = spawn(&world, &mut kernel, "w-1").await;
    let keeper = kernel.keeper.pid();
    let zygote =
        procfs::table().into_iter().find(|row| row.parent == keeper && row.id != first.process).unwrap();
    procfs::signal(zygote.id, Signal::KILL).unwrap();
    assert!(wait_for_end(zygote.id.pid, END));
    let mut second = spawn(&world, &mut kernel, "w-2").await;
    for worker in [&mut first, &mut second] {
        worker.order("exit 0").await;
        assert_eq!(kernel.exited().await.1, How::Code(0));
    }
    finish(kernel).await;
}

async fn what_cannot_start_is_told_in_its_own_words() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let mut attempts = [world.worker("w-1"), world.worker("w-2"), world.worker("w-3")];
    attempts[0].python = "/nowhere/python".into();
    attempts[1].preload = vec!["no_such_module".into()];
    attempts[2].code_paths = Vec::new();
    for (attempt, words) in attempts.into_iter().zip(["cannot be started", "no_such_module", "eclosion"]) {
        let expected = attempt.worker.clone();
        kernel.keeper.spawn(attempt).unwrap();
        match kernel.next().await {
            KeeperEvent::SpawnFailed { worker, error } => {
                assert!(worker == expected && error.contains(words), "{error}")
            }
            other => panic!("{other:?}"),
        }
    }
    finish(kernel).await;
    let left: Vec<_> =
        std::fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("zygote-")), "{left:?}");
}

async fn bytes_from_outside_end_their_connection_and_nothing_else() {
    let world = World::new(GRACE_MS);
    let mut kernel = start(&world).await;
    let path = world.dir.path().join("keeper.sock");
    let long = vec![b' '; 70_000];
    for bytes in [
        &b"\x00\xff"[..],
        b"{\"spawn\":{}}",
        b"{\"shutdown\":{}}",
        b"{\"hello\":{\"instance\":\"test\",\"epoch\":0}}",
        &long,
    ] {
        let link = socket::dial(&path).unwrap();
        socket::send_packet(std::os::fd::AsFd::as_fd(&link), bytes, &[]).unwrap();
        within("the end of the connection", ended(link)).await;
    }
    let mut worker = spawn(&world, &mut kernel, "w-1").await;
    worker.order("exit 0").await;
    kernel.exited().await;
    finish(kernel).await;
}

/// Reads until the other side has closed it.
async fn ended(link: socket::Link) {
    let blocking = tokio::task::spawn_blocking(move || {
        loop {
            let mut wanted = [rustix::event::PollFd::new(&link, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut wanted, None).unwrap();
            if matches!(link.receive::<serde_json::Value>().unwrap(), socket::Received::End) {
                return;
            }
        }
    });
    blocking.await.unwrap();
}

async fn two_kernels_at_once_start_one_keeper() {
    let world = World::new(GRACE_MS);
    let (mut first, mut second) = tokio::join!(world.kernel(1), world.kernel(1));
    assert_eq!(first.keeper.pid(), second.keeper.pid());
    first.welcome().await;
    second.welcome().await;
    // The later hello took the place of the earlier; whichever that was still has the keeper.
    let replaced = tokio::select! { () = first.lost() => true, () = second.lost() => false };
    finish(if replaced { second } else { first }).await;
}

async fn the_sweep_kills_recorded_workers_and_nobody_with_a_reused_pid() {
    let world = World::new(GRACE_MS);
    let mut sleeper = tokio::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let row = procfs::row(sleeper.id().unwrap()).unwrap();
    let leftover =
        |start_ticks, boot_id: &str| Leftover { pid: row.id.pid, start_ticks, boot_id: boot_id.into() };
    let strangers =
        [leftover(row.id.start_ticks + 1, &boot_id()), leftover(row.id.start_ticks, "another boot")];
    assert_eq!(sweep(world.dir.path(), &strangers), 0);
    assert!(sleeper.try_wait().unwrap().is_none());
    assert_eq!(sweep(world.dir.path(), &[leftover(row.id.start_ticks, &boot_id())]), 1);
    assert!(!sleeper.wait().await.unwrap().success());
}

async fn the_real_runtime_says_hello_and_says_it_again_when_adopted() {
    let world = World::with_real_runtime(GRACE_MS);
    let mut kernel = start(&world).await;
    let cold = Instant::now();
    kernel.keeper.spawn(world.worker("w-1")).unwrap();
    let mut worker = kernel.spawned_silent().await;
    hello(&mut worker, world.dir.path()).await;
    let cold = cold.elapsed();
    let warm = Instant::now();
    kernel.keeper.spawn(world.worker("w-2")).unwrap();
    let mut second = kernel.spawned_silent().await;
    hello(&mut second, world.dir.path()).await;
    println!("  first worker's hello {cold:?}, next {:?}", warm.elapsed());
    drop((kernel, worker));
    let mut kernel = world.kernel(2).await;
    let survivors = survivors(&mut kernel).await;
    assert_eq!(survivors.len(), 2);
    for mut worker in survivors {
        hello(&mut worker, world.dir.path()).await;
        kernel.keeper.signal(worker.id.clone(), Signal::KILL.as_raw(), true).unwrap();
        assert_eq!(kernel.exited().await.1, How::Signal(9));
    }
    finish(kernel).await;
}

/// The first frame: its version and type are the fifth and sixth byte.
async fn hello(worker: &mut Worker, dir: &Path) {
    let mut header = [0_u8; 16];
    let read = within("HELLO", worker.stream.read_exact(&mut header)).await;
    let stderr = std::fs::read_to_string(dir.join(format!("{}.stderr", worker.id))).unwrap_or_default();
    assert!(read.is_ok(), "{stderr}");
    assert_eq!(header[4..6], [1, 1]);
}

/// With groups in a real cgroup file system; says aloud if there is none.
fn grouped() -> Option<(World, GroupRoot)> {
    let root = GroupRoot::make()?;
    let mut world = World::new(GRACE_MS);
    world.groups = Some(root.0.clone());
    Some((world, root))
}

/// Whoever is in a group, as the system says.
fn members(group: &Path) -> Vec<u32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    text.lines().map(|pid| pid.parse().unwrap()).collect()
}

async fn a_worker_is_in_its_group_before_it_speaks_and_the_group_goes_with_it() {
    let Some((world, root)) = grouped() else { return };
    let mut kernel = start(&world).await;
    kernel.keeper.spawn(world.worker("w-1")).unwrap();
    let mut worker = kernel.spawned_silent().await;
    let group = root.0.join("worker-w-1");
    assert_eq!(members(&group), [worker.process.pid], "before its first word was read");
    assert_eq!(worker.line().await, "up");
    let escapee = worker.ask_pid("escape").await;
    assert!(members(&group).contains(&escapee), "a session of its own leads out of no group");
    kernel.keeper.signal(worker.id.clone(), Signal::KILL.as_raw(), false).unwrap();
    let (_, how, _) = kernel.exited().await;
    assert_eq!(how, How::Signal(9));
    assert!(wait_for_end(escapee, END));
    finish(kernel).await;
    assert!(!group.exists());
}

async fn what_another_keeper_left_in_a_group_is_killed() {
    let Some((world, root)) = grouped() else { return };
    let group = root.0.join("worker-w-9");
    std::fs::create_dir(&group).unwrap();
    // Nothing else says whose it is: no mark, no record, no session.
    let mut left = std::process::Command::new("sleep").arg("1000").env_clear().spawn().unwrap();
    std::fs::write(group.join("cgroup.procs"), left.id().to_string()).unwrap();
    let kernel = start(&world).await;
    assert!(wait_for_end(left.id(), END));
    left.wait().unwrap();
    finish(kernel).await;
    assert!(!group.exists());
}

async fn the_system_kills_at_the_limit_of_memory_and_the_group_says_so() {
    const LIMIT_BYTES: u64 = 64 << 20;
    let Some((world, root)) = grouped() else { return };
    if !root.has_memory() {
        println!("  LEFT OUT: the memory controller is not there for {}", root.0.display());
        return;
    }
    let mut kernel = start(&world).await;
    let mut worker = spawn(&world, &mut kernel, "w-1").await;
    let bounds = Bounds { memory_bytes: Some(LIMIT_BYTES), processes: None };
    Cgroups::new(root.0.clone()).limit(&worker.id, bounds).unwrap();
    worker.order(&format!("eat {}", 4 * LIMIT_BYTES)).await;
    match kernel.next().await {
        KeeperEvent::Exited { how, oom_limit_bytes, .. } => {
            assert_eq!((how, oom_limit_bytes), (How::Signal(9), Some(LIMIT_BYTES)));
        }
        other => panic!("{other:?}"),
    }
    finish(kernel).await;
}
