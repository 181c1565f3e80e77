use eclosion_schemas::Code;

use super::*;

static INSTANCE: Setting = Setting {
    key: "kernel.instance",
    kind: Kind::Name,
    default: Preset::Name("default"),
    variable: "X_INSTANCE",
    doc: "Which one is meant.",
};
static GRACE_MS: Setting = Setting {
    key: "keeper.grace_ms",
    kind: Kind::Whole { min: 10, max: 1000 },
    default: Preset::Whole(100),
    variable: "X_GRACE_MS",
    doc: "How long it waits.",
};
static STATE_DIR: Setting = Setting {
    key: "places.state_dir",
    kind: Kind::Path,
    default: Preset::Derived("the home directory"),
    variable: "X_STATE_DIR",
    doc: "Where things are kept.",
};
static TABLE: [&Setting; 3] = [&INSTANCE, &GRACE_MS, &STATE_DIR];

fn user(line: u32) -> Origin {
    Origin::User { file: Path::new("/etc/u/x.toml").into(), line }
}

fn project(line: u32) -> Origin {
    Origin::Project { file: Path::new("/work/p/x.toml").into(), line }
}

const ENVIRONMENT: Origin = Origin::Environment { variable: "X_VARIABLE" };
const FLAG: Origin = Origin::Flag { flag: "--setting" };

fn entry(key: &str, given: Given, origin: Origin) -> Entry {
    Entry { key: key.into(), given, origin }
}

fn typed(text: &str) -> Given {
    Given::Typed(text.into())
}

fn resolved(entries: Vec<Entry>) -> Result<Settings, Error> {
    resolve(&TABLE, entries, Path::new("/here"))
}

fn refusal(key: &str, given: Given, origin: Origin) -> Error {
    resolved(vec![entry(key, given, origin)]).unwrap_err()
}

#[test]
fn a_later_origin_wins_whatever_the_order_of_the_entries() {
    let layers = [(user(1), 11), (project(2), 12), (ENVIRONMENT, 13), (FLAG, 14)];
    for present in 0..16_usize {
        let said: Vec<_> = layers.iter().enumerate().filter(|(n, _)| present & (1 << n) != 0).collect();
        let expected = said.last().map_or((Origin::Default, 100), |(_, (origin, n))| (origin.clone(), *n));
        let mut entries: Vec<_> = said
            .iter()
            .map(|(_, (origin, n))| entry("keeper.grace_ms", typed(&n.to_string()), origin.clone()))
            .collect();
        for _ in 0..2 {
            let settings = resolved(entries.clone()).unwrap();
            assert_eq!(settings.whole(&GRACE_MS).unwrap(), expected.1, "{present:04b}");
            assert_eq!(settings.rows().nth(1).unwrap().origin, expected.0, "{present:04b}");
            entries.reverse();
        }
    }
}

#[test]
fn of_equal_origins_the_last_word_counts() {
    let say = |text| entry("keeper.grace_ms", typed(text), FLAG);
    assert_eq!(resolved(vec![say("20"), say("30")]).unwrap().whole(&GRACE_MS).unwrap(), 30);
}

#[test]
fn a_relative_path_is_seen_from_where_it_was_said() {
    for (given, origin, expected) in [
        (typed("a"), FLAG, "/here/a"),
        (typed("a"), ENVIRONMENT, "/here/a"),
        (typed("/a"), ENVIRONMENT, "/a"),
        (Given::Text("a/b".into()), project(1), "/work/p/a/b"),
        (Given::Text("/a".into()), project(1), "/a"),
        (Given::Text("../a".into()), user(1), "/etc/u/../a"),
    ] {
        let settings = resolved(vec![entry("places.state_dir", given, origin)]).unwrap();
        assert_eq!(settings.path(&STATE_DIR).unwrap(), Path::new(expected));
    }
}

#[test]
fn each_mistake_has_its_reason_its_place_and_a_way_out() {
    let text = |text: &str| Given::Text(text.into());
    for (key, given, origin, reason, place) in [
        ("keeper.grace_ms", text("20"), project(7), "config.type", "/work/p/x.toml:7"),
        ("keeper.grace_ms", Given::Other("a list"), user(2), "config.type", "/etc/u/x.toml:2"),
        ("keeper.grace_ms", typed("soon"), ENVIRONMENT, "config.type", "X_VARIABLE"),
        ("keeper.grace_ms", typed(""), FLAG, "config.type", "--setting"),
        ("keeper.grace_ms", typed("9"), FLAG, "config.range", "--setting"),
        ("keeper.grace_ms", Given::Whole(1001), project(1), "config.range", "/work/p/x.toml:1"),
        ("keeper.grace_ms", Given::Whole(-1), project(1), "config.range", "/work/p/x.toml:1"),
        ("keeper.grace_ms", Given::Whole(i128::MAX), project(1), "config.range", "/work/p/x.toml:1"),
        ("kernel.instance", Given::Whole(3), project(1), "config.type", "/work/p/x.toml:1"),
        ("kernel.instance", text(""), project(1), "config.value", "/work/p/x.toml:1"),
        ("kernel.instance", typed("../x"), FLAG, "config.value", "--setting"),
        ("places.state_dir", Given::Whole(3), project(1), "config.type", "/work/p/x.toml:1"),
        ("places.state_dir", text(""), project(1), "config.value", "/work/p/x.toml:1"),
        ("places.state_dir", text("~/x"), project(1), "config.value", "/work/p/x.toml:1"),
        ("keeper.gracems", Given::Whole(20), project(3), "config.unknown_key", "/work/p/x.toml:3"),
    ] {
        let refusal = refusal(key, given.clone(), origin);
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Invalid, reason), "{key} {given:?}");
        assert!(refusal.message.starts_with(&format!("{place}: `{key}` ")), "{}", refusal.message);
        assert!(refusal.help.is_some(), "{key} {given:?}");
    }
}

#[test]
fn an_unknown_key_comes_with_the_one_that_was_meant() {
    for (key, hint) in [
        ("keeper.grace_m", "did you mean `keeper.grace_ms`?"),
        ("keepr.graec_ms", "did you mean `keeper.grace_ms`?"),
        ("grace_ms", "did you mean `keeper.grace_ms`?"),
        ("pool.grace_ms", "did you mean `keeper.grace_ms`?"),
        ("state_dirs", "did you mean `places.state_dir`?"),
        ("keeper", "`keeper` is a section, of settings such as `keeper.grace_ms`"),
        ("color", "`config show` lists every setting"),
        ("", "`config show` lists every setting"),
    ] {
        assert_eq!(refusal(key, typed("20"), FLAG).help.as_deref(), Some(hint), "{key}");
    }
}

#[test]
fn an_entry_that_is_overridden_is_checked_all_the_same() {
    let entries = vec![
        entry("keeper.grace_ms", Given::Whole(20), FLAG),
        entry("keeper.grace_ms", Given::Whole(5), user(1)),
    ];
    assert_eq!(resolved(entries).unwrap_err().reason, "config.range");
}

#[test]
fn all_mistakes_are_told_at_once_up_to_a_bound() {
    let entries = (1..=20).map(|line| entry("keeper.gracems", Given::Whole(20), project(line)));
    let refusal = resolved(entries.collect()).unwrap_err();
    assert!(refusal.message.starts_with("/work/p/x.toml:1: "), "{}", refusal.message);
    assert_eq!(refusal.causes.len(), REFUSALS_MAX);
    assert_eq!(refusal.causes[0].lines().count(), 1);
    assert_eq!(refusal.causes.last().unwrap(), "and 12 more");
}

#[test]
fn a_refusal_repeats_no_text_that_was_said() {
    const CANARY: &str = "hunter2-canary";
    for key in ["keeper.grace_ms", "places.state", "token"] {
        for given in [typed(CANARY), Given::Text(CANARY.into())] {
            let said = format!("{:?}", refusal(key, given, project(1)));
            assert!(!said.contains(CANARY), "{said}");
        }
    }
    let said = format!("{:?}", refusal("kernel.instance", typed("canary/x"), FLAG));
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn a_derived_default_fills_a_gap_and_overrides_nobody() {
    let unset = resolved(Vec::new()).unwrap();
    assert!(!unset.is_said(&STATE_DIR));
    let refusal = unset.path(&STATE_DIR).unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Precondition, "config.unset"));
    assert!(refusal.message.contains("the home directory"), "{}", refusal.message);
    assert_eq!(refusal.help.as_deref(), Some("set X_STATE_DIR"));

    let derived = || Some(Value::Path("/derived".into()));
    let settings = unset.or_default(&STATE_DIR, derived());
    assert_eq!(settings.path(&STATE_DIR).unwrap(), Path::new("/derived"));
    assert!(!settings.is_said(&STATE_DIR));

    let said = resolved(vec![entry("places.state_dir", typed("/said"), FLAG)]).unwrap();
    let settings = said.or_default(&STATE_DIR, derived());
    assert_eq!(settings.path(&STATE_DIR).unwrap(), Path::new("/said"));
    assert!(settings.is_said(&STATE_DIR));
}

#[test]
fn an_origin_reads_as_its_layer_and_its_place() {
    for (origin, text) in [
        (Origin::Default, "default"),
        (user(2), "user /etc/u/x.toml:2"),
        (project(3), "project /work/p/x.toml:3"),
        (ENVIRONMENT, "environment X_VARIABLE"),
        (FLAG, "flag --setting"),
    ] {
        assert_eq!(origin.to_string(), text);
    }
}
