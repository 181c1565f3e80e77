//! A worker's requests for files and memory, `artifact.stage`, `artifact.open`, `arena.attach` and `arena.lend`, answered
//! with descriptors; and what became of the files and segments that it was given to write.

use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use eclosion_artifact_store::BlobStore;
use eclosion_schemas::frame::{Frame, StreamId};
use eclosion_schemas::ops::arena::{
    ATTACH, AttachReply, AttachRequest, LEND, LendReply, LendRequest, MAPPED, MappedRequest,
};
use eclosion_schemas::ops::artifact::{OPEN, OpenReply, OpenRequest, STAGE, StageReply, StageRequest};
use eclosion_schemas::ops::kernel::Empty;
use eclosion_schemas::{Code, Error, Fence, Payload, Retry};
use serde::Serialize;

use super::Outcome;
use crate::arena::{Lender, Lending, Objects};

/// Requests under way.
const SERVING_MAX: usize = 16;
/// Files that one attempt may have staged.
const STAGED_MAX: usize = 256;
/// Larger files are reserved on a blocking thread.
const BLOCKING_BYTES: u64 = 1 << 20;

/// A frame and what rides with it.
pub(super) type Answer = (Frame, Vec<OwnedFd>);
type Serving = Pin<Box<dyn Future<Output = (StreamId, Result<Served, Error>)> + Send>>;

/// What a blocking thread has done.
enum Served {
    Staged(Staged),
    Opened { file: OwnedFd, bytes: u64 },
}

struct Staged {
    stage: u64,
    mine: Mine,
    file: OwnedFd,
}

/// A staged file that no outcome has named yet: its length, and the attempt that it was made for.
struct Mine {
    bytes: u64,
    fence: Option<Fence>,
}

pub(super) struct Files {
    store: Arc<dyn BlobStore>,
    /// Where arguments of calls may lie, and what the worker may write.
    memory: Option<(Objects, Lender)>,
    /// Staged through this link and not named by an outcome yet.
    staged: BTreeMap<u64, Mine>,
    serving: Vec<Serving>,
    answers: Vec<Answer>,
}

impl Files {
    pub(super) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self { store, memory: None, staged: BTreeMap::new(), serving: Vec::new(), answers: Vec::new() }
    }

    pub(super) fn share(&mut self, objects: Objects) {
        self.memory = Some((objects.clone(), Lender::new(objects)));
    }

    pub(super) fn store(&self) -> Arc<dyn BlobStore> {
        Arc::clone(&self.store)
    }

    /// `is_shared` says of an attempt whether whoever waits for it reads shared memory.
    ///
    /// # Errors
    /// The worker may not open this stream: it is cut off.
    pub(super) fn on_call(
        &mut self,
        call: &Frame,
        is_shared: impl FnOnce(Fence) -> bool,
    ) -> Result<(), Error> {
        if !call.stream.opened_by_client() {
            return Err(Error::invalid("stream.number", format!("{} is no worker's to open", call.stream)));
        }
        let answered = match call.envelope.method.as_deref().unwrap_or_default() {
            STAGE => self.stage(call),
            OPEN => self.open(call).map(|()| None),
            ATTACH => self.attach(call).map(Some),
            LEND => self.lend(call, is_shared).map(Some),
            MAPPED => self.mapped(call).map(Some),
            other => {
                let shown: String = other.chars().take(64).collect();
                let text = format!("a worker's stream serves no `{shown}`");
                Err(Error::new(Code::Unimplemented, "operation.unknown", text))
            }
        };
        match answered {
            Ok(Some(answer)) => self.answers.push(answer),
            Ok(None) => {}
            Err(error) => self.answers.push((Frame::error(call.stream, &error), Vec::new())),
        }
        Ok(())
    }

    /// On a blocking thread always: a file is compared with its name when it is opened first, and may be unpacked.
    fn open(&mut self, call: &Frame) -> Result<(), Error> {
        let OpenRequest { digest } = call.decode()?;
        if self.serving.len() >= SERVING_MAX {
            let text = format!("{SERVING_MAX} files are being opened for this worker");
            return Err(Error::new(Code::Exhausted, "artifact.opening", text)
                .retry(Retry::After { after_ms: 100 })
                .help("open the next one when one of them is there"));
        }
        let store = Arc::clone(&self.store);
        self.serve(call.stream, move || {
            store.open(&digest).map(|(file, bytes)| Served::Opened { file, bytes })
        });
        Ok(())
    }

    fn attach(&self, call: &Frame) -> Result<Answer, Error> {
        let AttachRequest { arena } = call.decode()?;
        let (objects, _) = self.memory.as_ref().ok_or_else(no_memory)?;
        let (bytes, file) = objects.attach(arena)?;
        answer(call.stream, &AttachReply { bytes, name: None }, Some(file))
    }

    fn lend(&mut self, call: &Frame, is_shared: impl FnOnce(Fence) -> bool) -> Result<Answer, Error> {
        let LendRequest { bytes, fence } = call.decode()?;
        let (_, lender) = self.memory.as_mut().ok_or_else(no_memory)?;
        if !is_shared(fence) {
            return Err(unshared(fence));
        }
        let Lending { segment, descriptor, gone } = lender.lend(bytes, fence)?;
        answer(call.stream, &LendReply { segment, gone }, descriptor)
    }

    fn mapped(&self, call: &Frame) -> Result<Answer, Error> {
        let MappedRequest { arena } = call.decode()?;
        let (_, lender) = self.memory.as_ref().ok_or_else(no_memory)?;
        lender.mapped(arena)?;
        answer(call.stream, &Empty {}, None)
    }

    /// From segments that a payload names to holds on them.
    ///
    /// # Errors
    /// The worker broke the protocol: it names what it was not lent for this attempt.
    pub(super) fn hold(&mut self, payload: &mut Payload, fence: Fence) -> Result<(), Error> {
        for part in &mut payload.parts {
            let Some(segment) = &part.segment else { continue };
            let (_, lender) = self.memory.as_mut().ok_or_else(no_memory)?;
            part.hold = lender.take(segment, fence)?;
            part.bytes = segment.length;
        }
        Ok(())
    }

    /// The attempt is over: what it was lent and has not named comes back.
    pub(super) fn ended(&mut self, fence: Fence) {
        if let Some((_, lender)) = &mut self.memory {
            lender.ended(fence);
        }
    }

    fn stage(&mut self, call: &Frame) -> Result<Option<Answer>, Error> {
        let StageRequest { bytes, fence } = call.decode()?;
        if self.staged.len() + self.serving.len() >= STAGED_MAX || self.serving.len() >= SERVING_MAX {
            let text =
                format!("an attempt may have {STAGED_MAX} staged files, {SERVING_MAX} of them in the making");
            return Err(Error::new(Code::Exhausted, "artifact.staged", text).help("pack them into fewer"));
        }
        let (stream, store) = (call.stream, Arc::clone(&self.store));
        let stage = move || {
            store.stage(bytes).map(|(stage, file)| Staged { stage, mine: Mine { bytes, fence }, file })
        };
        if bytes <= BLOCKING_BYTES {
            return self.staged(stream, stage()?).map(Some);
        }
        self.serve(stream, move || stage().map(Served::Staged));
        Ok(None)
    }

    fn serve(&mut self, stream: StreamId, serve: impl FnOnce() -> Result<Served, Error> + Send + 'static) {
        let serving = tokio::task::spawn_blocking(serve);
        self.serving.push(Box::pin(async move {
            let served = serving.await;
            (stream, served.unwrap_or_else(|why| Err(Error::internal("artifact.file", why.to_string()))))
        }));
    }

    fn staged(&mut self, stream: StreamId, staged: Staged) -> Result<Answer, Error> {
        let Staged { stage, mine, file } = staged;
        self.staged.insert(stage, mine);
        answer(stream, &StageReply { stage }, Some(file))
    }

    /// What can be answered now.
    pub(super) fn poll(&mut self, task: &mut Context<'_>) -> Vec<Answer> {
        let mut done = Vec::new();
        self.serving.retain_mut(|serving| match serving.as_mut().poll(task) {
            Poll::Ready(served) => {
                done.push(served);
                false
            }
            Poll::Pending => true,
        });
        for (stream, served) in done {
            let answered = match served {
                Ok(Served::Staged(staged)) => self.staged(stream, staged),
                Ok(Served::Opened { file, bytes }) => answer(stream, &OpenReply { bytes }, Some(file)),
                Err(error) => Err(error),
            };
            self.answers.push(answered.unwrap_or_else(|error| (Frame::error(stream, &error), Vec::new())));
        }
        std::mem::take(&mut self.answers)
    }

    /// The stages that an outcome names and may name, with their lengths. Whatever else the attempt has staged is
    /// discarded; what another attempt has staged is not: one that is given back ends while another one stages. A stage
    /// that was not made here is admitted only for an attempt that is older than the link.
    pub(super) fn staged_of(
        &mut self,
        fence: Fence,
        outcome: &Outcome,
        is_resumed: bool,
    ) -> BTreeMap<u64, u64> {
        let is_mine = |_: &u64, staged: &mut Mine| staged.fence.is_none_or(|owner| owner == fence);
        let mut mine: BTreeMap<u64, Mine> = self.staged.extract_if(.., is_mine).collect();
        let mut named = BTreeMap::new();
        for part in outcome.result.iter().flat_map(|payload| &payload.parts) {
            let Some(stage) = part.stage else { continue };
            let bytes = mine.remove(&stage).map(|staged| staged.bytes);
            if let Some(bytes) = bytes.or_else(|| is_resumed.then_some(part.bytes)) {
                named.insert(stage, bytes);
            }
        }
        mine.into_keys().for_each(|stage| self.store.discard(stage));
        named
    }

    pub(super) fn take_staged(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.staged).into_keys().collect()
    }
}

fn answer(stream: StreamId, reply: &impl Serialize, file: Option<OwnedFd>) -> Result<Answer, Error> {
    Ok((Frame::data(stream, reply)?.end(), file.into_iter().collect()))
}

fn no_memory() -> Error {
    Error::new(Code::Unimplemented, "arena.none", "this worker shares no memory with its kernel")
}

/// A run's results are kept, and a caller may not be able to read it.
fn unshared(fence: Fence) -> Error {
    let text =
        format!("nobody reads results of {fence} in shared memory: it is no call, or its caller does not");
    Error::new(Code::Precondition, "arena.unshared", text).help("artifact.stage")
}
