//! Tables of instants: intervals, cron over the two nights on which clocks change, one-shots, and the search for the last.

use eclosion_schemas::schedule::{Action, DstRule};

use super::*;

fn spec(trigger: Trigger, zone: &str) -> ScheduleSpec {
    let action =
        Action::Call { operation: "run.list".into(), request: serde_json::Value::Null, deadline_ms: 1 };
    ScheduleSpec { zone: Some(zone.into()), ..ScheduleSpec::new(trigger, action) }
}

fn cron(cron: &str, zone: &str) -> ScheduleSpec {
    spec(Trigger::Cron { cron: cron.into() }, zone)
}

fn plan(spec: &ScheduleSpec) -> Plan {
    Plan::compile(&Zones::default(), spec).unwrap().0
}

fn at(text: &str) -> Timestamp {
    parse_instant(text).unwrap()
}

fn name() -> ScheduleName {
    "nightly".parse().unwrap()
}

/// Local times with their offsets, and the rules.
fn shown(spec: &ScheduleSpec, after: &str, n: u32) -> Vec<String> {
    let ticks = plan(spec).preview(&name(), at(after), n);
    let rule = |rule: Option<DstRule>| rule.map(|rule| format!(" {rule:?}")).unwrap_or_default();
    ticks.into_iter().map(|tick| format!("{}{}", tick.local, rule(tick.rule))).collect()
}

#[test]
fn an_interval_counts_from_its_anchor_in_both_directions() {
    let every = |every_ms, anchor: &str| spec(Trigger::Every { every_ms, anchor: at(anchor) }, "UTC");
    for (every_ms, anchor, after, expected) in [
        (600_000, "1970-01-01T00:00:00Z", "2026-11-21T10:01:00Z", "2026-11-21T10:10:00+00:00"),
        // Strictly later.
        (600_000, "1970-01-01T00:00:00Z", "2026-11-21T10:10:00Z", "2026-11-21T10:20:00+00:00"),
        (600_000, "2026-11-21T10:03:00Z", "2026-11-21T10:01:00Z", "2026-11-21T10:03:00+00:00"),
        // The anchor may lie ahead.
        (600_000, "2030-01-01T00:03:00Z", "2026-11-21T10:01:00Z", "2026-11-21T10:03:00+00:00"),
        (86_400_000, "2026-01-01T06:00:00Z", "2026-11-21T10:00:00Z", "2026-11-22T06:00:00+00:00"),
        (100, "1970-01-01T00:00:00Z", "2026-11-21T10:00:00.05Z", "2026-11-21T10:00:00.1+00:00"),
    ] {
        assert_eq!(
            shown(&every(every_ms, anchor), after, 1),
            [expected],
            "{every_ms} from {anchor} after {after}"
        );
    }
}

/// zone, expression, missing, repeated, after (UTC), the local times that follow
type Night = (&'static str, &'static str, MissingTime, RepeatedTime, &'static str, &'static [&'static str]);

const FORWARD: MissingTime = MissingTime::ShiftForward;
const FIRST: RepeatedTime = RepeatedTime::First;
const SECOND: RepeatedTime = RepeatedTime::Second;
const BOTH: RepeatedTime = RepeatedTime::Both;

#[test]
fn a_night_on_which_clocks_are_put_forward_follows_the_policy() {
    let cases: &[Night] = &[
        // 2027-03-28: Berlin goes from 02:00 to 03:00.
        (
            "Europe/Berlin",
            "30 2 * * *",
            FORWARD,
            FIRST,
            "2027-03-26T12:00:00Z",
            &[
                "2027-03-27T02:30:00+01:00",
                "2027-03-28T03:30:00+02:00 ShiftedForward",
                "2027-03-29T02:30:00+02:00",
            ],
        ),
        (
            "Europe/Berlin",
            "30 2 * * *",
            MissingTime::Skip,
            FIRST,
            "2027-03-26T12:00:00Z",
            &["2027-03-27T02:30:00+01:00", "2027-03-29T02:30:00+02:00"],
        ),
        // What is shifted onto a tick that is there anyway is one tick.
        (
            "Europe/Berlin",
            "30 2,3 * * *",
            FORWARD,
            FIRST,
            "2027-03-28T00:00:00Z",
            &["2027-03-28T03:30:00+02:00", "2027-03-29T02:30:00+02:00"],
        ),
        // Between two of the shifted ones, one that is there.
        (
            "Europe/Berlin",
            "0,20,40 2 * * *",
            FORWARD,
            FIRST,
            "2027-03-28T00:00:00Z",
            &[
                "2027-03-28T03:00:00+02:00 ShiftedForward",
                "2027-03-28T03:20:00+02:00 ShiftedForward",
                "2027-03-28T03:40:00+02:00 ShiftedForward",
                "2027-03-29T02:00:00+02:00",
            ],
        ),
        (
            "Europe/Berlin",
            "59 59 1 * * *",
            FORWARD,
            FIRST,
            "2027-03-28T00:00:00Z",
            &["2027-03-28T01:59:59+01:00", "2027-03-29T01:59:59+02:00"],
        ),
        (
            "Europe/Berlin",
            "0 3 * * *",
            FORWARD,
            FIRST,
            "2027-03-28T00:00:00Z",
            &["2027-03-28T03:00:00+02:00"],
        ),
        // 2027-03-14: New York goes from 02:00 to 03:00.
        (
            "America/New_York",
            "15 2 * * *",
            FORWARD,
            FIRST,
            "2027-03-13T12:00:00Z",
            &["2027-03-14T03:15:00-04:00 ShiftedForward", "2027-03-15T02:15:00-04:00"],
        ),
        (
            "America/New_York",
            "15 2 * * *",
            MissingTime::Skip,
            FIRST,
            "2027-03-13T12:00:00Z",
            &["2027-03-15T02:15:00-04:00"],
        ),
        // 2026-10-04: Lord Howe goes from 02:00 to 02:30.
        (
            "Australia/Lord_Howe",
            "*/10 2 * * *",
            FORWARD,
            FIRST,
            "2026-10-03T15:00:00Z",
            &[
                "2026-10-04T02:30:00+11:00",
                "2026-10-04T02:40:00+11:00",
                "2026-10-04T02:50:00+11:00",
                "2026-10-05T02:00:00+11:00",
            ],
        ),
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            FORWARD,
            FIRST,
            "2026-10-03T15:00:00Z",
            &["2026-10-04T02:45:00+11:00 ShiftedForward", "2026-10-05T02:15:00+11:00"],
        ),
        // A whole day was left out: Samoa had no 30 December 2011.
        (
            "Pacific/Apia",
            "0 12 30 12 *",
            MissingTime::Skip,
            FIRST,
            "2011-12-01T00:00:00Z",
            &["2012-12-30T12:00:00+14:00"],
        ),
        (
            "Pacific/Apia",
            "0 12 30 12 *",
            FORWARD,
            FIRST,
            "2011-12-01T00:00:00Z",
            &["2011-12-31T12:00:00+14:00 ShiftedForward"],
        ),
    ];
    check(cases);
}

#[test]
fn a_night_on_which_clocks_are_put_back_follows_the_policy() {
    let cases: &[Night] = &[
        // 2026-10-25: Berlin goes from 03:00 to 02:00.
        (
            "Europe/Berlin",
            "30 2 * * *",
            FORWARD,
            FIRST,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00+02:00 RepeatedFirst", "2026-10-26T02:30:00+01:00"],
        ),
        (
            "Europe/Berlin",
            "30 2 * * *",
            FORWARD,
            SECOND,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00+01:00 RepeatedSecond", "2026-10-26T02:30:00+01:00"],
        ),
        (
            "Europe/Berlin",
            "30 2 * * *",
            FORWARD,
            BOTH,
            "2026-10-24T12:00:00Z",
            &[
                "2026-10-25T02:30:00+02:00 RepeatedFirst",
                "2026-10-25T02:30:00+01:00 RepeatedSecond",
                "2026-10-26T02:30:00+01:00",
            ],
        ),
        // Instants stay in order where local times do not.
        (
            "Europe/Berlin",
            "0,30 2,3 * * *",
            FORWARD,
            BOTH,
            "2026-10-24T23:59:00Z",
            &[
                "2026-10-25T02:00:00+02:00 RepeatedFirst",
                "2026-10-25T02:30:00+02:00 RepeatedFirst",
                "2026-10-25T02:00:00+01:00 RepeatedSecond",
                "2026-10-25T02:30:00+01:00 RepeatedSecond",
                "2026-10-25T03:00:00+01:00",
                "2026-10-25T03:30:00+01:00",
            ],
        ),
        // The hours around are nobody's business.
        (
            "Europe/Berlin",
            "59 59 1 * * *",
            FORWARD,
            FIRST,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T01:59:59+02:00"],
        ),
        (
            "Europe/Berlin",
            "0 3 * * *",
            FORWARD,
            SECOND,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T03:00:00+01:00"],
        ),
        // 2026-11-01: New York goes from 02:00 to 01:00.
        (
            "America/New_York",
            "0 1 * * *",
            FORWARD,
            FIRST,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T01:00:00-04:00 RepeatedFirst", "2026-11-02T01:00:00-05:00"],
        ),
        (
            "America/New_York",
            "0 1 * * *",
            FORWARD,
            SECOND,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T01:00:00-05:00 RepeatedSecond", "2026-11-02T01:00:00-05:00"],
        ),
        // 2027-04-04: Lord Howe goes from 02:00 to 01:30.
        (
            "Australia/Lord_Howe",
            "*/20 1 * * *",
            FORWARD,
            BOTH,
            "2027-04-03T13:59:00Z",
            &[
                "2027-04-04T01:00:00+11:00",
                "2027-04-04T01:20:00+11:00",
                "2027-04-04T01:40:00+11:00 RepeatedFirst",
                "2027-04-04T01:40:00+10:30 RepeatedSecond",
                "2027-04-05T01:00:00+10:30",
            ],
        ),
    ];
    check(cases);
}

fn check(cases: &[Night]) {
    for (zone, text, missing, repeated, after, expected) in cases {
        let spec = ScheduleSpec { missing: Some(*missing), repeated: Some(*repeated), ..cron(text, zone) };
        let found = shown(&spec, after, u32::try_from(expected.len()).unwrap());
        assert_eq!(found, *expected, "{text} in {zone}, {missing:?}, {repeated:?}");
    }
}

#[test]
fn what_is_left_out_is_filled_in_by_name() {
    let filled = |spec: &ScheduleSpec| Plan::compile(&Zones::default(), spec).unwrap().1;
    let daily = filled(&ScheduleSpec { zone: None, ..cron("30 2 * * *", "UTC") });
    assert_eq!(daily.zone.as_deref(), Some("UTC"));
    assert_eq!((daily.missing, daily.repeated), (Some(FORWARD), Some(FIRST)));
    assert_eq!((daily.misfire, daily.overlap), (Some(Misfire::RunOnce {}), Some(Overlap::Skip {})));
    assert_eq!(daily.grace_ms, Some(GRACE_MS_DEFAULT));
    // Every ten minutes is meant all night long.
    assert_eq!(filled(&cron("*/10 * * * *", "Europe/Berlin")).repeated, Some(BOTH));
    let all = ScheduleSpec { misfire: Some(Misfire::RunAll { max: 3 }), ..cron("30 2 * * *", "UTC") };
    assert_eq!(filled(&all).overlap, Some(Overlap::Queue { max: 3 }));
    assert_eq!(filled(&daily), daily, "a complete one stays as it is");
}

#[test]
fn every_ten_minutes_is_every_ten_minutes_on_both_nights() {
    for after in ["2027-03-28T00:00:00Z", "2026-10-24T23:00:00Z"] {
        let plan = plan(&cron("*/10 * * * *", "Europe/Berlin"));
        let ticks = plan.preview(&name(), at(after), 24);
        let gaps: Vec<_> =
            ticks.windows(2).map(|pair| pair[1].scheduled.since_ms(pair[0].scheduled)).collect();
        assert!(gaps.iter().all(|gap| *gap == 600_000), "{after}: {gaps:?}");
    }
}

#[test]
fn a_one_shot_is_an_instant_or_a_local_time() {
    let one = |text: &str, zone: &str| spec(Trigger::At { at: text.into() }, zone);
    let after = "2026-01-01T00:00:00Z";
    for (text, zone, expected) in [
        ("2026-12-24T18:00:00Z", "Europe/Berlin", "2026-12-24T19:00:00+01:00"),
        ("2026-12-24T18:00:00+03:00", "UTC", "2026-12-24T15:00:00+00:00"),
        ("2026-12-24T18:00:00", "Europe/Berlin", "2026-12-24T18:00:00+01:00"),
        ("2027-03-28T02:30", "Europe/Berlin", "2027-03-28T03:30:00+02:00 ShiftedForward"),
    ] {
        assert_eq!(shown(&one(text, zone), after, 3), [expected], "{text} in {zone}");
    }
    let missing =
        ScheduleSpec { missing: Some(MissingTime::Skip), ..one("2027-03-28T02:30", "Europe/Berlin") };
    let refused = Plan::compile(&Zones::default(), &missing).unwrap_err();
    assert_eq!(refused.reason, "schedule.never");
}

#[test]
fn the_last_instant_is_the_one_that_walking_reaches() {
    for spec in [
        cron("*/7 3-5 * * *", "Europe/Berlin"),
        cron("0 0 29 2 *", "UTC"),
        cron("*/20 1 * * *", "Australia/Lord_Howe"),
        cron("* * * * * *", "UTC"),
        spec(Trigger::Every { every_ms: 7_001, anchor: Timestamp(17) }, "UTC"),
        spec(Trigger::At { at: "2027-04-04T00:00:00Z".into() }, "UTC"),
    ] {
        let plan = plan(&spec);
        let after = at("2027-04-02T11:59:59.5Z");
        let mut walked = after;
        for (step, due) in
            std::iter::successors(plan.next(after), |due| plan.next(due.at)).take(300).enumerate()
        {
            if step % 37 == 0 {
                let before = (walked > after).then_some(walked);
                assert_eq!(plan.latest(after, Timestamp(due.at.0 - 1)), before, "{spec:?} before {due:?}");
                assert_eq!(plan.latest(after, due.at), Some(due.at), "{spec:?} at {due:?}");
            }
            assert!(due.at > walked, "in order");
            walked = due.at;
        }
    }
}

#[test]
fn jitter_follows_from_the_name_and_stays_within_its_bound() {
    let jittered = ScheduleSpec { jitter_ms: 5_000, ..cron("* * * * *", "UTC") };
    let ticks = plan(&jittered).preview(&name(), at("2026-11-21T10:00:00Z"), 200);
    let delays: Vec<_> = ticks.iter().map(|tick| tick.fires_at.since_ms(tick.scheduled)).collect();
    assert!(delays.iter().all(|delay| *delay <= 5_000));
    assert!(
        delays.iter().any(|delay| *delay > 4_000) && delays.iter().any(|delay| *delay < 1_000),
        "{delays:?}"
    );
    assert_eq!(plan(&jittered).preview(&name(), at("2026-11-21T10:00:00Z"), 200), ticks, "the same again");
    let other = plan(&jittered).preview(&"weekly".parse().unwrap(), at("2026-11-21T10:00:00Z"), 200);
    assert_ne!(other, ticks, "another name, other delays");
}

#[test]
fn what_cannot_be_meant_is_refused_with_a_way_out() {
    let every = |every_ms| spec(Trigger::Every { every_ms, anchor: Timestamp(0) }, "UTC");
    let with_overlap = |overlap| ScheduleSpec { overlap: Some(overlap), ..every(1_000) };
    for (spec, reason) in [
        (cron("30 2 * * *", "Europe/Berln"), "schedule.zone"),
        (cron("30 2 * * *", ""), "schedule.zone"),
        (cron("30 25 * * *", "UTC"), "schedule.cron"),
        (cron("0 0 30 2 *", "UTC"), "schedule.never"),
        (every(99), "schedule.every"),
        (every(u64::MAX), "schedule.every"),
        (spec(Trigger::At { at: "tomorrow".into() }, "UTC"), "schedule.at"),
        (spec(Trigger::At { at: "1969-12-31T23:59:59Z".into() }, "UTC"), "schedule.at"),
        (spec(Trigger::At { at: "2026-12-24T18:00:00.5".into() }, "UTC"), "schedule.at"),
        (ScheduleSpec { jitter_ms: u64::MAX, ..every(1_000) }, "schedule.span"),
        (ScheduleSpec { grace_ms: Some(u64::MAX), ..every(1_000) }, "schedule.span"),
        (
            ScheduleSpec { misfire: Some(Misfire::Skip {}), grace_ms: Some(0), ..every(1_000) },
            "schedule.grace",
        ),
        (ScheduleSpec { misfire: Some(Misfire::RunAll { max: 0 }), ..every(1_000) }, "schedule.bound"),
        (with_overlap(Overlap::Queue { max: 0 }), "schedule.bound"),
        (with_overlap(Overlap::Queue { max: TICKS_MAX + 1 }), "schedule.bound"),
        (with_overlap(Overlap::Allow { max: LIVE_MAX + 1 }), "schedule.bound"),
    ] {
        let refused = Plan::compile(&Zones::default(), &spec).unwrap_err();
        assert_eq!(refused.reason, reason, "{spec:?}");
    }
    let berlin = Plan::compile(&Zones::default(), &cron("30 2 * * *", "Europe/Berln")).unwrap_err();
    assert_eq!(berlin.help.as_deref(), Some("did you mean Europe/Berlin?"));
}

#[test]
fn the_far_end_of_time_ends_every_schedule() {
    for spec in
        [cron("* * * * *", "Europe/Berlin"), spec(Trigger::At { at: "2026-12-24T18:00:00Z".into() }, "UTC")]
    {
        for after in [u64::MAX, u64::MAX - 1, i64::MAX as u64, 253_402_300_800_000] {
            assert_eq!(plan(&spec).next(Timestamp(after)), None, "{spec:?} after {after}");
        }
    }
}
