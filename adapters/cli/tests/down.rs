//! `down` at a kernel that is part of another program: it ends with that kernel, or says within its time why not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "support/binary.rs"]
mod binary;

use std::path::Path;
use std::process::Output;

use eclosion::Kernel;
use tempfile::TempDir;

use binary::eclosion;

async fn down(directory: &Path, socket: &Path) -> Output {
    let socket = socket.to_str().unwrap();
    let mut command = eclosion(directory, &["--socket", socket, "down", "--timeout", "0"]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_does_not_wait_for_the_end_of_its_kernel_is_named_with_the_next_step() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("run/kernel.sock");
    let kernel = Kernel::builder().below(directory.path()).listen(&socket).start().await.unwrap();
    let refused = down(directory.path(), &socket).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(6), "{said}");
    let pid = std::process::id();
    assert!(said.contains(&format!("(pid {pid})")) && said.contains("Kernel::stopped()"), "{said}");
    assert!(said.contains(&format!("help: kill {pid}")), "{said}");
    kernel.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_goes_on_without_its_kernel_is_no_reason_to_wait() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("run/kernel.sock");
    let kernel = Kernel::builder().below(directory.path()).listen(&socket).start().await.unwrap();
    let asking = tokio::spawn({
        let (directory, socket) = (directory.path().to_owned(), socket.clone());
        async move { down(&directory, &socket).await }
    });
    kernel.stopped().await;
    kernel.shutdown().await;
    let ended = asking.await.unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}
