//! Calls that are acts of operators: whoever records them gets them first, and lets them go on.
//!
//! ```text
//! Bus::call ─► is it an act? ─► recorder's mailbox, as an [`ActCall`] ─► Bus::go_on ─► the operation's own address
//!                  └─ no, or nobody records ─────────────────────────────────────────┘
//! ```

use std::sync::Mutex;

use eclosion_schemas::ops::audit::Act;

use crate::bus::{Call, label};
use crate::locked;

/// What the recorder gets as the request.
#[derive(Debug)]
pub struct ActCall {
    /// With who calls.
    pub act: Act,
    pub(crate) operation: &'static str,
    call: Mutex<Option<Call>>,
}

impl ActCall {
    /// Gives the call back if it is no act, or is called elsewhere than at its own address.
    pub(crate) fn of(call: Call) -> Result<Self, Call> {
        let own = call.address.as_str() == call.spec.address;
        let act = call.spec.act.as_ref().filter(|_| own).and_then(|act| act(&*call.request));
        match act {
            Some(mut act) => {
                act.caller = call.context.caller.as_deref().map(str::to_owned);
                Ok(Self { act, operation: label(&call.spec), call: Mutex::new(Some(call)) })
            }
            None => Err(call),
        }
    }

    /// The call, once: nothing if whoever had the message before has died of it.
    #[must_use]
    pub fn take(&self) -> Option<Call> {
        locked(&self.call).take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use eclosion_schemas::operation::Table;
    use eclosion_schemas::ops::kernel::{Empty, Ping};
    use eclosion_schemas::ops::schedule::{ActRequest, Pause, StateReply};
    use eclosion_schemas::schedule::ScheduleState;
    use eclosion_schemas::{Error, Operation};

    use super::*;
    use crate::{Address, Bus, Context, InHand, Item, Mailbox, MailboxOptions, Pending, Taken};

    fn call<O: Operation>(bus: &Bus, request: O::Request) -> Pending {
        let spec = std::sync::Arc::clone(bus.table().get(O::NAME).unwrap());
        let mut context = Context::until(Instant::now() + Duration::from_secs(10));
        context.caller = Some("ada".into());
        let address = Address::new(O::ADDRESS).unwrap();
        bus.call(Call { spec, address, request: Box::new(request), context, credit: None })
    }

    async fn take(mailbox: &Mailbox) -> InHand {
        match mailbox.take().await {
            Taken::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    async fn answered<R: 'static>(mut pending: Pending) -> Result<R, Error> {
        match pending.next().await {
            Some(Item::Reply(reply)) => Ok(*reply?.downcast().unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn house() -> (Bus, Mailbox, Mailbox) {
        let table: Table = eclosion_schemas::ops::table().unwrap();
        let bus = Bus::new(table);
        let open = |name: &str| bus.open(Address::new(name).unwrap(), MailboxOptions::default()).unwrap();
        let (recorder, schedules) = (open("/kernel"), open(Pause::ADDRESS));
        bus.record_acts_at(Address::new("/kernel").unwrap());
        (bus, recorder, schedules)
    }

    fn pause() -> ActRequest {
        ActRequest { name: "nightly".parse().unwrap(), reason: "maintenance".into() }
    }

    #[tokio::test]
    async fn an_act_is_handled_once_its_recorder_has_let_it_go_on() {
        let (bus, recorder, schedules) = house();
        let pending = call::<Pause>(&bus, pause());
        assert!(schedules.try_take().is_none());

        let message = take(&recorder).await;
        assert!(message.request::<Pause>().is_none() && message.operation == Pause::NAME);
        let recorded = message.request_any().downcast_ref::<ActCall>().unwrap();
        let Act { action, target, reason, caller, .. } = &recorded.act;
        assert_eq!([action, target, reason], ["schedule.pause", "schedule nightly", "maintenance"]);
        assert_eq!(caller.as_deref(), Some("ada"));
        let going_on = bus.go_on(recorded.take().unwrap());
        assert!(recorded.take().is_none(), "it goes on once");

        let handled = take(&schedules).await;
        assert_eq!(handled.request::<Pause>(), Some(&pause()));
        handled.finish().reply(Ok(Box::new(StateReply { state: ScheduleState::Paused })));
        let reply = answered::<StateReply>(going_on).await.unwrap();
        message.finish().reply(Ok(Box::new(reply)));
        assert_eq!(answered::<StateReply>(pending).await.unwrap().state, ScheduleState::Paused);
    }

    #[tokio::test]
    async fn what_is_no_act_and_what_actors_ask_goes_its_way() {
        let (bus, recorder, schedules) = house();
        let asked = bus.ask::<Pause>(pause()).into_future();
        let handled = take(&schedules).await;
        assert_eq!(handled.request::<Pause>(), Some(&pause()));
        drop(asked);

        let pending = call::<Ping>(&bus, Empty {});
        let message = take(&recorder).await;
        assert!(message.request::<Ping>().is_some());
        message.finish().reply(Ok(Box::new(Empty {})));
        assert_eq!(answered::<Empty>(pending).await.unwrap(), Empty {});
    }

    #[tokio::test]
    async fn an_act_that_nobody_records_is_refused() {
        let (bus, recorder, schedules) = house();
        assert!(bus.close(recorder.address()));
        let refused = answered::<StateReply>(call::<Pause>(&bus, pause())).await.unwrap_err();
        assert_eq!(refused.code, eclosion_schemas::Code::NoResponders);
        assert!(schedules.try_take().is_none());
    }
}
