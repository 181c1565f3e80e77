//! A kernel that was shut down has let go of everything: the same process may start another on its directory.

use std::time::{Duration, Instant};

use eclosion::{Kernel, Options, Places};

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_can_be_had_again_after_a_shutdown() {
    let directory = tempfile::tempdir().unwrap();
    for life in 1..=3 {
        let begun = Instant::now();
        let kernel = loop {
            match Kernel::start(Options::new(Places::below(directory.path(), "again"))).await {
                Ok(kernel) => break kernel,
                // What still runs out drops the last of the old one.
                Err(why) if why.reason == "journal.locked" && begun.elapsed() < Duration::from_secs(10) => {
                    tokio::task::yield_now().await;
                }
                Err(why) => panic!("life {life}: {why}"),
            }
        };
        kernel.shutdown().await;
    }
}
