//! The third dialect over real sockets: whole answers, and whatever else is sent ends with one or with the connection.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::future::{Future, IntoFuture as _};
use std::pin::Pin;
use std::sync::Arc;

use eclosion_ipc::{Page, Pages, Written};
use eclosion_schemas::frame::Limits;
use proptest::prelude::*;
use support::{Echo, Text, World, watched};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Debug)]
struct Few;

impl Pages for Few {
    fn write(&self, page: Page) -> Pin<Box<dyn Future<Output = Written> + Send>> {
        Box::pin(async move {
            match page {
                Page::Metrics => Ok("x 1\n".repeat(100_000)),
                Page::Health => Ok("ok\n".into()),
                Page::Ready => Err("draining\n".into()),
            }
        })
    }
}

fn world() -> World {
    World::with_pages(Limits::DEFAULT, Arc::new(Few))
}

/// Status line, headers and text; at the end of the connection.
async fn ask(world: &World, said: &[u8]) -> (String, String, String) {
    let mut stream = tokio::net::UnixStream::connect(&world.path).await.unwrap();
    // The kernel may have hung up before all was said.
    let _ = stream.write_all(said).await;
    let mut heard = Vec::new();
    // A kernel that leaves part of a request unread ends the connection with a reset, behind its answer.
    let _ = watched(stream.read_to_end(&mut heard)).await;
    let heard = String::from_utf8(heard).unwrap();
    let (head, text) = heard.split_once("\r\n\r\n").unwrap();
    let (status, headers) = head.split_once("\r\n").unwrap();
    (status.to_owned(), headers.to_owned(), text.to_owned())
}

async fn others_are_served(world: &World) {
    let client = world.client().await;
    let text = Text { text: "still here".into() };
    assert_eq!(watched(client.call::<Echo>(text.clone()).into_future()).await.unwrap(), text);
}

#[tokio::test]
async fn a_page_comes_whole_with_its_type_and_length() {
    let world = world();
    let (status, headers, text) = ask(&world, b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(headers.contains("content-type: text/plain; version=0.0.4"), "{headers}");
    assert!(headers.contains("content-length: 400000\r\nconnection: close"), "{headers}");
    assert_eq!(text.len(), 400_000);
    let (status, _, text) = ask(&world, b"GET /healthz?verbose=1 HTTP/1.0\r\n\r\n").await;
    assert_eq!((status.as_str(), text.as_str()), ("HTTP/1.1 200 OK", "ok\n"));
}

#[tokio::test]
async fn a_page_that_says_no_is_503_with_its_reason() {
    let world = world();
    let (status, _, text) = ask(&world, b"GET /readyz HTTP/1.1\r\n\r\n").await;
    assert_eq!((status.as_str(), text.as_str()), ("HTTP/1.1 503 Service Unavailable", "draining\n"));
}

#[tokio::test]
async fn what_is_not_there_is_said_with_what_is() {
    let world = world();
    for (said, status, words) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found", "/metrics, /healthz, /readyz"),
        ("POST /calls HTTP/1.1\r\ncontent-length: 4\r\n\r\n1234", "404 Not Found", "eclosion call"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "GET"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", ""),
        ("GET metrics\r\n\r\n", "400 Bad Request", "HTTP/1"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 Bad Request", "HTTP/1"),
    ] {
        let (heard, headers, text) = ask(&world, said.as_bytes()).await;
        assert_eq!(heard, format!("HTTP/1.1 {status}"), "{said}");
        assert!(text.contains(words), "{said}: {text}");
        assert_eq!(headers.contains("allow: GET"), status.starts_with("405"), "{said}");
        assert_eq!(text.is_empty(), said.starts_with("HEAD"), "{said}");
    }
    let without = World::new();
    assert_eq!(ask(&without, b"GET /metrics HTTP/1.1\r\n\r\n").await.0, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_head_is_bounded_in_length_lines_and_time() {
    let world = World::with_pages(Limits { hello_ms: 30, ..Limits::DEFAULT }, Arc::new(Few));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(65));
    for said in [long, many] {
        let (status, ..) = ask(&world, said.as_bytes()).await;
        assert_eq!(status, "HTTP/1.1 431 Request Header Fields Too Large");
    }
    let (status, ..) = ask(&world, b"GET /metrics HTTP/1.1\r\nhost:").await;
    assert_eq!(status, "HTTP/1.1 408 Request Timeout");
    others_are_served(&world).await;
}

#[test]
fn whatever_begins_like_a_verb_ends_with_an_answer_and_harms_nobody() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = runtime
        .block_on(async { World::with_pages(Limits { hello_ms: 5, ..Limits::DEFAULT }, Arc::new(Few)) });
    let bytes = ("[A-Z]{1,8}", prop::collection::vec(any::<u8>(), 0..512));
    proptest!(ProptestConfig::with_cases(128), |((verb, rest) in bytes)| {
        let said = [verb.as_bytes(), &rest].concat();
        let (status, ..) = runtime.block_on(ask(&world, &said));
        prop_assert!(status.starts_with("HTTP/1.1 4"), "{status}");
    });
    runtime.block_on(others_are_served(&world));
}
