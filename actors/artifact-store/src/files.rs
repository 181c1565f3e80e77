//! `/artifacts/files`: what has to read files, or to ask more than once. `artifact.get` with the bytes of a value's parts,
//! `artifact.recall`, `artifact.verify`, `artifact.search`, and labels for artifacts that are named in another way than
//! `RUN/TASK`.
//!
//! A plain actor beside the journaled one, because a pure core cannot read: it asks `/artifacts` for what the rows say,
//! follows names that lead to other names (`FLOW/TASK@2`, `FLOW/TASK@TAG`, a digest), and reads files on blocking threads. Each request
//! is served by a task of its own, at most [`REQUESTS_MAX`] at a time, and ends with its asker.
//!
//! A version that was named but not committed is an error; without a version the newest committed one is meant.

use std::sync::{Arc, OnceLock};

use eclosion_bus::{Bus, InHand, Responder};
use eclosion_kernel::Handler;
use eclosion_schemas::error::{Code, Error};
use eclosion_schemas::operation::{Operation, Value};
use eclosion_schemas::ops::artifact::{
    ADDRESS, Get, GetReply, GetRequest, OpenReply, OpenRequest, Piece, Pin, PinReply, PinRequest, Read,
    Recall, RecallReply, RecallRequest, Search, SearchRequest, Tag, TagReply, TagRequest, Unpin, Verify,
    VerifyReply, VerifyRequest,
};
use eclosion_schemas::{Digest, Payload};
use tokio::sync::Semaphore;

use crate::ports::BlobStore;
use crate::rows::VERSIONS_MAX;

mod index;
mod search;

pub use index::{
    Objects, ObjectsReply, ObjectsRequest, Page, PageReply, PageRequest, Resolve, ResolveReply,
    ResolveRequest, Views, ViewsReply, ViewsRequest,
};

/// Where it is served.
pub use eclosion_schemas::ops::artifact::FILES;
/// Requests served at a time; more wait in the mailbox.
const REQUESTS_MAX: usize = 8;
/// Of a part, in one item.
const PIECE_BYTES: u32 = 256 * 1024;
/// How many runs without the artifact are passed over when no version is named.
const NEWEST_MAX: usize = 64;

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Files {
    bus: Arc<OnceLock<Bus>>,
    blobs: Arc<dyn BlobStore>,
    places: Arc<Semaphore>,
}

enum Request {
    Get(GetRequest),
    Read(OpenRequest),
    Recall(RecallRequest),
    Verify(VerifyRequest),
    Search(SearchRequest),
    Tag(TagRequest),
    Pin(PinRequest),
    Unpin(PinRequest),
}

impl Request {
    fn of(message: &InHand) -> Option<Self> {
        if let Some(request) = message.request::<Get>() {
            Some(Self::Get(request.clone()))
        } else if let Some(request) = message.request::<Recall>() {
            Some(Self::Recall(request.clone()))
        } else if let Some(request) = message.request::<Verify>() {
            Some(Self::Verify(request.clone()))
        } else if let Some(request) = message.request::<Read>() {
            Some(Self::Read(request.clone()))
        } else if let Some(request) = message.request::<Search>() {
            Some(Self::Search(request.clone()))
        } else if let Some(request) = message.request::<Tag>() {
            Some(Self::Tag(request.clone()))
        } else if let Some(request) = message.request::<Pin>() {
            Some(Self::Pin(request.clone()))
        } else {
            message.request::<Unpin>().cloned().map(Self::Unpin)
        }
    }
}

impl Files {
    pub(crate) fn new(bus: Arc<OnceLock<Bus>>, blobs: Arc<dyn BlobStore>) -> Self {
        Self { bus, blobs, places: Arc::new(Semaphore::new(REQUESTS_MAX)) }
    }
}

impl Handler for Files {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is no core: a slow reader must not keep the next one waiting"
    )]
    async fn handle(&mut self, message: InHand) {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let request = Request::of(&message);
        let operation = message.operation;
        let responder = message.finish();
        let (Some(request), Some(bus)) = (request, self.bus.get().cloned()) else {
            let text = format!("{FILES} does not serve {operation}");
            return responder.reply(Err(Error::new(Code::Unimplemented, "operation.address", text)));
        };
        let reading = Reading { bus, blobs: Arc::clone(&self.blobs) };
        tokio::spawn(async move {
            let outcome = reading.answer(request, &responder).await;
            responder.reply(outcome);
            drop(place);
        });
    }
}

fn boxed<T: Send + 'static>(reply: T) -> Value {
    Box::new(reply)
}

struct Reading {
    bus: Bus,
    blobs: Arc<dyn BlobStore>,
}

impl Reading {
    async fn answer(&self, request: Request, responder: &Responder) -> Result<Value, Error> {
        match request {
            Request::Get(request) => self.get(&request.name, responder).await.map(boxed),
            Request::Read(request) => self.read(request.digest, responder).await.map(boxed),
            Request::Recall(request) => self.recall(request).await.map(boxed),
            Request::Verify(request) => self.verify(request, responder).await.map(boxed),
            Request::Search(request) => self.search(request, responder).await.map(boxed),
            Request::Tag(request) => self.tag(request).await.map(boxed),
            Request::Pin(request) => self.pin::<Pin>(request).await.map(boxed),
            Request::Unpin(request) => self.pin::<Unpin>(request).await.map(boxed),
        }
    }

    async fn tag(&self, request: TagRequest) -> Result<TagReply, Error> {
        let name = self.canonical(&request.name).await?;
        self.bus.ask::<Tag>(TagRequest { name, ..request }).to(&index()?).await
    }

    async fn pin<O>(&self, request: PinRequest) -> Result<PinReply, Error>
    where
        O: Operation<Request = PinRequest, Reply = PinReply>,
    {
        let name = self.canonical(&request.name).await?;
        self.bus.ask::<O>(PinRequest { name, ..request }).to(&index()?).await
    }

    /// `RUN/TASK`, whichever name was given.
    async fn canonical(&self, name: &str) -> Result<String, Error> {
        let artifact = self.find(name).await?.artifact;
        Ok(format!("{}/{}", artifact.run, artifact.task))
    }

    async fn get(&self, name: &str, responder: &Responder) -> Result<GetReply, Error> {
        let found = self.find(name).await?;
        for (index, part) in found.payload.parts.iter().enumerate() {
            let Some(digest) = part.digest.clone() else { continue };
            self.pieces(&digest, index as u32, responder).await?;
        }
        Ok(found)
    }

    async fn read(&self, digest: Digest, responder: &Responder) -> Result<OpenReply, Error> {
        Ok(OpenReply { bytes: self.pieces(&digest, 0, responder).await? })
    }

    /// Sends a file; returns its length.
    async fn pieces(&self, digest: &Digest, part: u32, responder: &Responder) -> Result<u64, Error> {
        let mut offset = 0;
        loop {
            let (blobs, digest) = (Arc::clone(&self.blobs), digest.clone());
            let bytes = blocking(move || blobs.read(&digest, offset, PIECE_BYTES)).await??;
            if bytes.is_empty() {
                return Ok(offset);
            }
            offset += bytes.len() as u64;
            responder.item(boxed(Piece { part, bytes })).await?;
        }
    }

    /// By `RUN/TASK`, `FLOW/TASK`, `FLOW/TASK@VERSION`, `FLOW/TASK@TAG` or digest.
    async fn find(&self, name: &str) -> Result<GetReply, Error> {
        let refusal = match self.ask(name).await {
            Err(refusal) if refusal.code == Code::NotFound => refusal,
            found => return found,
        };
        let (path, version) = match name.rsplit_once('@') {
            Some((path, version)) => match version.parse::<usize>() {
                Ok(version) => (path, Some(version)),
                Err(_) => return self.tagged(name).await?.ok_or(refusal),
            },
            None => (name, None),
        };
        let names = self.bus.ask::<Resolve>(ResolveRequest { name: path.into() }).await?.names;
        match version {
            Some(version) => {
                let name = version.checked_sub(1).and_then(|index| names.get(index)).ok_or(refusal)?;
                Ok(renamed(self.ask(name).await?, path, version))
            }
            None => self.newest(path, &names).await?.ok_or(refusal),
        }
    }

    /// By `FLOW/TASK@TAG`.
    async fn tagged(&self, name: &str) -> Result<Option<GetReply>, Error> {
        let named = self.bus.ask::<Resolve>(ResolveRequest { name: name.into() }).await?.names.pop();
        match named {
            Some(named) => self.ask(&named).await.map(Some),
            None => Ok(None),
        }
    }

    async fn newest(&self, path: &str, names: &[String]) -> Result<Option<GetReply>, Error> {
        // There may be more runs than were counted: then the newest is not among them, and nothing is guessed.
        if names.len() >= VERSIONS_MAX as usize {
            return Ok(None);
        }
        for (index, name) in names.iter().enumerate().rev().take(NEWEST_MAX) {
            match self.ask(name).await {
                Ok(found) if path.contains('/') => return Ok(Some(renamed(found, path, index + 1))),
                Ok(found) => return Ok(Some(found)),
                Err(refusal) if matches!(refusal.code, Code::NotFound | Code::Precondition) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    async fn ask(&self, name: &str) -> Result<GetReply, Error> {
        self.bus.ask::<Get>(GetRequest { name: name.into() }).to(&index()?).await
    }

    /// A file that is there and differs from its name is as good as none.
    async fn recall(&self, request: RecallRequest) -> Result<RecallReply, Error> {
        let mut payloads = Vec::with_capacity(request.outputs.len());
        for output in request.outputs {
            payloads.push(match self.ask(&output.to_string()).await {
                Ok(found) => self.whole(found.payload).await?,
                Err(refusal) if matches!(refusal.code, Code::NotFound | Code::Precondition) => None,
                Err(refusal) => return Err(refusal),
            });
        }
        Ok(RecallReply { payloads })
    }

    /// The same, if every file of it is.
    async fn whole(&self, payload: Payload) -> Result<Option<Payload>, Error> {
        for digest in payload.parts.iter().filter_map(|part| part.digest.clone()) {
            let blobs = Arc::clone(&self.blobs);
            // No byte of it: compared with its name, and not unpacked for nobody.
            match blocking(move || blobs.read(&digest, 0, 0)).await? {
                Ok(_) => {}
                Err(why) if matches!(why.code, Code::DataLoss | Code::NotFound) => return Ok(None),
                Err(why) => return Err(why),
            }
        }
        Ok(Some(payload))
    }

    async fn verify(&self, request: VerifyRequest, responder: &Responder) -> Result<VerifyReply, Error> {
        let mut reply = VerifyReply { checked: 0, bytes: 0, bad: Vec::new() };
        if let Some(name) = request.name {
            let parts = self.find(&name).await?.payload.parts;
            self.verify_each(parts.into_iter().filter_map(|part| part.digest), responder, &mut reply).await?;
            return Ok(reply);
        }
        for shard in 0..=u8::MAX {
            let objects = self.bus.ask::<Objects>(ObjectsRequest { shard }).await?.objects;
            self.verify_each(objects.into_iter().map(|(digest, _)| digest), responder, &mut reply).await?;
        }
        Ok(reply)
    }

    async fn verify_each(
        &self,
        digests: impl Iterator<Item = Digest> + Send,
        responder: &Responder,
        reply: &mut VerifyReply,
    ) -> Result<(), Error> {
        for digest in digests {
            if responder.cancelled().is_cancelled() {
                return Err(Error::new(
                    Code::Cancelled,
                    "ask.abandoned",
                    "nobody waits for the verification anymore",
                ));
            }
            let (blobs, checked) = (Arc::clone(&self.blobs), digest.clone());
            reply.checked += 1;
            match blocking(move || blobs.verify(&checked)).await? {
                Ok(bytes) => reply.bytes += bytes,
                Err(why) if matches!(why.code, Code::DataLoss | Code::NotFound) => reply.bad.push(digest),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }
}

fn renamed(mut found: GetReply, path: &str, version: usize) -> GetReply {
    found.artifact.name = path.to_owned();
    found.artifact.version = version as u32;
    found
}

fn index() -> Result<eclosion_bus::Address, Error> {
    eclosion_bus::Address::new(ADDRESS).map_err(|why| Error::internal("address", why.to_string()))
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(read).await;
    done.map_err(|why| Error::internal("artifact.read", why.to_string()))
}
