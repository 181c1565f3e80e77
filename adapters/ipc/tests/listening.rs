//! The listening socket: where it lies, who may enter, and what it does not take away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use eclosion_ipc::{ListenOptions, Listener};
use eclosion_schemas::Code;

fn bind(path: &Path) -> Result<Listener, eclosion_schemas::Error> {
    Listener::bind(ListenOptions::new(path))
}

fn private() -> tempfile::TempDir {
    let ours = std::fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().permissions(ours).tempdir().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_socket_and_its_directory_are_closed_to_others_and_the_socket_goes_with_its_listener() {
    let directory = private();
    let path = directory.path().join("run/a.sock");
    let listener = bind(&path).unwrap();
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_directory_that_others_can_enter_is_refused_with_the_command_that_mends_it() {
    let directory = private();
    for mode in [0o755, 0o770, 0o701] {
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let error = bind(&directory.path().join("a.sock")).unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::Denied, "socket.directory"), "{mode:o}");
        assert!(error.help.unwrap().starts_with("chmod 700 "));
    }
    // What everybody shares is not to be closed to them.
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let error = bind(&directory.path().join("a.sock")).unwrap_err();
    assert!(error.help.unwrap().starts_with("choose a directory that is yours alone"));
}

#[tokio::test]
async fn a_path_that_does_not_fit_is_refused_in_words() {
    let directory = private();
    let error = bind(&directory.path().join("x".repeat(120))).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Invalid, "socket.path"));
    assert!(error.message.contains("107"));
    assert_eq!(bind(Path::new("a.sock")).unwrap_err().reason, "socket.path");
}

#[tokio::test]
async fn a_socket_that_somebody_answers_on_is_not_taken_away() {
    let directory = private();
    let path = directory.path().join("a.sock");
    let _first = bind(&path).unwrap();
    let error = bind(&path).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::AlreadyExists, "socket.taken"));
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
}

#[tokio::test]
async fn a_socket_that_a_dead_kernel_left_is_replaced() {
    let directory = private();
    let path = directory.path().join("a.sock");
    // The standard library's listener leaves its file behind, as a killed kernel does.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _listener = bind(&path).unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = private();
    let path = directory.path().join("a.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind(&path).unwrap_err().code, Code::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}
