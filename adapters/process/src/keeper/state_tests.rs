//! Tables over the keeper's decisions.

use std::collections::BTreeMap;

use super::*;
use crate::message::How;

const GRACE_MS: u64 = 60_000;

fn id(text: &str) -> WorkerId {
    WorkerId::new(text).unwrap()
}

fn spawn_of(worker: &str, environment: &str) -> SpawnWorker {
    SpawnWorker {
        worker: id(worker),
        environment: environment.into(),
        python: "python3".into(),
        args_env: BTreeMap::new(),
        preload: Vec::new(),
        stdout: "out".into(),
        stderr: "err".into(),
        cwd: "scratch".into(),
        code_paths: Vec::new(),
    }
}

fn process(pid: u32) -> ProcessId {
    ProcessId { pid, start_ticks: u64::from(pid) * 10 }
}

fn exit(how: How) -> Exit {
    Exit { how, peak_rss_bytes: 4096, oom_limit_bytes: None }
}

fn hello(kernel: u64, epoch: u32) -> Input {
    Input::Hello { kernel: KernelId(kernel), instance: "test".into(), epoch }
}

fn said(said: FromZygote, process: Option<ProcessId>) -> Input {
    Input::Zygote { zygote: ZygoteId(1), said, process }
}

fn forked(worker: &str, pid: u32) -> Input {
    said(FromZygote::Forked { worker: id(worker), pid }, Some(process(pid)))
}

fn new() -> State {
    State::new("test".into(), 1, GRACE_MS, 0)
}

/// A kernel of epoch 1 at its side.
fn attended() -> State {
    let mut state = new();
    assert!(!state.step(hello(1, 1), 0).is_empty());
    state
}

/// A worker that runs as this pid.
fn with_worker(worker: &str, pid: u32) -> State {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of(worker, "e")), 0));
    drop(state.step(said(FromZygote::Ready { pid: 9 }, None), 0));
    drop(state.step(forked(worker, pid), 0));
    state
}

fn is_ending(actions: &[Action]) -> bool {
    actions.contains(&Action::SignalAll(15))
}

fn failure(actions: &[Action]) -> Option<&str> {
    actions.iter().find_map(|action| match action {
        Action::Tell(FromKeeper::SpawnFailed { error, .. }) => Some(error.as_str()),
        _ => None,
    })
}

#[test]
fn a_worker_waits_for_its_zygote_and_is_told_with_its_stream() {
    let mut state = attended();
    let actions = state.step(Input::Spawn(spawn_of("w-1", "e")), 0);
    assert!(matches!(actions[..], [Action::StartZygote(ZygoteId(1), _)]));
    let actions = state.step(said(FromZygote::Ready { pid: 9 }, None), 5);
    assert_eq!(actions, [Action::Fork(ZygoteId(1), spawn_of("w-1", "e"))]);
    let spawned = FromKeeper::Spawned { worker: id("w-1"), pid: 70, start_ticks: 700 };
    let expected = [
        Action::Adopt { worker: id("w-1"), process: process(70), brand: 1 },
        Action::TellWithStream(id("w-1"), spawned),
    ];
    assert_eq!(state.step(forked("w-1", 70), 6), expected);
}

#[test]
fn one_zygote_serves_an_environment_and_another_serves_another() {
    let mut state = with_worker("w-1", 70);
    assert!(matches!(state.step(Input::Spawn(spawn_of("w-2", "e")), 0)[..], [Action::Fork(ZygoteId(1), _)]));
    assert!(matches!(
        state.step(Input::Spawn(spawn_of("w-3", "f")), 0)[..],
        [Action::StartZygote(ZygoteId(2), _)]
    ));
}

#[test]
fn the_same_worker_again_changes_nothing() {
    let mut state = with_worker("w-1", 70);
    assert!(state.step(Input::Spawn(spawn_of("w-1", "e")), 0).is_empty());
    drop(state.step(Input::Reaped { process: process(70), exit: exit(How::Code(0)) }, 0));
    let again = state.step(Input::Spawn(spawn_of("w-1", "e")), 0);
    assert!(matches!(again[..], [Action::Tell(FromKeeper::Exited { .. })]), "a dead one is reported again");
}

#[test]
fn an_exit_is_kept_until_it_is_forgotten() {
    let mut state = with_worker("w-1", 70);
    let actions = state.step(Input::Reaped { process: process(70), exit: exit(How::Signal(9)) }, 0);
    let exited = FromKeeper::Exited {
        worker: id("w-1"),
        pid: 70,
        how: How::Signal(9),
        peak_rss_bytes: 4096,
        oom_limit_bytes: None,
    };
    assert_eq!(actions, [Action::Release(id("w-1")), Action::Tell(exited)]);
    drop(state.step(Input::KernelGone { kernel: KernelId(1) }, 1));
    let known = |actions: &[Action]| match &actions[1] {
        Action::Tell(FromKeeper::Welcome { workers, .. }) => workers.clone(),
        other => panic!("{other:?}"),
    };
    let welcome = state.step(hello(2, 2), 2);
    assert_eq!(known(&welcome)[0].status, Some(How::Signal(9)));
    drop(state.step(Input::Forget { worker: id("w-1") }, 3));
    assert!(known(&state.step(hello(3, 2), 4)).is_empty());
}

#[test]
fn a_living_worker_is_not_forgotten() {
    let mut state = with_worker("w-1", 70);
    drop(state.step(Input::Forget { worker: id("w-1") }, 0));
    assert!(state.worker_of(70).is_some());
}

#[test]
fn an_end_that_was_seen_before_the_fork_was_told_is_told_after_it() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    drop(state.step(said(FromZygote::Ready { pid: 9 }, None), 0));
    assert!(state.step(Input::Reaped { process: process(70), exit: exit(How::Code(3)) }, 0).is_empty());
    let told = state.step(said(FromZygote::Forked { worker: id("w-1"), pid: 70 }, None), 0);
    let order: Vec<_> = told
        .iter()
        .filter_map(|action| match action {
            Action::TellWithStream(_, FromKeeper::Spawned { start_ticks, .. }) => Some(*start_ticks),
            Action::Tell(FromKeeper::Exited { .. }) => Some(0),
            _ => None,
        })
        .collect();
    assert_eq!(order, [700, 0]);
}

#[test]
fn a_pid_that_is_not_ours_is_not_believed() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    drop(state.step(said(FromZygote::Ready { pid: 9 }, None), 0));
    let actions = state.step(said(FromZygote::Forked { worker: id("w-1"), pid: 1 }, None), 0);
    assert!(failure(&actions).unwrap().contains("not its child"));
    assert!(state.worker_of(1).is_none());
}

#[test]
fn a_zygote_that_dies_fails_what_waits_for_it_with_its_words_and_is_started_again() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    let actions = state.step(Input::ZygoteGone { zygote: ZygoteId(1), text: "no module".into() }, 1);
    assert_eq!(failure(&actions), Some("no module"));
    assert!(matches!(
        state.step(Input::Spawn(spawn_of("w-2", "e")), 2)[..],
        [Action::StartZygote(ZygoteId(2), _)]
    ));
}

#[test]
fn what_a_zygote_that_served_left_undone_is_tried_once_more() {
    let mut state = with_worker("w-1", 70);
    drop(state.step(Input::Spawn(spawn_of("w-2", "e")), 0));
    let actions = state.step(Input::ZygoteGone { zygote: ZygoteId(1), text: "killed".into() }, 1);
    assert!(matches!(actions[..], [Action::Release(_), Action::StartZygote(ZygoteId(2), _)]));
    let ready = Input::Zygote { zygote: ZygoteId(2), said: FromZygote::Ready { pid: 9 }, process: None };
    assert_eq!(state.step(ready, 2), [Action::Fork(ZygoteId(2), spawn_of("w-2", "e"))]);
    let actions = state.step(Input::ZygoteGone { zygote: ZygoteId(2), text: "killed".into() }, 3);
    assert_eq!(failure(&actions), Some("killed"), "not for ever");
}

#[test]
fn a_zygote_that_does_not_answer_is_ended() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    assert_eq!(state.wake_at_ms(0), Some(ZYGOTE_READY_MS));
    assert!(state.step(Input::Tick, ZYGOTE_READY_MS - 1).is_empty());
    let actions = state.step(Input::Tick, ZYGOTE_READY_MS);
    assert_eq!(actions[0], Action::EndZygote(ZygoteId(1)));
    assert!(failure(&actions).is_some());
}

#[test]
fn a_signal_waits_for_the_process_that_it_is_meant_for() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    let signal = |worker: &str| Input::Signal { worker: id(worker), signal: 9, tree: true };
    assert!(failure(&state.step(signal("w-1"), 0)).is_some(), "nothing was started yet");
    drop(state.step(said(FromZygote::Ready { pid: 9 }, None), 0));
    drop(state.step(Input::Spawn(spawn_of("w-2", "e")), 0));
    assert!(state.step(signal("w-2"), 0).is_empty());
    let expected = Action::Signal { process: process(70), brand: 1, signal: 9, tree: true };
    assert_eq!(state.step(forked("w-2", 70), 0).last(), Some(&expected));
    assert!(state.step(signal("unknown"), 0).is_empty());
}

#[test]
fn a_new_kernel_gets_the_survivors_and_an_older_one_is_refused() {
    let mut state = with_worker("w-1", 70);
    drop(state.step(Input::KernelGone { kernel: KernelId(1) }, 10));
    let actions = state.step(hello(2, 2), 20);
    assert_eq!(actions[0], Action::Attend(KernelId(2)));
    assert_eq!(actions[2], Action::HandOver(id("w-1"), process(70)));
    assert!(matches!(state.step(hello(3, 1), 30)[..], [Action::Refuse(KernelId(3), _)]));
    let other = Input::Hello { kernel: KernelId(4), instance: "other".into(), epoch: 9 };
    assert!(matches!(state.step(other, 30)[..], [Action::Refuse(KernelId(4), _)]));
    assert!(
        state.step(Input::KernelGone { kernel: KernelId(1) }, 40).is_empty(),
        "the old one is gone already"
    );
    assert_eq!(state.wake_at_ms(40), None);
}

#[test]
fn the_grace_passes_once_and_ends_everything() {
    let mut state = with_worker("w-1", 70);
    assert!(state.step(Input::KernelGone { kernel: KernelId(1) }, 1_000).is_empty());
    assert_eq!(state.wake_at_ms(1_000), Some(1_000 + GRACE_MS));
    assert!(state.step(Input::Tick, 999 + GRACE_MS).is_empty());
    let ends_at_ms = 1_000 + GRACE_MS;
    assert!(is_ending(&state.step(Input::Tick, ends_at_ms)));
    assert!(state.step(Input::Tick, ends_at_ms + TERMINATE_MS - 1).is_empty());
    assert_eq!(state.step(Input::Tick, ends_at_ms + TERMINATE_MS), [Action::SignalAll(9)]);
    assert!(matches!(state.step(hello(2, 2), ends_at_ms)[..], [Action::Refuse(..)]), "too late to come back");
    assert_eq!(state.step(Input::Childless, ends_at_ms), [Action::Exit]);
    let mut stuck = state;
    assert_eq!(stuck.step(Input::Tick, ends_at_ms + TERMINATE_MS + KILLED_MS), [Action::Exit]);
}

#[test]
fn without_a_grace_the_kernel_takes_its_workers_along() {
    let mut state = State::new("test".into(), 1, 0, 0);
    assert_eq!(state.wake_at_ms(0), Some(FIRST_HELLO_MS), "time to say hello is not the grace");
    drop(state.step(hello(1, 1), 0));
    assert!(is_ending(&state.step(Input::KernelGone { kernel: KernelId(1) }, 5)));
}

#[test]
fn childless_means_nothing_while_serving() {
    assert!(attended().step(Input::Childless, 0).is_empty());
}

#[test]
fn a_shutdown_ends_once_and_fails_what_waits() {
    let mut state = attended();
    drop(state.step(Input::Spawn(spawn_of("w-1", "e")), 0));
    let actions = state.step(Input::Shutdown, 1);
    assert!(is_ending(&actions) && failure(&actions).is_some());
    assert!(state.step(Input::Shutdown, 2).is_empty());
    assert!(failure(&state.step(Input::Spawn(spawn_of("w-2", "e")), 3)).is_some());
}

#[test]
fn nothing_grows_without_bound() {
    let mut state = attended();
    for n in 0..ZYGOTES_MAX {
        drop(state.step(Input::Spawn(spawn_of(&format!("z-{n}"), &format!("e-{n}"))), 0));
    }
    let busy = state.step(Input::Spawn(spawn_of("w", "one-more")), 0);
    assert!(failure(&busy).is_some(), "no zygote is idle");
    let mut refused = 0;
    for n in 0..2 * WORKERS_MAX {
        refused +=
            usize::from(failure(&state.step(Input::Spawn(spawn_of(&format!("w-{n}"), "e-0")), 0)).is_some());
    }
    assert_eq!(refused, WORKERS_MAX + ZYGOTES_MAX);
}

#[test]
fn the_oldest_exit_record_goes_first() {
    let mut state = with_worker("first", 1);
    drop(state.step(Input::Reaped { process: process(1), exit: exit(How::Code(0)) }, 0));
    for n in 0..u32::try_from(RECORDS_MAX).unwrap() {
        let worker = format!("w-{n}");
        drop(state.step(Input::Spawn(spawn_of(&worker, "e")), 0));
        drop(state.step(forked(&worker, n + 10), 0));
        drop(state.step(Input::Reaped { process: process(n + 10), exit: exit(How::Code(0)) }, 0));
    }
    assert_eq!(state.workers.len(), RECORDS_MAX);
    assert!(!state.workers.contains_key(&id("first")));
}

#[test]
fn an_idle_zygote_makes_room_for_another() {
    let mut state = with_worker("w-0", 70);
    for n in 1..ZYGOTES_MAX {
        drop(state.step(Input::Spawn(spawn_of(&format!("w-{n}"), &format!("e-{n}"))), 0));
    }
    let actions = state.step(Input::Spawn(spawn_of("w", "one-more")), 0);
    assert!(matches!(actions[..], [Action::EndZygote(ZygoteId(1)), Action::StartZygote(..)]));
    assert!(state.worker_of(70).is_some(), "its workers are the keeper's own");
}

#[test]
fn long_last_words_are_clipped_at_a_character() {
    let text = clip(&"é".repeat(20_000));
    assert!(text.len() <= 8 * 1024 && text.starts_with('é'));
}
