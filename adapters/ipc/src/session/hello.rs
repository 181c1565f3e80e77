//! The greeting: which dialect, which version, which role.

use std::sync::Arc;
use std::time::Duration;

use eclosion_schemas::frame::{API, API_COMPATIBLE, Envelope, Frame, FrameType, StreamId};
use eclosion_schemas::{Code, Error, Role};

use super::{Over, Session, http};
use crate::worker::WorkerHello;

/// Longest name that a client may give itself.
const CLIENT_BYTES_MAX: usize = 96;

impl Session {
    /// Until HELLO is answered, at most `hello_ms`.
    pub(super) async fn greet(&mut self) -> Result<(), Over> {
        let wait = Duration::from_millis(self.welcome.limits.hello_ms.into());
        let hello = tokio::time::timeout(wait, self.hello()).await;
        let Some(frame) = hello.map_err(|_| Over::Refused(late(wait)))?? else {
            return Err(self.answer_http().await);
        };
        self.admit(&frame.envelope).map_err(Over::Refused)?;
        if self.role == Role::Worker {
            // Its link says WELCOME.
            let hello: WorkerHello = frame.decode().map_err(|why| Over::Refused(why.into()))?;
            return Err(Over::Worker(Box::new(hello)));
        }
        let mut welcome = self.welcome.frame(self.role, Vec::new());
        let features = frame.envelope.features.as_deref().unwrap_or_default();
        let given = self.sharing.agree(features, self.welcome.epoch, !self.connection.speaks_lines());
        if !given.is_empty() {
            welcome.envelope.features.get_or_insert_default().extend(given);
        }
        if let Some(serving) = &self.serving {
            // The table changes as services come and go.
            welcome.envelope.describe_hash = Some(serving.describe_hash());
        }
        self.send(welcome);
        Ok(())
    }

    /// `None`: HTTP is spoken.
    async fn hello(&mut self) -> Result<Option<Frame>, Over> {
        match self.connection.first_byte().await? {
            0 => {}
            b'{' => self.connection.speak_lines(),
            verb if http::may_begin(verb) => return Ok(None),
            _ => return Err(Over::Text(format!("{}\n", other_dialect()), Some(other_dialect()))),
        }
        let received = self.connection.receive().await?;
        if received.frame.kind != FrameType::Hello || received.frame.stream != StreamId::CONNECTION {
            let text = "a connection begins with HELLO on stream 0";
            return Err(Over::Refused(Error::invalid("hello.missing", text)));
        }
        Ok(Some(received.frame))
    }

    fn admit(&mut self, hello: &Envelope) -> Result<(), Error> {
        let (api, oldest) = (hello.api.unwrap_or(API), hello.api_compatible.or(hello.api).unwrap_or(API));
        if api < API_COMPATIBLE || oldest > API {
            let text =
                format!("the client speaks api {oldest} to {api}, this kernel {API_COMPATIBLE} to {API}");
            let error = Error::new(Code::Precondition, "hello.api", text);
            return Err(error.help("use client and kernel of one release: eclosion --version"));
        }
        self.role = self.role_of(hello.role)?;
        let name: String =
            hello.client.as_deref().unwrap_or("client").chars().take(CLIENT_BYTES_MAX).collect();
        let client = match self.peer.pid {
            Some(pid) => format!("{name} (pid {pid})"),
            None => name,
        };
        self.client = Some(Arc::from(client));
        Ok(())
    }

    /// Less than what the peer may have is given on request.
    fn role_of(&self, wished: Option<Role>) -> Result<Role, Error> {
        let most = self.peer.role();
        match wished {
            None => Ok(most),
            Some(Role::Service) if self.serving.is_some() && most == Role::Admin => Ok(Role::Service),
            Some(Role::Worker) if self.takes_workers => self.may_be_worker().map(|()| Role::Worker),
            Some(role @ (Role::Worker | Role::Service)) => {
                let text = format!("this socket gives no role {role:?}");
                Err(Error::new(Code::Unimplemented, "hello.role", text.to_lowercase()))
            }
            Some(role) if most.permits(role) => Ok(role),
            Some(_) => Err(Error::new(Code::Denied, "hello.role", "the peer may not have this role")),
        }
    }

    /// It computes with the user's own rights, so it must be the user's own; root's would write files that he cannot.
    fn may_be_worker(&self) -> Result<(), Error> {
        if !self.peer.is_ourselves() {
            let text = "a worker runs as the same user as its kernel";
            return Err(Error::new(Code::Denied, "hello.role", text));
        }
        if self.connection.speaks_lines() {
            let text = "a worker speaks frames: files pass to it as descriptors, which lines cannot carry";
            return Err(Error::invalid("hello.role", text));
        }
        Ok(())
    }
}

fn late(wait: Duration) -> Error {
    let text = format!("no HELLO within {} ms", wait.as_millis());
    Error::new(Code::Deadline, "hello.late", text)
}

fn other_dialect() -> Error {
    let text =
        "this socket speaks frames, whose first byte is 0, lines of JSON objects, and HTTP for a few pages";
    Error::new(Code::Unimplemented, "hello.dialect", text).help("eclosion call NAME JSON")
}
