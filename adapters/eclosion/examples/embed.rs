//! A kernel inside a program: one operation, the actor that serves it, and somebody who watches.
//!
//! It panics at the third guest. The next incarnation answers him, and the program sees nothing but a restart.
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use eclosion::bus::{Delivery, Filter, InHand, Publication, Subject};
use eclosion::schemas::operation::{Durability, NoItem, Operation, Role, Spec};
use eclosion::schemas::{Error, Seq, ops::kernel::OnFull};
use eclosion::{Handler, Kernel};

#[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Hello(String);

impl Operation for Hello {
    type Request = Hello;
    type Reply = String;
    type Item = NoItem;
    const NAME: &'static str = "desk.hello";
    const ADDRESS: &'static str = "/desk";
    const ROLE: Role = Role::Operate;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Greets a guest.";
    fn example() -> Hello {
        Hello("Ada".into())
    }
}

struct Desk(eclosion::bus::Bus);

impl Handler for Desk {
    async fn handle(&mut self, message: InHand) {
        let guest = message.request::<Hello>().map(|hello| hello.0.clone()).unwrap_or_default();
        assert!(guest != "Alan" || message.deliveries > 1, "nobody is perfect");
        let Ok(subject) = Subject::new("desk/guest") else { return };
        self.0.publish(&subject, Publication::new(Default::default(), Seq(0), guest.clone()));
        message.finish().reply(Ok(Box::new(format!("Hello, {guest}!"))));
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let kernel = Kernel::builder().ephemeral().operation(Spec::of::<Hello>());
    let kernel = kernel.service_with("/desk", |bus| Desk(bus.clone())).start().await?;
    let mut guests = kernel.bus().subscribe(Filter::new("desk/*")?, OnFull::Gap, 16);
    for guest in ["Ada", "Grace", "Alan"] {
        println!("{}", kernel.bus().ask::<Hello>(Hello(guest.into())).await?);
        while let Some(delivery) = guests.next().await {
            let Delivery::Change(event) = delivery else { continue };
            println!("{}: {}", event.subject, event.to_json()?);
            break;
        }
    }
    for row in kernel.rows().iter().filter(|row| row.address == "/desk") {
        println!("{} served {} guests and was restarted {} time(s)", row.address, row.handled, row.restarts);
    }
    kernel.shutdown().await;
    Ok(())
}
