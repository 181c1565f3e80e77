//! The load that floor, peer and us all carry: 64 bytes there, 8 back.

use eclosion_schemas::operation::{Durability, NoItem, Operation, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Load(pub [u64; 8]);

impl Load {
    pub(crate) fn new(n: u64) -> Self {
        Self([n; 8])
    }

    /// What a handler does with it: too little to matter, too much to be optimized away.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, part| sum.wrapping_add(*part))
    }
}

/// Sums the load.
#[derive(Debug)]
pub(crate) struct Sum;

impl Operation for Sum {
    type Request = Load;
    type Reply = u64;
    type Item = NoItem;
    const NAME: &'static str = "bench.sum";
    const ADDRESS: &'static str = "/bench";
    const ROLE: Role = Role::View;
    const DURABILITY: Durability = Durability::Call;
    const DOC: &'static str = "Sums the load.";

    fn example() -> Load {
        Load::new(1)
    }
}
