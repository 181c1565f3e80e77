//! A bus with a few operations, served by one task, behind a listening socket.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use eclosion_artifact_store::BlobStore;
use eclosion_bus::{Address, Bus, InHand, MailboxOptions, Taken};
use eclosion_client::Client;
use eclosion_ipc::arena::Objects;
use eclosion_ipc::{ListenOptions, Listener, Pages, Session, SessionEnd, Traffic, Welcome};
use eclosion_schemas::frame::Limits;
use eclosion_schemas::operation::{Durability, NoItem, Operation, Role, Spec};
use eclosion_schemas::{Digest, Epoch, Error, Part, Payload};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};

macro_rules! operation {
    ($name:ident, $wire:literal, $role:ident, $request:ty, $reply:ty, $item:ty, $streams:literal, $mutates:literal) => {
        pub(crate) struct $name;
        impl Operation for $name {
            type Request = $request;
            type Reply = $reply;
            type Item = $item;
            const NAME: &'static str = $wire;
            const ADDRESS: &'static str = "/test";
            const ROLE: Role = Role::$role;
            const DURABILITY: Durability = Durability::Call;
            const STREAMS: bool = $streams;
            const MUTATES: bool = $mutates;
            const DOC: &'static str = "A test's.";
            fn example() -> Self::Request {
                <$request>::default()
            }
        }
    };
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Text {
    pub(crate) text: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Number {
    pub(crate) number: u64,
}

operation!(Echo, "test.echo", View, Text, Text, NoItem, false, true);
operation!(Key, "test.key", View, Text, Option<String>, NoItem, false, true);
operation!(Refuse, "test.refuse", View, Text, Text, NoItem, false, false);
operation!(Hold, "test.hold", View, Text, Text, NoItem, false, false);
operation!(Count, "test.count", View, Number, Number, Number, true, false);
operation!(Frames, "test.frames", View, Number, Payload, Payload, true, false);
operation!(Commit, "test.commit", Worker, Text, Text, NoItem, false, false);

/// What a test sees of a kernel in which nothing but transport is real.
pub(crate) struct World {
    pub(crate) bus: Bus,
    pub(crate) path: PathBuf,
    /// How sessions ended.
    pub(crate) ends: mpsc::UnboundedReceiver<SessionEnd>,
    /// A call of `test.hold` is in hand.
    pub(crate) holding: Arc<Notify>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) objects: Objects,
    _directory: tempfile::TempDir,
}

pub(crate) fn welcome(limits: Limits) -> Welcome {
    Welcome {
        server: "eclosion/0.1.0".into(),
        instance: "test".into(),
        epoch: Epoch(3),
        describe_hash: "5f1d".into(),
        features: Vec::new(),
        limits,
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Limits::DEFAULT, 256)
    }

    pub(crate) fn with(limits: Limits, connections_max: usize) -> Self {
        Self::build(limits, connections_max, None, false)
    }

    pub(crate) fn with_pages(limits: Limits, pages: Arc<dyn Pages>) -> Self {
        Self::build(limits, 256, Some(pages), false)
    }

    /// Whoever says that it is a worker is one.
    pub(crate) fn taking_workers() -> Self {
        Self::build(Limits::DEFAULT, 256, None, true)
    }

    fn build(
        limits: Limits,
        connections_max: usize,
        pages: Option<Arc<dyn Pages>>,
        takes_workers: bool,
    ) -> Self {
        let mut table = eclosion_schemas::ops::table().unwrap();
        for spec in [
            Spec::of::<Echo>(),
            Spec::of::<Key>(),
            Spec::of::<Refuse>(),
            Spec::of::<Hold>(),
            Spec::of::<Count>(),
            Spec::of::<Frames>(),
            Spec::of::<Commit>(),
        ] {
            table.declare(spec).unwrap();
        }
        let bus = Bus::new(table);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/test.sock");
        let holding = Arc::new(Notify::new());
        let mailbox = bus.open(Address::new("/test").unwrap(), MailboxOptions::default()).unwrap();
        tokio::spawn(serve(mailbox, Arc::clone(&holding)));

        let listener = Listener::bind(ListenOptions { path: path.clone(), connections_max }).unwrap();
        let (stop, stopping) = watch::channel(false);
        let (ended, ends) = mpsc::unbounded_channel();
        let (session_bus, welcome) = (bus.clone(), Arc::new(welcome(limits)));
        let traffic = Arc::new(Traffic::default());
        let counts = Arc::clone(&traffic);
        let objects = Objects::new(256 << 20);
        let memory = objects.clone();
        tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await;
                let mut stopping = stopping.clone();
                let stopped = async move {
                    let _ = stopping.wait_for(|stop| *stop).await;
                };
                let mut session =
                    Session::new(accepted, session_bus.clone(), Arc::clone(&welcome), stopped).unwrap();
                session = session.counted_in(Arc::clone(&counts));
                session = session.with_objects(memory.clone(), tag());
                if let Some(pages) = &pages {
                    session = session.with_pages(Arc::clone(pages));
                }
                if takes_workers {
                    session = session.take_workers();
                }
                let ended = ended.clone();
                tokio::spawn(async move {
                    let _ = ended.send(session.run().await);
                });
            }
        });
        Self { bus, path, ends, holding, stop, traffic, objects, _directory: directory }
    }

    pub(crate) async fn client(&self) -> Client {
        watched(Client::connect(&self.path)).await.unwrap()
    }

    pub(crate) fn address(&self) -> Address {
        Address::new("/test").unwrap()
    }

    /// Until the books of the mailbox show that nothing is left of anybody.
    pub(crate) async fn at_rest(&self) {
        watched(async {
            loop {
                let statistics = self.bus.statistics(&self.address()).unwrap();
                assert!(statistics.balances(), "{statistics:?}");
                if statistics.queued == 0 && statistics.in_hand == 0 {
                    return;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// With which the names of this process's memory begin.
pub(crate) fn tag() -> String {
    format!("{:x}", std::process::id() % 0xfff_ffff)
}

/// The n-th frame: small and large ones in turn.
pub(crate) fn frame(n: u64) -> Vec<u8> {
    let bytes = if n.is_multiple_of(2) { 1_000_000 } else { 1_000 };
    (0..bytes).map(|at| u8::try_from((at + n) % 251).unwrap()).collect()
}

fn payload(n: u64) -> Payload {
    let data = frame(n);
    let bytes = data.len() as u64;
    let part = Part { data: Some(data.into()), bytes, codec: "bytes".into(), ..Part::default() };
    Payload { body: vec![0xd6, 1, 0, 0, 0, 0].into(), parts: vec![part] }
}

async fn serve(mailbox: eclosion_bus::Mailbox, holding: Arc<Notify>) {
    loop {
        match mailbox.take().await {
            Taken::Message(in_hand) => answer(in_hand, &holding),
            Taken::Control(_) => {}
            Taken::Closed => return,
        }
    }
}

fn answer(in_hand: InHand, holding: &Arc<Notify>) {
    let idem = in_hand.context.idem.clone();
    let text = in_hand.request_any().downcast_ref::<Text>().cloned();
    let number = in_hand.request_any().downcast_ref::<Number>().cloned();
    let operation = in_hand.operation;
    let responder = in_hand.finish();
    match (operation, text, number) {
        (Echo::NAME, Some(text), _) => responder.reply(Ok(Box::new(text))),
        (Key::NAME, ..) => responder.reply(Ok(Box::new(idem))),
        (Refuse::NAME, Some(text), _) => {
            responder.reply(Err(Error::not_found("test.refused", text.text).help("try another")));
        }
        (Hold::NAME, ..) => {
            let holding = Arc::clone(holding);
            tokio::spawn(async move {
                holding.notify_one();
                responder.cancelled().cancelled().await;
                holding.notify_one();
            });
        }
        (Count::NAME, _, Some(Number { number })) => {
            tokio::spawn(async move {
                for n in 0..number {
                    if responder.item(Box::new(Number { number: n })).await.is_err() {
                        return;
                    }
                }
                responder.reply(Ok(Box::new(Number { number })));
            });
        }
        (Frames::NAME, _, Some(Number { number })) => {
            tokio::spawn(async move {
                for n in 0..number {
                    if responder.item(Box::new(payload(n))).await.is_err() {
                        return;
                    }
                }
                responder.reply(Ok(Box::new(payload(number))));
            });
        }
        _ => responder.reply(Err(Error::internal("test.unserved", operation))),
    }
}

/// A store that nobody asks for anything.
#[derive(Debug)]
pub(crate) struct NoFiles;

fn no_files<T>() -> Result<T, Error> {
    Err(Error::internal("test.files", "there are none"))
}

impl BlobStore for NoFiles {
    fn stage(&self, _: u64) -> Result<(u64, OwnedFd), Error> {
        no_files()
    }

    fn seal(&self, _: u64) -> Result<(Digest, u64), Error> {
        no_files()
    }

    fn discard(&self, _: u64) {}

    fn open(&self, _: &Digest) -> Result<(OwnedFd, u64), Error> {
        no_files()
    }

    fn read(&self, _: &Digest, _: u64, _: u32) -> Result<Vec<u8>, Error> {
        no_files()
    }

    fn verify(&self, _: &Digest) -> Result<u64, Error> {
        no_files()
    }

    fn sync(&self) -> Result<(), Error> {
        no_files()
    }
}

/// Whatever hangs fails instead.
pub(crate) async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it hangs")
}
