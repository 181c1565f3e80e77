//! How a kernel inside a program ends, and what those are told who still ask.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::time::Duration;

use eclosion::bus::InHand;
use eclosion::schemas::operation::{Durability, NoItem, Operation, Role, Spec};
use eclosion::schemas::{Code, Error};
use eclosion::{Handler, Kernel};

/// Nothing here takes so long; a test that hangs must end.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Divide {
    by: u32,
}

impl Operation for Divide {
    type Request = Divide;
    type Reply = u32;
    type Item = NoItem;
    const NAME: &'static str = "calc.divide";
    const ADDRESS: &'static str = "/calc";
    const ROLE: Role = Role::Operate;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Divides a thousand.";
    fn example() -> Divide {
        Divide { by: 10 }
    }
}

struct Calc;

impl Handler for Calc {
    async fn handle(&mut self, message: InHand) {
        let by = message.request::<Divide>().map_or(1, |request| request.by);
        message.finish().reply(Ok(Box::new(1_000 / by)));
    }
}

async fn kernel() -> Kernel {
    let builder = Kernel::builder().ephemeral().operation(Spec::of::<Divide>());
    builder.service("/calc", || Calc).start().await.unwrap()
}

async fn divided(kernel: &Kernel, by: u32) -> Result<u32, Error> {
    let asked = kernel.bus().ask::<Divide>(Divide { by }).into_future();
    tokio::time::timeout(PATIENCE, asked).await.expect("an ask resolves")
}

#[tokio::test]
async fn who_asks_a_kernel_that_was_shut_down_is_told_so() {
    let kernel = kernel().await;
    assert_eq!(divided(&kernel, 10).await, Ok(100));
    kernel.shutdown().await;
    assert_eq!(divided(&kernel, 10).await.unwrap_err().code, Code::NoResponders);
}

#[tokio::test]
async fn a_kernel_that_gives_up_has_stopped_and_whoever_asks_is_told() {
    let kernel = kernel().await;
    let dying = async { while divided(&kernel, 0).await.unwrap_err().reason == "actor.died" {} };
    tokio::time::timeout(PATIENCE, async { tokio::join!(kernel.stopped(), dying) }).await.expect("it ends");
    assert!(kernel.escalated().await.to_string().contains("/calc"));
    assert_eq!(divided(&kernel, 10).await.unwrap_err().code, Code::NoResponders);
    kernel.shutdown().await;
}
