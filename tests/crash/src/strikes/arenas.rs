//! A call whose argument lies in shared memory, and the worker, the client or the kernel is killed while it is mapped. The
//! room serves the next call, and of a dead kernel's memory nobody has anything open or mapped.

use std::collections::BTreeSet;
use std::process::Stdio;

use eclosion_client::{CallOptions, Exchange};
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::kernel::{Empty, Status};
use eclosion_schemas::ops::pool::{Call, CallRequest};
use eclosion_schemas::{Part, Payload, codec};

use super::callers::{request_of, written};
use super::kills::kill;
use crate::account::ArenaEnd;
use crate::failure::{Failure, ensure};
use crate::fault::Victim;
use crate::kernel::PATIENCE;
use crate::leftovers;
use crate::round::Round;
use crate::seed::Seed;

/// The least that goes by shared memory; more does not fit on a command line.
const LEAST_BYTES: usize = 64 * 1024;
/// Of the 16 MiB that an arena has at least: fits only if nothing of it is held.
const WHOLE_BYTES: usize = (16 << 20) - (64 << 10);
/// `{"data": part 0}` in msgpack.
const BODY: &[u8] = b"\x81\xa4data\xd6\x01\0\0\0\0";

impl Round {
    pub(crate) async fn kill_arena(&mut self, victim: Victim, dice: &mut Seed) -> Result<(), Failure> {
        let label = self.account.label();
        let sessions = self.sessions().await?.len();
        let bytes = match victim {
            Victim::Client => LEAST_BYTES,
            _ => LEAST_BYTES + dice.below(4 << 20) as usize,
        };
        let fill = dice.below(255) as u8 + 1;
        let request = self.looking(&label, bytes, fill, true);
        let mut end = ArenaEnd {
            label: label.clone(),
            sum: bytes as u64 * u64::from(fill),
            outcome: None,
            gone: BTreeSet::new(),
            left: BTreeSet::new(),
            before: BTreeSet::new(),
            after: BTreeSet::new(),
        };
        match victim {
            Victim::Client => self.kill_giver(&request, &mut end).await?,
            _ => self.kill_holder(&request, victim, &mut end).await?,
        }
        self.sessions_end(sessions).await?;
        if victim == Victim::Kernel {
            end.left = self.is_let_go_of(&end.gone).await?;
        } else {
            // One that needs no room, so that the last of the call before is over; then one that needs it all.
            self.looked_at(LEAST_BYTES / 2, fill).await?;
            self.looked_at(WHOLE_BYTES, fill).await?;
            end.after = leftovers::arenas(self.kernel_pid().await?);
        }
        self.looked_at(bytes, fill.wrapping_add(1)).await?;
        self.account.arenas.push(end);
        Ok(())
    }

    async fn kill_holder(
        &mut self,
        request: &CallRequest,
        victim: Victim,
        end: &mut ArenaEnd,
    ) -> Result<(), Failure> {
        let exchange = self.open_call(request).await?;
        let line = self.ledger.of_call(&end.label, "mapped", 1).await?;
        let of_kernel = leftovers::arenas(self.kernel_pid().await?);
        let of_worker = leftovers::arenas(line.pid);
        ensure(!of_worker.is_disjoint(&of_kernel), || {
            format!("nothing is shared: {of_kernel:?} {of_worker:?}")
        })?;
        if victim == Victim::Kernel {
            end.gone = of_kernel;
            self.kernel.kill().await?;
            self.account.kills.kernel += 1;
        } else {
            end.before = of_kernel;
            kill(line.pid)?;
            self.account.kills.worker += 1;
        }
        let reply = tokio::time::timeout(PATIENCE, exchange.reply()).await;
        end.outcome = reply.ok().map(|reply| reply.map_or_else(|why| why.reason, |_| "ok".into()));
        if victim == Victim::Kernel {
            self.client = self.kernel.start().await?;
        }
        Ok(())
    }

    /// A client in a process of its own.
    async fn kill_giver(&mut self, request: &CallRequest, end: &mut ArenaEnd) -> Result<(), Failure> {
        let request = written(request)?;
        let mut command = self.kernel.command(&["call", Call::NAME, &request]);
        let mut giver = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        self.ledger.of_call(&end.label, "mapped", 1).await?;
        end.before = leftovers::arenas(self.kernel_pid().await?);
        ensure(!end.before.is_empty(), || "the kernel has no arena".into())?;
        giver.kill()?;
        giver.wait()?;
        end.outcome = Some("nobody was left".into());
        self.ledger.of_call(&end.label, "let go", 1).await.map(drop)
    }

    /// What is left of these arenas: nothing, or what somebody still has when there was time enough.
    async fn is_let_go_of(&self, gone: &BTreeSet<u64>) -> Result<BTreeSet<u64>, Failure> {
        let left = || leftovers::all_arenas(self.kernel.directory());
        // Who had it is cancelled when its stream ends, and ended by the next kernel.
        let let_go = async || Ok(left().is_disjoint(gone).then_some(()));
        let _ = self.until_asked("the arena of a dead kernel is let go of", let_go).await;
        Ok(left())
    }

    /// A call that ends, and saw every byte.
    async fn looked_at(&mut self, bytes: usize, fill: u8) -> Result<(), Failure> {
        let request = self.looking("", bytes, fill, false);
        let reply = tokio::time::timeout(PATIENCE, self.open_call(&request).await?.reply()).await;
        let reply: Payload = codec::decode(&reply.map_err(|_| Failure::new("the next call does not end"))??)?;
        let (sum, wanted): (u64, u64) = (codec::decode(&reply.body)?, bytes as u64 * u64::from(fill));
        ensure(sum == wanted, || format!("the next call saw other bytes: {sum} for {wanted}"))
    }

    fn looking(&self, label: &str, bytes: usize, fill: u8, holds: bool) -> CallRequest {
        let mut request = request_of("look", &self.ledger);
        request.with.extend([("label".to_owned(), label.into()), ("holds".to_owned(), holds.into())]);
        let data = Some(vec![fill; bytes].into());
        let part = Part { data, bytes: bytes as u64, codec: "bytes".into(), ..Part::default() };
        request.arguments = Payload { body: BODY.to_vec().into(), parts: vec![part] };
        request
    }

    async fn open_call(&self, request: &CallRequest) -> Result<Exchange, Failure> {
        let options = CallOptions { deadline: Some(PATIENCE * 2), ..CallOptions::default() };
        Ok(self.client.open(Call::NAME, codec::encode(request)?.into(), options).await?)
    }

    async fn kernel_pid(&self) -> Result<u32, Failure> {
        Ok(self.client.call::<Status>(Empty {}).await?.pid)
    }
}
