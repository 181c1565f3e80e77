//! What the socket answers to HTTP: a few pages whose text somebody else writes.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

/// What may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Numbers for a monitoring system, in Prometheus' text format.
    Metrics,
    /// Whether restarting the process would help.
    Health,
    /// Whether it does what it is for.
    Ready,
}

impl Page {
    pub const ALL: [Page; 3] = [Page::Metrics, Page::Health, Page::Ready];

    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Page::Metrics => "/metrics",
            Page::Health => "/healthz",
            Page::Ready => "/readyz",
        }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Page::Metrics => "text/plain; version=0.0.4; charset=utf-8",
            Page::Health | Page::Ready => "text/plain; charset=utf-8",
        }
    }
}

/// A page as it is now. `Err`: the text says what is wrong, and the status that it is served with is 503.
pub type Written = Result<String, String>;

/// Writes pages; the facade's part.
pub trait Pages: Debug + Send + Sync + 'static {
    fn write(&self, page: Page) -> Pin<Box<dyn Future<Output = Written> + Send>>;
}
