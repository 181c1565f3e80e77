//! A Python generator that streams to a client, and the worker, the client or the kernel is killed in the middle. What the
//! client has is a beginning without a gap, the generator is never further than its credit, and it is closed.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use eclosion_client::{CallOptions, Exchange};
use eclosion_schemas::codec;
use eclosion_schemas::operation::Operation;
use eclosion_schemas::ops::pool::{CallRequest, Stream};
use eclosion_schemas::view::TaskReport;

use super::callers::{request_of, written};
use super::kills::kill;
use crate::account::StreamEnd;
use crate::failure::{Failure, ensure};
use crate::fault::Victim;
use crate::kernel::PATIENCE;
use crate::round::Round;
use crate::seed::Seed;

/// Items that a reader of ours lets be under way.
const CREDIT: u64 = 4;
/// What the command line lets be under way, and what a pipe that nobody reads takes of items of this size.
const COMMAND_SLACK: u64 = 64 + 16;
const FILL_BYTES: u64 = 8 * 1024;
/// One item is made before it is known that there is no credit for it.
const AHEAD: u64 = 1;
const ENDLESS: u64 = 1 << 40;
const WHOLE: u64 = 50;

impl Round {
    pub(crate) async fn kill_stream(&mut self, victim: Victim, dice: &mut Seed) -> Result<(), Failure> {
        let label = self.account.label();
        let wanted = 1 + dice.below(24);
        let sessions = self.sessions().await?.len();
        let end = match victim {
            Victim::Client => self.kill_reader(&label, wanted).await?,
            _ => self.kill_source(&label, wanted, victim).await?,
        };
        if end.is_closed == Some(true) {
            self.ledger.of_call(&label, "closed", 1).await?;
        }
        self.account.streams.push(end);
        self.sessions_end(sessions).await?;
        self.whole_stream().await
    }

    /// The worker or the kernel, once the generator stands still for want of credit.
    async fn kill_source(&mut self, label: &str, wanted: u64, victim: Victim) -> Result<StreamEnd, Failure> {
        let mut exchange = self.open_stream(&self.counting(label, ENDLESS, 0)).await?;
        let mut received = Vec::new();
        while (received.len() as u64) < wanted {
            let item = tokio::time::timeout(PATIENCE, exchange.next()).await;
            let item = item.map_err(|_| Failure::new("no item comes"))?;
            received.push(index(&item.ok_or_else(|| Failure::new("the stream has ended"))?)?);
        }
        // More than half of the credit is always granted.
        let made = received.len() + CREDIT as usize / 2;
        let line = self.ledger.of_call(label, "made", made).await?;
        match victim {
            Victim::Kernel => {
                self.kernel.kill().await?;
                self.account.kills.kernel += 1;
            }
            _ => {
                kill(line.pid)?;
                self.account.kills.worker += 1;
            }
        }
        let last = async {
            while let Some(item) = exchange.next().await {
                received.push(index(&item)?);
            }
            Ok::<_, Failure>(exchange.reply().await)
        };
        let ended = tokio::time::timeout(PATIENCE, last).await;
        let outcome =
            ended.ok().transpose()?.map(|reply| reply.map_or_else(|why| why.reason, |_| "ok".into()));
        if victim == Victim::Kernel {
            self.client = self.kernel.start().await?;
        }
        let is_closed = (victim == Victim::Worker).then_some(false);
        Ok(StreamEnd { label: label.into(), received, slack: CREDIT + AHEAD, outcome, is_closed })
    }

    /// A client in a process of its own, whose output nobody takes any more.
    async fn kill_reader(&mut self, label: &str, wanted: u64) -> Result<StreamEnd, Failure> {
        let request = written(&self.counting(label, ENDLESS, FILL_BYTES))?;
        let mut command = self.kernel.command(&["call", Stream::NAME, &request, "--json"]);
        let mut reader = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines =
            BufReader::new(reader.stdout.take().ok_or_else(|| Failure::new("no output"))?).lines();
        let mut received = Vec::new();
        for line in lines.by_ref().take(wanted as usize) {
            let item: serde_json::Value = serde_json::from_str(&line?)?;
            received.push(item["item"]["index"].as_u64().ok_or_else(|| Failure::new(item))?);
        }
        self.ledger.of_call(label, "made", received.len() + 32).await?;
        reader.kill()?;
        reader.wait()?;
        Ok(StreamEnd {
            label: label.into(),
            received,
            slack: COMMAND_SLACK + AHEAD,
            outcome: None,
            is_closed: Some(true),
        })
    }

    /// Who comes next has it all.
    async fn whole_stream(&mut self) -> Result<(), Failure> {
        let label = self.account.label();
        let mut exchange = self.open_stream(&self.counting(&label, WHOLE, 0)).await?;
        let mut received = Vec::new();
        let reading = async {
            while let Some(item) = exchange.next().await {
                received.push(index(&item)?);
            }
            Ok::<_, Failure>(exchange.reply().await?)
        };
        let read = tokio::time::timeout(PATIENCE, reading).await;
        read.map_err(|_| Failure::new("the next stream does not end"))??;
        ensure(received.len() as u64 == WHOLE, || format!("the next stream had {received:?}"))?;
        let outcome = Some("ok".into());
        self.account.streams.push(StreamEnd { label, received, slack: 0, outcome, is_closed: Some(true) });
        Ok(())
    }

    fn counting(&self, label: &str, items: u64, fill: u64) -> CallRequest {
        let mut request = request_of("count", &self.ledger);
        request.with.extend([
            ("label".to_owned(), label.into()),
            ("items".to_owned(), items.into()),
            ("fill".to_owned(), fill.into()),
        ]);
        request
    }

    async fn open_stream(&self, request: &CallRequest) -> Result<Exchange, Failure> {
        let options = CallOptions { credit: Some(CREDIT), ..CallOptions::default() };
        Ok(self.client.open(Stream::NAME, codec::encode(request)?.into(), options).await?)
    }
}

/// Of an item, which must also carry it in what it says.
fn index(item: &[u8]) -> Result<u64, Failure> {
    let TaskReport::Item { index, payload } = codec::decode(item)? else {
        return Err(Failure::new("a report that is no item"));
    };
    let said: serde_json::Value = codec::decode(&payload.body)?;
    ensure(said["index"] == index, || format!("item {index} says {said}"))?;
    Ok(index)
}
