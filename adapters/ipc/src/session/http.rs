//! The third dialect: one HTTP/1 request, one answer, and the connection is over.
//!
//! It is there for what monitors a machine: `GET` of the [`Page`]s, and nothing else. A request is read up to the end of its head,
//! which is at most [`HEAD_BYTES_MAX`] long and comes within the time that HELLO has; a body is never read. Every answer
//! is whole (`content-length`) and says `connection: close`.
//!
//! The socket is closed to other users, so that no page asks who is there (P10), and no browser reaches it.

use std::fmt::Write as _;
use std::time::Duration;

use eclosion_schemas::{Code, Error};

use super::{Over, Session};
use crate::pages::Page;

/// Longest head of a request: method, path and what curl or a scraper says of itself.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Header lines that a head may have.
const HEADERS_MAX: usize = 64;
/// What writes a page has deadlines of its own, which are shorter.
const WRITE: Duration = Duration::from_secs(10);
const TEXT: &str = "text/plain; charset=utf-8";

/// Every method begins so, and nothing else that comes first on this socket.
pub(super) fn may_begin(byte: u8) -> bool {
    byte.is_ascii_uppercase()
}

/// An answer and, if it is a refusal, the error that the session ends with.
struct Answer {
    status: &'static str,
    content_type: &'static str,
    text: String,
    /// `HEAD` is answered without its text.
    is_bare: bool,
    refusal: Option<Error>,
}

impl Session {
    /// Reads the request and writes the page.
    pub(super) async fn answer_http(&mut self) -> Over {
        let wait = Duration::from_millis(self.welcome.limits.hello_ms.into());
        let answer = match tokio::time::timeout(wait, self.head()).await {
            Err(_) => refused("408 Request Timeout", "no whole request head arrived in time"),
            Ok(Err(over)) => return over,
            Ok(Ok(Err(answer))) => answer,
            Ok(Ok(Ok(page))) => self.page(page).await,
        };
        self.client = Some("http".into());
        Over::Text(answer.bytes(), answer.refusal)
    }

    async fn head(&mut self) -> Result<Result<Page, Answer>, Over> {
        let mut head = Vec::new();
        loop {
            head.extend_from_slice(&self.connection.take_bytes());
            if let Some(asked) = asked(&head) {
                return Ok(asked);
            }
            self.connection.receive_bytes().await?;
        }
    }

    async fn page(&mut self, page: Page) -> Answer {
        let Some(pages) = &self.pages else { return not_found() };
        match tokio::time::timeout(WRITE, pages.write(page)).await {
            Ok(Ok(text)) => Answer {
                status: "200 OK",
                content_type: page.content_type(),
                text,
                is_bare: false,
                refusal: None,
            },
            Ok(Err(text)) => unavailable(text),
            Err(_) => unavailable("the page was not written in time\n".into()),
        }
    }
}

/// What a head asks for; `None` while it is not whole.
fn asked(head: &[u8]) -> Option<Result<Page, Answer>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(&head[..head.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(_)) => {
            Some(route(request.method.unwrap_or_default(), request.path.unwrap_or_default()))
        }
        Ok(httparse::Status::Partial) if head.len() < HEAD_BYTES_MAX => None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Some(Err(refused("431 Request Header Fields Too Large", "the head of the request is too long")))
        }
        Err(_) => Some(Err(refused("400 Bad Request", "this is no HTTP/1 request"))),
    }
}

fn route(method: &str, target: &str) -> Result<Page, Answer> {
    let path = target.split('?').next().unwrap_or_default();
    let page = Page::ALL.into_iter().find(|page| page.path() == path);
    match (page, method) {
        (Some(page), "GET") => Ok(page),
        (Some(_), _) => Err(Answer {
            is_bare: method == "HEAD",
            ..refused("405 Method Not Allowed", "this path takes GET alone")
        }),
        (None, _) => Err(Answer { is_bare: method == "HEAD", ..not_found() }),
    }
}

fn not_found() -> Answer {
    let paths = Page::ALL.map(Page::path).join(", ");
    refused("404 Not Found", &format!("over HTTP there are {paths}; for everything else see: eclosion call"))
}

fn refused(status: &'static str, text: &str) -> Answer {
    let refusal = Error::new(Code::Invalid, "http.request", format!("{status}: {text}"));
    Answer { status, content_type: TEXT, text: format!("{text}\n"), is_bare: false, refusal: Some(refusal) }
}

/// It was asked well, so that the session ends well.
fn unavailable(text: String) -> Answer {
    Answer { status: "503 Service Unavailable", content_type: TEXT, text, is_bare: false, refusal: None }
}

impl Answer {
    fn bytes(&self) -> String {
        let Self { status, content_type, text, .. } = self;
        let mut bytes = String::with_capacity(text.len() + 256);
        // Writing to a string does not fail.
        let _ = write!(
            bytes,
            "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\nconnection: close\r\n",
            text.len()
        );
        if status.starts_with("405") {
            bytes.push_str("allow: GET\r\n");
        }
        bytes.push_str("cache-control: no-store\r\n\r\n");
        if !self.is_bare {
            bytes.push_str(text);
        }
        bytes
    }
}
