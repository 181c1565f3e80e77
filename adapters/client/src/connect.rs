//! From a path to a connection that was greeted.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use eclosion_schemas::frame::{
    API, API_COMPATIBLE, BINCODE, Decoder, Envelope, Frame, FrameType, Limits, StreamId,
};
use eclosion_schemas::ops::arena::TAKES_NAMED;
use eclosion_schemas::{Code, Error, Retry, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::connection::{Driver, Shared};

/// How to introduce oneself.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Name and version of the program, shown to operators.
    pub client: String,
    /// Less than this user may have; everything, if none is named.
    pub role: Option<Role>,
    /// Large values may lie in shared memory, which [`Client::object`](crate::Client::object) opens.
    pub memory: bool,
    /// Until the kernel has answered.
    pub deadline: Duration,
    /// W3C traceparent of every call that names none of its own.
    pub trace: Option<String>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            client: concat!("eclosion-rust/", env!("CARGO_PKG_VERSION")).into(),
            role: None,
            memory: false,
            deadline: Duration::from_secs(2),
            trace: None,
        }
    }
}

pub(crate) async fn connect(path: &Path, options: &ConnectOptions) -> Result<(Arc<Shared>, Driver), Error> {
    let connected = async {
        let stream = UnixStream::connect(path).await.map_err(|why| unreachable(path, &why))?;
        greet(stream, path, options).await
    };
    in_time(connected, path, options).await
}

/// The same over a stream that is connected already.
pub(crate) async fn over(
    stream: UnixStream,
    options: &ConnectOptions,
) -> Result<(Arc<Shared>, Driver), Error> {
    let name = Path::new("a stream that was given");
    in_time(greet(stream, name, options), name, options).await
}

async fn in_time<T>(
    greeted: impl Future<Output = Result<T, Error>>,
    path: &Path,
    options: &ConnectOptions,
) -> Result<T, Error> {
    match tokio::time::timeout(options.deadline, greeted).await {
        Ok(connected) => connected,
        Err(_) => {
            let text = format!("the kernel at {} did not answer in time", path.display());
            Err(Error::new(Code::Deadline, "kernel.silent", text).help("eclosion doctor"))
        }
    }
}

async fn greet(
    mut stream: UnixStream,
    path: &Path,
    options: &ConnectOptions,
) -> Result<(Arc<Shared>, Driver), Error> {
    let mut bytes = BytesMut::new();
    hello(options).encode(&mut bytes)?;
    let mut decoder = Decoder::new(Limits::DEFAULT);
    // A kernel that refuses may have spoken and hung up already: what it said matters more than that it is gone.
    let sent = stream.write_all(&bytes).await;
    let answer = loop {
        if let Some(frame) = decoder.next_frame()? {
            break frame;
        }
        bytes.clear();
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return Err(sent.err().map_or_else(|| broken(path), |why| unreachable(path, &why))),
            Ok(_) => decoder.push(&bytes),
            Err(why) => return Err(unreachable(path, &why)),
        }
    };
    match answer.kind {
        FrameType::Welcome => {
            let (shared, driver) = Driver::new(stream, decoder, answer.envelope.into_inner());
            Ok((shared, driver))
        }
        FrameType::Error => Err(answer.to_error()),
        kind => Err(Error::invalid("hello.answer", format!("the kernel answered HELLO with {kind:?}"))),
    }
}

fn hello(options: &ConnectOptions) -> Frame {
    Frame::new(FrameType::Hello, StreamId::CONNECTION).with_envelope(Envelope {
        client: Some(options.client.clone()),
        api: Some(API),
        api_compatible: Some(API_COMPATIBLE),
        role: options.role,
        features: Some(
            [BINCODE].into_iter().chain(options.memory.then_some(TAKES_NAMED)).map(Into::into).collect(),
        ),
        ..Envelope::default()
    })
}

fn unreachable(path: &Path, why: &io::Error) -> Error {
    let text = match why.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no kernel listens on {}", path.display())
        }
        _ => format!("cannot reach a kernel on {}: {why}", path.display()),
    };
    let error =
        Error::new(Code::Unavailable, "kernel.unreachable", text).retry(Retry::After { after_ms: 500 });
    error.help("eclosion up")
}

fn broken(path: &Path) -> Error {
    let text = format!("the kernel on {} closed the connection before it answered", path.display());
    Error::new(Code::Unavailable, "kernel.unreachable", text)
        .retry(Retry::After { after_ms: 500 })
        .help("eclosion doctor")
}
