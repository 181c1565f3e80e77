//! Records of deletions are bounded: by age and by count, planned like everything else, erased oldest first and once.

use eclosion_schemas::events::GcErased;

use super::*;
use crate::survey::Recorded;

fn recorded(world: &mut World, seq: u64, minutes: u64, run: Option<&str>) {
    let at = Timestamp(world.now.0 - minutes * MINUTE);
    let run = run.map(|run| run.parse().unwrap());
    world.survey.records.push(Recorded { seq: Seq(seq), at, bytes: 10, run });
}

fn erased(world: &World) -> Vec<GcErased> {
    let behind = world.journal.after(Seq(0), &[GcErased::KIND]);
    behind.records.iter().map(|record| record.event::<GcErased>().unwrap().as_ref().clone()).collect()
}

#[test]
fn records_of_deletions_go_by_age_and_by_count_as_one_item_of_the_plan() {
    for (name, age_ms, count_max, expected) in [
        ("neither", u64::MAX, 9, None),
        ("age", 30 * MINUTE, 9, Some((Rule::Age, 20, vec![1, 2]))),
        ("count", u64::MAX, 1, Some((Rule::Count, 20, vec![1, 2]))),
        ("both, and the count asks for more", 45 * MINUTE, 1, Some((Rule::Count, 20, vec![1, 2]))),
        ("none is kept", u64::MAX, 0, Some((Rule::Count, 30, vec![1, 2, 3]))),
    ] {
        let limits = RetentionOptions { record_age_ms: age_ms, record_count_max: count_max, ..options() };
        let mut world = World::new(limits);
        recorded(&mut world, 1, 50, None);
        recorded(&mut world, 2, 40, None);
        recorded(&mut world, 3, 10, None);
        let planned =
            world.plan().items.into_iter().map(|item| (item.item.to_string(), item.rule, item.bytes));
        let of_plan = expected.clone().map(|(rule, bytes, _)| ("record/deletions".to_owned(), rule, bytes));
        assert_eq!(planned.collect::<Vec<_>>(), of_plan.into_iter().collect::<Vec<_>>(), "{name}");
        world.apply();
        let seqs = erased(&world).into_iter().flat_map(|event| event.records).map(|seq| seq.0);
        let expected = expected.map(|(_, _, seqs)| seqs).unwrap_or_default();
        assert_eq!(seqs.collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn what_was_erased_is_not_erased_again_by_an_old_survey() {
    let mut world = World::new(RetentionOptions { record_count_max: 1, ..options() });
    let many = ERASED_MAX as u64 + 3;
    (1..=many).for_each(|seq| recorded(&mut world, seq, 50, None));
    assert_eq!((world.apply().decided, world.apply().decided, world.apply().decided), (1, 1, 0));
    let counts: Vec<_> = erased(&world).iter().map(|event| event.records.len()).collect();
    assert_eq!(counts, [ERASED_MAX, 2]);
    let kept = world.plan().totals.into_iter().find(|total| total.kind == ItemKind::Record).unwrap();
    assert_eq!((kept.count, kept.bytes), (1, 10));
    assert_eq!(world.engine.state().tally.freed_bytes, (many - 1) * 10);
    assert_eq!(world.replayed(), world.engine.digest());
}

#[test]
fn a_run_is_forgotten_with_the_record_of_its_purge() {
    let mut world = World::new(RetentionOptions { record_count_max: 0, ..options() });
    recorded(&mut world, 1, 50, None);
    recorded(&mut world, 2, 50, Some("old"));
    world.apply();
    let runs: Vec<_> = erased(&world).into_iter().flat_map(|event| event.runs).collect();
    assert_eq!(runs, ["old".parse::<RunId>().unwrap()]);
}
