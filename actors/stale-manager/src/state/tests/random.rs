//! Whatever happens, in whatever order.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Begin(u8),
    End(u8),
    Commit(u8, u8),
    Put(u8),
    Apply,
    Perform,
    Restore(u8),
    Wait(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0..4u8).prop_map(Act::Begin),
        (0..4u8).prop_map(Act::End),
        (0..4u8, 0..6u8).prop_map(|(run, digest)| Act::Commit(run, digest)),
        (0..6u8).prop_map(Act::Put),
        Just(Act::Apply),
        Just(Act::Perform),
        (0..6u8).prop_map(Act::Restore),
        (1..20u8).prop_map(Act::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: nothing that an unfinished run has named stays away, and what happened is
    /// told the same by a replay.
    #[test]
    fn never_collects_for_good_what_is_held(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new(options());
        let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for act in acts {
            match act {
                Act::Begin(run) => world.begin(&format!("r{run}")),
                Act::End(run) => {
                    world.end(&format!("r{run}"));
                    names.remove(&format!("r{run}"));
                }
                Act::Commit(run, digest) => {
                    let (run, digest) = (format!("r{run}"), format!("d{digest}"));
                    if world.engine.state().runs.contains_key(&run.parse::<RunId>().unwrap()) {
                        // A step has written its bytes before it commits them.
                        world.survey.found.retain(|found| found.item.id.as_str() != digest);
                        world.put(&format!("artifact/{digest}"), 1, 50);
                        world.commit(&run, &digest);
                        names.entry(run).or_default().insert(digest);
                    }
                }
                Act::Put(digest) => {
                    let item = format!("artifact/d{digest}");
                    if !world.survey.found.iter().any(|found| found.item.to_string() == item) {
                        world.put(&item, 1, 50);
                    }
                }
                Act::Apply => {
                    let named_by = |digest: &str| -> Vec<RunId> {
                        let runs = names.iter().filter(|(_, digests)| digests.contains(digest));
                        runs.map(|(run, _)| run.parse().unwrap()).collect()
                    };
                    for found in &mut world.survey.found {
                        found.named_by = named_by(found.item.id.as_str());
                    }
                    world.survey.as_of = world.engine.depends_on();
                    world.apply();
                    let moving = world.engine.outstanding().values().filter_map(|effect| match effect {
                        Effect::Trash { item, .. } | Effect::Purge { item, .. } => Some(item),
                        _ => None,
                    });
                    for item in moving {
                        let wanted = world.engine.state().wanted.contains(item);
                        prop_assert!(wanted || named_by(item.id.as_str()).is_empty(), "{item}");
                    }
                }
                Act::Perform => world.perform(),
                Act::Restore(digest) => {
                    let item = format!("artifact/d{digest}").parse().unwrap();
                    world.send(&Command::Restore(RestoreRequest { item, reason: String::new() }));
                }
                Act::Wait(minutes) => {
                    world.now = world.now.plus_ms(u64::from(minutes) * MINUTE);
                    world.fold();
                }
            }
            prop_assert_eq!(world.replayed(), world.engine.digest());
        }
    }
}
