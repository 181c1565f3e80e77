use std::collections::BTreeSet;
use std::fs;

use eclosion_environments::EnvironmentOptions;
use eclosion_pool_manager::PoolOptions;
use eclosion_schemas::Code;
use tempfile::TempDir;

use super::*;
use crate::{Options, Places};

/// A directory for the project, one for the user, and nothing else around.
struct House {
    directory: TempDir,
    surroundings: Surroundings,
    flags: Flags,
}

impl House {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (project, user) = (directory.path().join("project/deep/down"), directory.path().join("user"));
        fs::create_dir_all(&project).unwrap();
        fs::create_dir_all(&user).unwrap();
        let home = |name: &str| directory.path().join("home").join(name);
        let base = Base {
            config: Some(user.clone()),
            state: Some(home("state")),
            cache: Some(home("cache")),
            runtime: home("run"),
        };
        let surroundings = Surroundings {
            variables: Vec::new(),
            directory: project,
            user_file: Some(user.join(FILE)),
            defaults: machine::defaults(&base),
        };
        Self { directory, surroundings, flags: Flags::default() }
    }

    fn project_file(&self) -> PathBuf {
        self.directory.path().join("project").join(FILE)
    }

    fn project(self, text: impl AsRef<[u8]>) -> Self {
        fs::write(self.project_file(), text).unwrap();
        self
    }

    fn user(self, text: &str) -> Self {
        fs::write(self.surroundings.user_file.as_ref().unwrap(), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.surroundings.variables.push((name.into(), value.into()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        let (given, origin) = (Given::Typed(value.into()), Origin::Flag { flag: "--setting" });
        self.flags.entries.push(Entry { key: key.into(), given, origin });
        self
    }

    fn load(&self) -> Result<Configuration, Error> {
        load(&self.surroundings, &self.flags)
    }

    fn refusal(&self) -> Error {
        self.load().unwrap_err()
    }
}

fn shown(configuration: &Configuration, setting: &Setting) -> (String, String) {
    let row = configuration.settings.rows().find(|row| row.setting == setting).unwrap();
    (row.value.as_ref().unwrap().to_string(), row.origin.to_string())
}

#[test]
fn the_table_is_consistent() {
    let mut seen = BTreeSet::new();
    for setting in TABLE {
        assert!(seen.insert(setting.key) && seen.insert(setting.variable), "{} twice", setting.key);
        assert!(setting.variable.starts_with(PREFIX) && !setting.variable.starts_with(SECRETS));
        assert_eq!(setting.key.split('.').count(), 2, "{}", setting.key);
        assert!(setting.doc.ends_with('.'), "{}", setting.key);
        match (setting.kind, setting.default) {
            (Kind::Whole { min, max }, Preset::Whole(number)) => assert!((min..=max).contains(&number)),
            (Kind::Name, Preset::Name(name)) => assert!(eclosion_kernel::config::is_name(name)),
            (Kind::Path | Kind::Whole { .. } | Kind::Text, Preset::Derived(_)) => {}
            (kind, default) => panic!("{}: {kind:?} with {default:?}", setting.key),
        }
    }
}

#[test]
fn what_is_said_nowhere_is_what_an_embedder_gets() {
    let house = House::new();
    let mut configured = Options::configured(&house.load().unwrap().settings).unwrap();
    // Where each limit was set is for those who ask; by hand, nothing was.
    configured.retention.origins.clear();
    let by_hand = Options::new(configured.places.clone());
    assert_eq!(format!("{configured:?}"), format!("{by_hand:?}"));
    assert_eq!(by_hand.pool(), PoolOptions::new(by_hand.workers_max));
    let environments = EnvironmentOptions::new("");
    assert_eq!(by_hand.environments().build_timeout, environments.build_timeout);
}

#[test]
fn every_setting_changes_what_a_kernel_or_a_client_uses() {
    let used = |house: &House| {
        let settings = house.load().unwrap().settings;
        format!("{:?} {:?}", settings.path(&SOCKET).unwrap(), Options::configured(&settings).unwrap())
    };
    // Room for more workers at least.
    let mut house = House::new().user("[pool]\nworkers_max = 2000\n");
    let unchanged = used(&house);
    for setting in TABLE {
        let value = match (setting.kind, setting.key) {
            (Kind::Whole { .. }, _) => "1001",
            (_, "rates.*") => "openai=60/min burst 10",
            (_, "resources.*") => "gpu0_vram=8GiB,licences=3",
            _ => "another",
        };
        house.surroundings.variables = vec![(setting.variable.into(), value.into())];
        assert_ne!(used(&house), unchanged, "{}", setting.key);
    }
}

#[test]
fn each_layer_overrides_the_one_below_and_says_so() {
    let mut house = House::new();
    let line = |n: usize, value: u32| format!("{}[keeper]\ngrace_ms = {value}\n", "\n".repeat(n));
    let file = |path: &Path, line: usize| format!("{}:{line}", path.display());
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS), ("60000".into(), "default".into()));
    house = house.user(&line(0, 11));
    let user = house.surroundings.user_file.clone().unwrap();
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS), ("11".into(), format!("user {}", file(&user, 2))));
    house = house.project(line(3, 12));
    let project = house.project_file();
    let expected = ("12".into(), format!("project {}", file(&project, 5)));
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS), expected);
    house = house.variable("ECLOSION_GRACE_MS", "13");
    let expected = ("13".into(), "environment ECLOSION_GRACE_MS".into());
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS), expected);
    house = house.flag("keeper.grace_ms", "14");
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS), ("14".into(), "flag --setting".into()));
    let files = house.load().unwrap().files;
    assert_eq!(files, Files { project: Some(project), user: Some(user) });
}

#[test]
fn an_empty_variable_says_nothing() {
    let house = House::new().variable("ECLOSION_GRACE_MS", "").variable(FILE_VARIABLE, "");
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS).1, "default");
}

#[test]
fn a_file_that_is_named_stands_for_the_one_that_would_be_found() {
    let mut house = House::new().project("[keeper]\ngrace_ms = 12\n").variable(FILE_VARIABLE, "other.toml");
    fs::write(house.surroundings.directory.join("other.toml"), "keeper.grace_ms = 21\n").unwrap();
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS).0, "21");
    house.flags.file = Some("../third.toml".into());
    assert_eq!(house.refusal().reason, "config.file");
    fs::write(house.surroundings.directory.join("../third.toml"), "keeper = { grace_ms = 22 }\n").unwrap();
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS).0, "22");
}

#[test]
fn the_users_own_file_is_not_taken_for_a_projects() {
    let mut house = House::new().user("[keeper]\ngrace_ms = 11\n");
    house.surroundings.directory = house.surroundings.user_file.clone().unwrap().parent().unwrap().to_owned();
    let configuration = house.load().unwrap();
    assert_eq!(configuration.files.project, None);
    assert!(shown(&configuration, &GRACE_MS).1.starts_with("user "));
}

#[test]
fn a_file_that_others_can_change_is_read_only_when_it_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let mut house = House::new().project("[keeper]\ngrace_ms = 12\n");
    fs::set_permissions(house.project_file(), fs::Permissions::from_mode(0o666)).unwrap();
    let refusal = house.refusal();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Denied, "config.owner"));
    house.flags.file = Some(house.project_file());
    assert_eq!(shown(&house.load().unwrap(), &GRACE_MS).0, "12");
}

#[test]
fn what_is_wrong_in_a_file_is_named_by_its_place() {
    for (text, reason, place) in [
        (&b"[keeper]\ngrace_ms = soon\n"[..], "config.syntax", ":2:12: "),
        (b"[keeper]\ngrace_ms = 1\ngrace_ms = 2\n", "config.syntax", ":3:1: "),
        (b"[keeper\n", "config.syntax", ":1:8: "),
        (b"# caf\xe9\n", "config.encoding", ":1:6: "),
        (b"\n\n[keeper]\ngrace_sm = 1\n", "config.unknown_key", ":4: `keeper.grace_sm`"),
        (b"[colors]\n", "config.unknown_key", ":1: `colors`"),
        (b"pool = 3\n", "config.unknown_key", ":1: `pool`"),
        (b"[[pool]]\nworkers_max = 1\n", "config.unknown_key", ": `pool`"),
        (b"[pool.workers_max]\nx = 3\n", "config.unknown_key", ":2: `pool.workers_max.x`"),
        (b"[pool.workers_max]\n", "config.type", ":1: `pool.workers_max`"),
        (b"[pool]\nworkers_max = 1.5\n", "config.type", ":2: `pool.workers_max`"),
        (b"[pool]\nworkers_max = \"4\"\n", "config.type", ":2: `pool.workers_max`"),
        (b"[pool]\nworkers_max = 0x0\n", "config.range", ":2: `pool.workers_max`"),
        (b"[pool]\nworkers_max = 99999999999999999999999999999999999999999999\n", "config", ":2"),
    ] {
        let refusal = House::new().project(text).refusal();
        let shown = String::from_utf8_lossy(text);
        assert_eq!(refusal.code, Code::Invalid, "{shown}");
        assert!(refusal.reason.starts_with(reason), "{shown}: {}", refusal.reason);
        assert!(refusal.message.contains(place), "{shown}: {}", refusal.message);
        assert!(refusal.help.is_some(), "{shown}");
    }
}

#[test]
fn an_empty_section_says_nothing() {
    House::new().project("[pool]\n[keeper]\n").load().unwrap();
}

#[test]
fn a_file_that_is_too_large_is_not_read_to_its_end() {
    let refusal = House::new().project("#".repeat(70_000)).refusal();
    assert_eq!(refusal.reason, "config.file");
}

#[test]
fn a_variable_with_a_slip_in_it_is_refused_and_a_strangers_is_left_alone() {
    for (name, hint) in [
        ("ECLOSION_WORKER_MAX", "did you mean ECLOSION_WORKERS_MAX?"),
        ("ECLOSION_GRACEMS", "did you mean ECLOSION_GRACE_MS?"),
        ("ECLOSION_CONFIGS", "did you mean ECLOSION_CONFIG?"),
    ] {
        let refusal = House::new().variable(name, "hunter2").refusal();
        assert_eq!(refusal.reason, "config.unknown_variable", "{name}");
        assert_eq!(refusal.help.as_deref(), Some(hint));
        assert!(!format!("{refusal:?}").contains("hunter2"));
    }
    for name in [
        "ECLOSION_MARKER",
        "ECLOSION_KEEPER",
        "ECLOSION_BINARY",
        "ECLOSION_TEST_PYTHON",
        "ECLOSION_TEST_JOURNAL",
        "ECLOSION_CHAOS_BINARY",
        "ECLOSION_CRASH_ROUNDS",
        "ECLOSION_SECRET_LISTEN",
        "ECLOSION_SECRET_DIR",
    ] {
        House::new().variable(name, "x").load().unwrap();
    }
}

#[test]
fn a_text_of_a_file_is_repeated_in_no_refusal() {
    for text in [
        "[keeper]\ngrace_ms = \"hunter2\"\n",
        "token = \"hunter2\"\n",
        "token = \"hunter2\n",
        "[keeper]\ngrace_ms = hunter2\n",
        "hunter2\n",
        "[kernel]\ninstance = \"hunter2/x\"\n",
        "[places]\nstate_dir = \"~/hunter2\"\n",
    ] {
        let refusal = format!("{:?}", House::new().project(text).refusal());
        assert!(!refusal.contains("hunter2"), "{text}: {refusal}");
    }
}

#[test]
fn without_a_home_directory_only_what_needs_one_is_unset() {
    let mut house = House::new();
    let base = Base { config: None, state: None, cache: None, runtime: "/run/x".into() };
    (house.surroundings.user_file, house.surroundings.defaults) = (None, machine::defaults(&base));
    let settings = house.load().unwrap().settings;
    assert_eq!(settings.path(&SOCKET).unwrap(), Path::new("/run/x/default.sock"));
    assert_eq!(Places::configured(&settings).unwrap_err().reason, "config.unset");
    let house = house.variable("ECLOSION_STATE_DIR", "/s").variable("ECLOSION_CACHE_DIR", "/c");
    assert_eq!(Places::configured(&house.load().unwrap().settings).unwrap().state, Path::new("/s/default"));
}

#[test]
fn fewer_workers_at_most_than_at_least_is_a_contradiction() {
    let house = House::new().flag("pool.workers_min", "3").flag("pool.workers_max", "2");
    let refusal = house.refusal();
    assert_eq!(refusal.reason, "config.contradiction");
    assert!(refusal.message.contains("(3, flag --setting) is above `pool.workers_max` (2, "), "{refusal}");
}

#[test]
fn a_family_takes_any_name_and_each_of_its_members_has_an_origin() {
    let house = House::new()
        .user("[rates]\nopenai = \"1/s\"\nsearch = \"5/s\"\n[resources]\nlicences = 3\n")
        .variable("ECLOSION_RATES", "openai=60/min burst 10, other=1/h")
        .flag("resources.gpu0_vram", "8GiB");
    let configuration = house.load().unwrap();
    let options = Options::configured(&configuration.settings).unwrap();
    let rates: Vec<_> = options.rates.iter().map(|(name, rate)| format!("{name} {rate}")).collect();
    assert_eq!(rates, ["openai 60/min burst 10", "other 1/h", "search 5/s"]);
    assert_eq!(options.resources, [("gpu0_vram".to_owned(), 8 << 30), ("licences".into(), 3)].into());
    let row = configuration.settings.rows().find(|row| row.key == "rates.openai").unwrap();
    assert_eq!(row.origin.to_string(), "environment ECLOSION_RATES");
    for (key, value, help) in [
        ("rates.x", "often", "60/min"),
        ("resources.x", "much", "8GiB"),
        ("resources.cpu", "3", "arbitration.cpu_millis"),
    ] {
        let settings = House::new().flag(key, value).load().unwrap().settings;
        let refusal = Options::configured(&settings).unwrap_err();
        assert!(refusal.help.as_deref().is_some_and(|said| said.contains(help)), "{key}: {refusal}");
    }
    for key in ["rates.*", "rates", "rates.a b", "rate.x"] {
        assert_eq!(House::new().flag(key, "1/s").refusal().reason, "config.unknown_key", "{key}");
    }
}
