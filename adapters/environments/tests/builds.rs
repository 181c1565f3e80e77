//! Real builds with the interpreter's own pip, each in a cache of its own.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eclosion_bus::{Address, Bus, Delivery, Filter, MailboxOptions, Taken};
use eclosion_environments::{Builder, EnvironmentOptions, Environments, Progress};
use eclosion_pool_manager::EnvironmentBuilder as _;
use eclosion_schemas::flow::EnvironmentSpec;
use eclosion_schemas::ops::kernel::OnFull;
use eclosion_schemas::ops::pool::{EnvironmentBuilt, Taken as PoolTaken};
use eclosion_schemas::{EnvironmentId, Epoch};

struct World {
    /// Removed at the end.
    _cache: tempfile::TempDir,
    environments: Environments,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut EnvironmentOptions)) -> Self {
        let cache = tempfile::tempdir().unwrap();
        let mut options =
            EnvironmentOptions { uv: None, ..EnvironmentOptions::new(cache.path().join("cache")) };
        change(&mut options);
        Self { _cache: cache, environments: Environments::new(options) }
    }

    /// Directories of environments, finished or not.
    fn directories(&self) -> Vec<PathBuf> {
        let Ok(entries) = self.environments.cache().join("environments").read_dir() else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }
}

fn python() -> PathBuf {
    let found = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
}

fn spec(requirements: &[&str]) -> EnvironmentSpec {
    let requirements = requirements.iter().map(|text| (*text).to_owned()).collect();
    EnvironmentSpec { requirements, ..EnvironmentSpec::default() }
}

fn run(python: &Path, code: &str, path: &[PathBuf]) -> String {
    let path = std::env::join_paths(path).unwrap();
    let output = Command::new(python).args(["-c", code]).env("PYTHONPATH", path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn quiet(_: Progress) {}

#[tokio::test]
async fn two_builders_at_once_build_once_and_the_result_stays() {
    let world = World::new();
    let other = Environments::new(EnvironmentOptions {
        uv: None,
        ..EnvironmentOptions::new(world.environments.cache())
    });
    let phases = std::sync::Mutex::new(Vec::new());
    let note = |progress: Progress| phases.lock().unwrap().push(progress.phase);
    let spec = spec(&["six==1.16.0"]);
    let started = Instant::now();
    let (one, two) = tokio::join!(world.environments.build(&spec, note), other.build(&spec, note));
    let cold = started.elapsed();
    let python = one.unwrap();
    assert_eq!(python, two.unwrap());
    let phases = phases.into_inner().unwrap();
    for (phase, times) in [("create", 1), ("wait", 1), ("interpreter", 2)] {
        assert_eq!(phases.iter().filter(|name| *name == phase).count(), times, "{phases:?}");
    }
    assert!(phases.iter().any(|phase| phase == "install"));
    assert_eq!(run(&python, "import six; print(six.__version__)", &[]), "1.16.0");
    let warm = Instant::now();
    assert_eq!(world.environments.build(&spec, quiet).await.unwrap(), python);
    println!("built in {cold:?}, found again in {:?}", warm.elapsed());
    assert_eq!(world.directories().len(), 1);
}

#[tokio::test]
async fn without_requirements_the_interpreter_is_used_as_it_is() {
    let world = World::new();
    let found = world.environments.build(&spec(&[]), quiet).await.unwrap();
    assert_eq!(found, python());
    assert!(world.directories().is_empty());
}

#[tokio::test]
async fn an_unresolvable_requirement_fails_in_the_resolvers_words_and_leaves_nothing() {
    let world = World::new();
    let error = world.environments.build(&spec(&["six==99.99.99"]), quiet).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.reason.as_str()), ("invalid", "environment.resolve"));
    assert!(error.causes.iter().any(|cause| cause.contains("six==99.99.99")), "{error:?}");
    assert!(error.help.is_some());
    gone(&world).await;
}

#[tokio::test]
async fn an_interpreter_that_is_missing_or_none_is_refused() {
    let world = World::new();
    for (python, words) in
        [("no-such-python", "cannot be started"), ("/bin/cat", "ended"), ("/bin/echo", "answer")]
    {
        let spec = EnvironmentSpec { python: Some(python.into()), ..spec(&["six"]) };
        let error = world.environments.build(&spec, quiet).await.unwrap_err();
        assert_eq!((error.code.as_str(), error.reason.as_str()), ("invalid", "environment.interpreter"));
        assert!(error.message.contains(python) && error.message.contains(words), "{error}");
    }
}

#[tokio::test]
async fn what_a_killed_builder_left_is_built_again() {
    let world = World::new();
    let spec = spec(&["six==1.16.0"]);
    let python = world.environments.build(&spec, quiet).await.unwrap();
    // As a power cut would leave it: no marker, and less than all.
    let directory = &world.directories()[0];
    std::fs::remove_file(directory.join("eclosion.json")).unwrap();
    std::fs::remove_dir_all(directory.join("lib")).unwrap();
    std::fs::write(directory.join("torn"), "").unwrap();
    assert_eq!(world.environments.build(&spec, quiet).await.unwrap(), python);
    assert_eq!(run(&python, "import six; print(six.__version__)", &[]), "1.16.0");
    assert!(!directory.join("torn").exists());
}

#[tokio::test]
async fn a_dropped_build_kills_its_resolver_and_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let (reader, writer) = std::io::pipe().unwrap();
    let ours = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&writer));
    let scripts = tempfile::tempdir().unwrap();
    let stuck = scripts.path().join("uv");
    // Has the lock as its input, writes half an environment and never ends; the pipe is open while it or its child lives.
    let script = format!(
        "#!/bin/sh\ncase $(readlink /proc/$$/fd/0) in *.lock) ;; *) exit 1;; esac\nexec 9>{ours}\nfor last; do :; done\nmkdir -p $last/lib\necho Prepared it\nsleep 1000 &\nwait\n"
    );
    std::fs::write(&stuck, script).unwrap();
    std::fs::set_permissions(&stuck, std::fs::Permissions::from_mode(0o755)).unwrap();
    let world = World::with(|options| options.uv = Some(stuck));
    let spec = spec(&["six==1.16.0"]);
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let build = world.environments.build(&spec, |progress| drop(tell.try_send(progress.phase)));
    {
        let mut build = std::pin::pin!(build);
        loop {
            tokio::select! {
                built = &mut build => panic!("{built:?}"),
                phase = told.recv() => if phase.as_deref() == Some("download") { break },
            }
        }
        assert_eq!(world.directories().len(), 1);
    }
    drop(writer);
    let ended = tokio::task::spawn_blocking(move || std::io::read_to_string(reader));
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap().unwrap().unwrap();
    gone(&world).await;
}

/// Removal goes on behind a dropped build, under its lock: building something invalid waits for it.
async fn gone(world: &World) {
    let locks: Vec<_> = std::fs::read_dir(world.environments.cache().join("environments")).unwrap().collect();
    for lock in locks {
        let path = lock.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            let waiting =
                tokio::task::spawn_blocking(move || std::fs::File::open(path).unwrap().lock().unwrap());
            tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
        }
    }
    assert!(world.directories().is_empty(), "{:?}", world.directories());
}

#[tokio::test]
async fn a_build_that_takes_too_long_says_so() {
    let world = World::with(|options| options.build_timeout = Duration::from_millis(300));
    let error = world.environments.build(&spec(&["six==1.16.0"]), quiet).await.unwrap_err();
    assert_eq!((error.code.as_str(), error.reason.as_str()), ("unavailable", "environment.timeout"));
    gone(&world).await;
}

#[tokio::test]
async fn the_runtime_is_laid_out_once_and_imports() {
    let world = World::new();
    let python = python();
    let (one, two) =
        tokio::join!(world.environments.runtime_paths(&python), world.environments.runtime_paths(&python));
    let paths = one.unwrap();
    assert_eq!(paths, two.unwrap());
    let code = "import eclosion, msgspec; print(eclosion.__file__, msgspec.__version__)";
    let said = run(&python, code, &paths);
    assert!(said.contains(&*paths[0].to_string_lossy()), "{said}");
    let again = Instant::now();
    assert_eq!(world.environments.runtime_paths(&python).await.unwrap(), paths);
    println!("found again in {:?}", again.elapsed());
}

#[tokio::test]
async fn uv_builds_the_same_where_there_is_one() {
    let world = World::with(|options| *options = EnvironmentOptions::new(&options.cache));
    if !std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|path| path.join("uv").is_file()) {
        return println!("SKIPPED: no uv on PATH");
    }
    let python = world.environments.build(&spec(&["six==1.16.0"]), quiet).await.unwrap();
    assert_eq!(run(&python, "import six; print(six.__version__)", &[]), "1.16.0");
    let error = world.environments.build(&spec(&["six==99.99.99"]), quiet).await.unwrap_err();
    assert_eq!(error.reason, "environment.resolve");
    assert!(error.causes.iter().any(|cause| cause.contains("six")), "{error:?}");
    let paths = world.environments.runtime_paths(&python).await.unwrap();
    run(&python, "import eclosion, msgspec", &paths);
}

#[tokio::test]
async fn the_pool_manager_is_told_once_even_if_it_starts_late() {
    let world = World::new();
    let bus = Bus::new(eclosion_schemas::ops::table().unwrap());
    let progress = Filter::new("environment/*/progress").unwrap();
    let mut progress = bus.subscribe(progress, OnFull::Gap, 64);
    let builder = Builder::new(Arc::new(world.environments), bus.clone(), Epoch(1));
    let id = EnvironmentId::new("abc").unwrap();
    let spec = EnvironmentSpec { python: Some("no-such-python".into()), ..EnvironmentSpec::default() };
    builder.build(&id, &spec);
    builder.build(&id, &spec);
    let change = async {
        loop {
            if let Some(Delivery::Change(_)) = progress.next().await {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), change).await.unwrap();
    let pool = bus.open(Address::new("/pool").unwrap(), MailboxOptions::default()).unwrap();
    let told = tokio::time::timeout(Duration::from_secs(20), pool.take()).await.unwrap();
    let Taken::Message(message) = told else { panic!("a message") };
    let request = message.request::<EnvironmentBuilt>().unwrap();
    assert_eq!(request.environment, id);
    assert_eq!(request.error.as_ref().unwrap().reason, "environment.interpreter");
    message.finish().reply(Ok(Box::new(PoolTaken {})));
    assert!(pool.try_take().is_none());
}
