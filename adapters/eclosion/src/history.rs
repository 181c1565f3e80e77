//! `kernel.events`: the journal as it is, read in batches and followed as it grows.
//!
//! Only what is synced is shown, so that nothing which was shown can vanish. A reader that is slow holds nothing: the
//! stream's credit stops it, and it goes on from its own place in the journal.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use eclosion_bus::{InHand, Responder};
use eclosion_kernel::Kernel;
use eclosion_kernel::journal::{Journal, Reader, Record};
use eclosion_schemas::codec::json;
use eclosion_schemas::ops::kernel::{EventItem, Events, EventsReply, EventsRequest};
use eclosion_schemas::{Code, Error, Seq};
use tokio::sync::oneshot;

/// Records that are read at once.
const BATCH: usize = 256;
/// Records that the end of the journal is shown with.
const TAIL_MAX: u32 = 10_000;

pub(crate) fn serve(kernel: &Kernel, message: InHand) {
    let request = message.request::<Events>().cloned().unwrap_or_default();
    let history = History {
        journal: Arc::clone(kernel.journal()),
        reader: Arc::clone(kernel.reader()),
        kinds: Arc::new(Kinds(request.kinds.clone())),
    };
    let responder = message.finish();
    tokio::spawn(async move {
        let outcome = history.run(&request, &responder).await;
        responder.reply(outcome.map(|reply| Box::new(reply) as _));
    });
}

/// `run.started`, or `run.*` for a family; everything, if none is named.
#[derive(Debug)]
struct Kinds(Vec<String>);

impl Kinds {
    fn admit(&self, kind: &str) -> bool {
        let matches = |wanted: &String| match wanted.strip_suffix('*') {
            Some(prefix) => kind.starts_with(prefix),
            None => kind == wanted,
        };
        self.0.is_empty() || self.0.iter().any(matches)
    }
}

struct History {
    journal: Arc<Journal>,
    reader: Arc<dyn Reader>,
    kinds: Arc<Kinds>,
}

impl History {
    async fn run(&self, request: &EventsRequest, responder: &Responder) -> Result<EventsReply, Error> {
        let mut reply = EventsReply { last: self.journal.marks().synced, shown: 0 };
        match request.after {
            Some(after) => reply.last = after,
            None => {
                let upto = reply.last;
                for record in self.tail(upto, request.tail.min(TAIL_MAX)).await? {
                    send(responder, &record).await?;
                    reply.shown += 1;
                }
            }
        }
        loop {
            let (records, last) = self.batch(reply.last).await?;
            for record in &records {
                send(responder, record).await?;
                reply.shown += 1;
            }
            let advanced = last > reply.last;
            reply.last = last;
            if !advanced && !request.follow {
                return Ok(reply);
            }
            if !advanced {
                self.grown(last, responder).await?;
            }
        }
    }

    /// The last records of the wanted kinds.
    async fn tail(&self, upto: Seq, count: u32) -> Result<VecDeque<Record>, Error> {
        let count = count as usize;
        // Without a filter, the last records are those of the last seqs.
        let after = if self.kinds.0.is_empty() { Seq(upto.0.saturating_sub(count as u64)) } else { Seq(0) };
        let (reader, kinds) = (Arc::clone(&self.reader), Arc::clone(&self.kinds));
        blocking(move || {
            let mut last = VecDeque::new();
            reader.read(after, &[], &mut |record| {
                if record.seq > upto {
                    return ControlFlow::Break(());
                }
                if kinds.admit(&record.kind) {
                    last.push_back(record);
                }
                if last.len() > count {
                    last.pop_front();
                }
                ControlFlow::Continue(())
            })?;
            Ok(last)
        })
        .await
    }

    /// The next records, and the seq up to which those are all.
    async fn batch(&self, after: Seq) -> Result<(Vec<Record>, Seq), Error> {
        let synced = self.journal.marks().synced;
        let (reader, kinds) = (Arc::clone(&self.reader), Arc::clone(&self.kinds));
        blocking(move || {
            let (mut found, mut last) = (Vec::new(), after);
            reader.read(after, &[], &mut |record| {
                if record.seq > synced || found.len() >= BATCH {
                    return ControlFlow::Break(());
                }
                last = record.seq;
                if kinds.admit(&record.kind) {
                    found.push(record);
                }
                ControlFlow::Continue(())
            })?;
            Ok((found, last))
        })
        .await
    }

    /// Waits until more than `last` is synced.
    async fn grown(&self, last: Seq, responder: &Responder) -> Result<(), Error> {
        let (told, grown) = oneshot::channel();
        self.journal.hold_relaxed(last.next(), move |synced| {
            // The reader may have left.
            let _ = told.send(synced);
        });
        tokio::select! {
            outcome = grown => match outcome {
                Ok(synced) => synced.map_err(|lost| lost.error()),
                Err(_) => Err(stopping()),
            },
            () = responder.cancelled().cancelled() => Err(stopping()),
        }
    }
}

/// The store's reads block.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(read).await.map_err(|_| stopping())?
}

fn stopping() -> Error {
    Error::new(Code::Unavailable, "kernel.stopping", "the kernel is stopping")
}

async fn send(responder: &Responder, record: &Record) -> Result<(), Error> {
    let event = json::from_msgpack(&record.body).map_err(|why| {
        Error::new(
            Code::DataLoss,
            "event.malformed",
            format!("record {} has no readable body: {why}", record.seq),
        )
    })?;
    let item = EventItem {
        seq: record.seq,
        epoch: record.epoch,
        at: record.at,
        kind: record.kind.to_string(),
        version: record.version,
        cause: record.cause,
        event,
    };
    responder.item(Box::new(item)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_one_by_one_or_by_family() {
        let kinds = Kinds(vec!["run.*".into(), "worker.died".into()]);
        for (kind, admitted) in
            [("run.started", true), ("worker.died", true), ("worker.started", false), ("rune", false)]
        {
            assert_eq!(kinds.admit(kind), admitted, "{kind}");
        }
        assert!(Kinds(Vec::new()).admit("anything"));
    }
}
