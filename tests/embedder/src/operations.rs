//! What others may ask of the greeter.

use eclosion::schemas::operation::{Durability, NoItem, Operation, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub const ADDRESS: &str = "/greet";

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct HelloRequest {
    pub name: String,
    #[serde(default)]
    pub panic_once: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HelloReply {
    pub text: String,
    /// This one included.
    pub times: u64,
}

#[derive(Debug)]
pub struct Hello;

impl Operation for Hello {
    type Request = HelloRequest;
    type Reply = HelloReply;
    type Item = NoItem;
    const NAME: &'static str = "greet.hello";
    const ADDRESS: &'static str = ADDRESS;
    const ROLE: Role = Role::Operate;
    const DURABILITY: Durability = Durability::Power;
    const MUTATES: bool = true;
    const DOC: &'static str = "Says hello, and counts.";

    fn example() -> HelloRequest {
        HelloRequest { name: "Ada".into(), panic_once: false }
    }
}
