//! Dead letters of a whole kernel: a message whose handling dies twice is listed, shown, delivered again, dropped; what an
//! operator did is in the audit record.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::future::IntoFuture;

use eclosion::{Kernel, Options, Places};
use eclosion_bus::{Address, Bus, InHand, Mailbox, MailboxOptions, Taken};
use eclosion_schemas::Error;
use eclosion_schemas::ops::kernel::{Empty, Ping, Status};
use eclosion_schemas::ops::{audit, dead};

async fn take(mailbox: &Mailbox) -> InHand {
    let taken = tokio::time::timeout(std::time::Duration::from_secs(20), mailbox.take());
    match taken.await.unwrap() {
        Taken::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

fn newest_of(bus: &Bus) -> u64 {
    bus.dead_letters().last().unwrap().id
}

/// What the kernel's state says of dead letters.
async fn findings(bus: &Bus) -> Vec<String> {
    let status = bus.ask::<Status>(Empty {}).await.unwrap();
    status.findings.into_iter().filter(|finding| finding.contains("dead letters")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_is_listed_shown_delivered_again_and_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = Kernel::start(Options::new(Places::below(directory.path(), "dead"))).await.unwrap();
    let bus = kernel.bus();
    let frail = Address::new("/frail").unwrap();
    let mailbox = bus.open(frail.clone(), MailboxOptions::default()).unwrap();
    for _ in 0..2 {
        bus.tell_to::<Ping>(&frail, Empty {}).unwrap();
        take(&mailbox).await.died("first");
        take(&mailbox).await.died("second");
    }

    assert_eq!(findings(bus).await, ["/frail has 2 dead letters. See: eclosion dead ls"]);
    let list = bus.ask::<dead::List>(dead::ListRequest { limit: 1 }).await.unwrap();
    assert_eq!((list.letters.len(), list.kept, list.forgotten), (1, 2, 0));
    let newest = &list.letters[0];
    assert_eq!(
        (newest.address.as_str(), newest.operation.as_str(), newest.deliveries),
        ("/frail", "kernel.ping", 2)
    );
    let shown = bus.ask::<dead::Show>(dead::ShowRequest { id: newest.id }).await.unwrap();
    assert_eq!((&shown.letter.why, shown.request), (&"second".to_owned(), serde_json::json!({})));

    let on = |id, dry_run| dead::ActRequest { id, reason: "mended".into(), dry_run };
    let dry = bus.ask::<dead::Replay>(on(newest.id, true)).await.unwrap();
    assert!(!dry.done && mailbox.try_take().is_none());
    // It dies again: whoever replays is told so, and finds it where it was.
    let (again, ()) = tokio::join!(bus.ask::<dead::Replay>(on(newest.id, false)).into_future(), async {
        take(&mailbox).await.died("third");
        take(&mailbox).await.died("fourth");
    });
    let again = again.unwrap_err();
    assert!(again.reason == "actor.died" && again.message.contains("fourth"), "{again}");
    assert!(again.help.is_some_and(|help| help.contains("eclosion dead ls")));
    let newest = newest_of(bus);
    // It is refused by its handler: delivered, and said.
    let refusal = Error::invalid("frail.no", "not today");
    let (refused, ()) = tokio::join!(bus.ask::<dead::Replay>(on(newest, false)).into_future(), async {
        take(&mailbox).await.finish().reply(Err(refusal.clone()));
    });
    let refused = refused.unwrap();
    assert_eq!((refused.done, refused.refused), (true, Some(refusal)));
    let last = newest_of(bus);
    assert!(bus.ask::<dead::Drop>(on(last, false)).await.unwrap().done);
    assert_eq!(bus.dead_letters(), []);
    assert_eq!(findings(bus).await, [""; 0], "seen to");
    let refused = bus.ask::<dead::Drop>(on(last, false)).await.unwrap_err();
    assert_eq!(refused.reason, "dead_letter.unknown");

    let acts = bus.ask::<audit::List>(audit::ListRequest { limit: 10 }).await.unwrap().acts;
    let told: Vec<_> = acts
        .iter()
        .map(|view| (view.act.action.as_str(), view.error.as_ref().map_or("done", |error| &error.reason)))
        .collect();
    let expected = [
        ("dead.drop", "dead_letter.unknown"),
        ("dead.drop", "done"),
        ("dead.replay", "done"),
        ("dead.replay", "actor.died"),
    ];
    assert_eq!(told, expected);
    assert!(acts.iter().all(|view| view.act.reason == "mended"));
    kernel.shutdown().await;
}
