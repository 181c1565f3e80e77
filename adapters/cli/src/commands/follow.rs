//! Following a run: subscriptions say that something changed, `run.get` says what is.
//!
//! What is shown comes from `run.get` alone, at most ten times a second and at least once: a delivery that was dropped
//! costs a moment and never a wrong picture.

use std::time::Duration;

use eclosion_client::Client;
use eclosion_client::call::Subscription;
use eclosion_schemas::codec::{self, json};
use eclosion_schemas::ops::kernel::Delivery;
use eclosion_schemas::ops::run::{Get, GetReply, RunRequest};
use eclosion_schemas::view::{TaskItem, TaskReport};
use eclosion_schemas::{Error, RunId, TaskId};
use serde_json::Value;
use tokio::time::Instant;

use crate::render::progress::{Building, Progress};
use crate::render::shown;

/// Between two looks after a change.
const REFRESH: Duration = Duration::from_millis(100);
/// Between two looks when nothing was said.
const REFRESH_IDLE: Duration = Duration::from_secs(2);

/// Until the run is over; gives how it was then.
pub(super) async fn follow(client: &Client, run: &RunId, progress: &mut Progress) -> Result<GetReply, Error> {
    let mut changes = Some(client.subscribe(format!("run/{run}/**")).await?);
    let mut environments = Some(client.subscribe("environment/**").await?);
    loop {
        let found = client.call::<Get>(RunRequest { run: run.clone() }).await?;
        progress.update(&found);
        if found.run.state.is_final() {
            return Ok(found);
        }
        let looked = Instant::now();
        let mut due = looked + REFRESH_IDLE;
        // Until the next look is due: take what comes, and let a change make it due sooner.
        while Instant::now() < due {
            tokio::select! {
                delivery = next(&mut changes) => if is_change(&delivery, progress) {
                    due = due.min(looked + REFRESH);
                },
                delivery = next(&mut environments) => if let Some(building) = building(&delivery) {
                    progress.building(&building);
                },
                () = tokio::time::sleep_until(due) => {}
                why = client.closed() => return Err(why),
            }
        }
    }
}

/// The next delivery; a subscription that has ended stays silent, as the idle look remains.
async fn next(subscription: &mut Option<Subscription>) -> Delivery {
    if let Some(open) = subscription {
        match open.next().await {
            Some(Ok(delivery)) => return delivery,
            Some(Err(why)) => tracing::debug!(%why, "a subscription ended"),
            None => {}
        }
    }
    *subscription = None;
    std::future::pending().await
}

fn is_change(delivery: &Delivery, progress: &mut Progress) -> bool {
    let Delivery::Change { subject, value, .. } = delivery else {
        return matches!(delivery, Delivery::Gap { .. });
    };
    match said(subject, value) {
        Some((task, Said::Report(report))) => progress.report(&task, &report),
        Some((task, Said::Item(item))) => progress.item(&task, &shown(&item.payload).to_string()),
        None => return true,
    }
    false
}

/// What a running task says.
enum Said {
    Report(TaskReport),
    Item(TaskItem),
}

/// `run/RUN/task/TASK/report` or `…/item`.
fn said(subject: &str, value: &Value) -> Option<(TaskId, Said)> {
    let mut chunks = subject.rsplit('/');
    let (kind, task) = (chunks.next()?, chunks.next()?);
    let said = match kind {
        "report" => Said::Report(serde_json::from_value(value.clone()).ok()?),
        // Bytes are in it, for which JSON has a form of its own.
        "item" => Said::Item(codec::decode(&json::to_msgpack(&json::encode(value).ok()?).ok()?).ok()?),
        _ => return None,
    };
    Some((task.parse().ok()?, said))
}

fn building(delivery: &Delivery) -> Option<Building> {
    let Delivery::Change { subject, value, .. } = delivery else { return None };
    subject.ends_with("/progress").then(|| serde_json::from_value(value.clone()).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_told_from_a_state_by_its_subject() {
        let value = serde_json::json!({"tag": "progress", "done": 1.0, "total": 4.0, "text": "folds"});
        let (task, _) = said("run/7k2m4q9d/task/train[0]/report", &value).unwrap();
        assert_eq!(task.as_str(), "train[0]");
        assert!(said("run/7k2m4q9d/task/train[0]/state", &value).is_none());
        assert!(said("report", &value).is_none());
    }

    #[test]
    fn an_item_is_shown_as_the_value_that_was_yielded() {
        let Some((_, Said::Item(item))) = said(
            "run/7k2m4q9d/task/speak/item",
            &serde_json::json!({"attempt": 1, "index": 0, "payload": {"body": {"$b64": "onRv"}}}),
        ) else {
            panic!("no item")
        };
        assert_eq!(shown(&item.payload), serde_json::json!("to"));
    }
}
