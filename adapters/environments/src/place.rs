//! A directory that is built once: whole, or not at all.
//!
//! ```text
//!  free ── claim: lock held, leftovers removed ──► unfinished ── finish: synced, marker written ──► built
//!                                        └── taken back or dropped: removed, then the lock released ──► free
//! ```
//!
//! The lock is the file `NAME.lock` beside the directory. It belongs to whoever may still write: a step on a blocking
//! thread owns the right while it runs, so that dropping its future cannot give the lock away under it; and a resolver
//! has the lock as its standard input (the file is empty), so that one which outlives a killed kernel keeps the next
//! builder out until it ends. A builder that was killed leaves a directory without a marker, which the next removes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use eclosion_schemas::Error;
use serde::Serialize;
use tokio::time::Instant;

use crate::failure;
use crate::resolver::Progress;

/// Written last, synced; it makes the directory valid.
const MARKER: &str = "eclosion.json";
/// Between two looks at another builder's lock.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Place {
    parent: PathBuf,
    path: PathBuf,
    lock: PathBuf,
}

pub(crate) enum Claim {
    Built,
    Mine(Unfinished),
}

impl Place {
    pub(crate) fn new(parent: PathBuf, name: &str) -> Self {
        Self { path: parent.join(name), lock: parent.join(format!("{name}.lock")), parent }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds it built, waits for whoever builds it, or takes the right to build it.
    pub(crate) async fn claim(
        self,
        deadline: Instant,
        is_whole: impl Fn(&Path) -> bool,
        progress: &impl Fn(Progress),
    ) -> Result<Claim, Error> {
        let is_built = || self.path.join(MARKER).exists() && is_whole(&self.path);
        if is_built() {
            return Ok(Claim::Built);
        }
        fs::create_dir_all(&self.parent).map_err(|why| failure::disk(&self.parent, &why))?;
        let lock = self.wait_for_lock(deadline, progress).await?;
        if is_built() {
            return Ok(Claim::Built);
        }
        let unfinished = Unfinished { path: self.path, lock: Some(lock) };
        unfinished.step(remove).await.map(Claim::Mine)
    }

    async fn wait_for_lock(&self, deadline: Instant, progress: &impl Fn(Progress)) -> Result<File, Error> {
        let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&self.lock);
        let lock = opened.map_err(|why| failure::disk(&self.lock, &why))?;
        let mut is_told = false;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(why)) => return Err(failure::disk(&self.lock, &why)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(failure::timeout(&[]));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if !is_told {
                progress(Progress::phase("wait", "another process builds it"));
                is_told = true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// The right to build. Dropped, it takes everything back.
#[derive(Debug)]
pub(crate) struct Unfinished {
    path: PathBuf,
    /// Given away when it is finished or removed.
    lock: Option<File>,
}

impl Unfinished {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The lock once more, for a process that writes into the directory: it is held until the last holder ends.
    pub(crate) fn lock(&self) -> Result<File, Error> {
        let lock = self.lock.as_ref().map_or_else(|| Err(io::ErrorKind::NotFound.into()), File::try_clone);
        lock.map_err(|why| failure::disk(&self.path, &why))
    }

    /// Does something to the directory where waiting is allowed. Dropping the future lets it end, then takes it back.
    pub(crate) async fn step(
        self,
        act: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Error> {
        let path = self.path.clone();
        let acted = tokio::task::spawn_blocking(move || act(&self.path).map(|()| self)).await;
        acted.map_err(io::Error::other).flatten().map_err(|why| failure::disk(&path, &why))
    }

    /// Removes everything before it returns: what follows may be the end of the process.
    pub(crate) async fn take_back(mut self) {
        if let Some(removal) = self.removal()
            && let Err(why) = tokio::task::spawn_blocking(removal).await
        {
            tracing::warn!(%why, "a half-built directory stays until it is built again");
        }
    }

    fn removal(&mut self) -> Option<impl FnOnce() + Send + 'static> {
        let lock = self.lock.take()?;
        let path = std::mem::take(&mut self.path);
        Some(move || {
            if let Err(why) = remove(&path) {
                tracing::warn!(path = %path.display(), %why, "a half-built directory stays until it is built again");
            }
            drop(lock);
        })
    }

    /// Everything on disk, then the marker on disk. Once it has begun, dropping the future does not stop it.
    pub(crate) async fn finish(self, marker: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(marker).map_err(|why| failure::disk(&self.path, &why.into()))?;
        let path = self.path.clone();
        let marked = tokio::task::spawn_blocking(move || self.mark(&text)).await;
        marked.map_err(io::Error::other).flatten().map_err(|why| failure::disk(&path, &why))
    }

    /// The right ends with the marker, on this thread: nobody can take back what is valid.
    fn mark(mut self, text: &[u8]) -> io::Result<()> {
        mark(&self.path, text)?;
        self.lock = None;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(removal) = self.removal() else { return };
        // Thousands of files: not on a thread that serves others.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(removal)),
            Err(_) => removal(),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    // A resolver that was just killed may finish one more write.
    const TRIES: u32 = 10;
    let mut removed = fs::remove_dir_all(path);
    for _ in 1..TRIES {
        match &removed {
            Err(why) if why.kind() == io::ErrorKind::DirectoryNotEmpty => removed = fs::remove_dir_all(path),
            _ => break,
        }
    }
    match removed {
        Err(why) if why.kind() != io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

fn mark(path: &Path, text: &[u8]) -> io::Result<()> {
    let directory = File::open(path)?;
    // What was installed may still be in memory alone, and after a power cut a marker would vouch for it.
    rustix::fs::syncfs(&directory)?;
    let mut marker = File::create(path.join(MARKER))?;
    marker.write_all(text)?;
    marker.sync_all()?;
    directory.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    async fn mine(parent: &Path) -> Option<Unfinished> {
        match Place::new(parent.to_owned(), "x").claim(soon(), |_| true, &|_| {}).await.unwrap() {
            Claim::Mine(unfinished) => Some(unfinished),
            Claim::Built => None,
        }
    }

    #[tokio::test]
    async fn what_was_left_half_built_is_removed_and_what_is_built_is_kept() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join("x/lib")).unwrap();
        let unfinished = mine(cache.path()).await.unwrap();
        assert!(!unfinished.path().exists());
        fs::create_dir(unfinished.path()).unwrap();
        unfinished.finish(&"made").await.unwrap();
        assert!(mine(cache.path()).await.is_none());
    }

    #[tokio::test]
    async fn a_dropped_right_takes_back_what_was_written_before_another_gets_it() {
        let cache = tempfile::tempdir().unwrap();
        let unfinished = mine(cache.path()).await.unwrap();
        fs::create_dir_all(unfinished.path().join("lib")).unwrap();
        drop(unfinished);
        let next = mine(cache.path()).await.unwrap();
        assert!(!next.path().exists());
    }

    #[tokio::test]
    async fn what_is_taken_back_is_gone_before_anybody_is_told() {
        let cache = tempfile::tempdir().unwrap();
        let unfinished = mine(cache.path()).await.unwrap();
        fs::create_dir_all(unfinished.path().join("lib")).unwrap();
        unfinished.take_back().await;
        assert!(!cache.path().join("x").exists());
    }

    /// Polls it once, so that its blocking step is running, and drops it.
    async fn begin_and_drop(future: impl Future) {
        tokio::select! {
            biased;
            _ = future => {}
            () = std::future::ready(()) => {}
        }
    }

    #[tokio::test]
    async fn a_dropped_step_keeps_the_lock_until_it_ends() {
        let cache = tempfile::tempdir().unwrap();
        let unfinished = mine(cache.path()).await.unwrap();
        let (go, gate) = std::sync::mpsc::channel::<()>();
        let slow = unfinished.step(move |path| {
            gate.recv().map_err(io::Error::other)?;
            fs::create_dir_all(path.join("late"))
        });
        begin_and_drop(slow).await;
        let lock = File::open(cache.path().join("x.lock")).unwrap();
        assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
        go.send(()).unwrap();
        assert!(!mine(cache.path()).await.unwrap().path().exists());
    }

    #[tokio::test]
    async fn a_dropped_finish_leaves_a_whole_directory_or_none() {
        let cache = tempfile::tempdir().unwrap();
        let unfinished = mine(cache.path()).await.unwrap();
        fs::create_dir(unfinished.path()).unwrap();
        begin_and_drop(unfinished.finish(&"made")).await;
        assert!(mine(cache.path()).await.is_none());
    }

    #[tokio::test]
    async fn a_resolver_that_outlives_its_builder_keeps_the_next_one_out() {
        let cache = tempfile::tempdir().unwrap();
        let mut unfinished = mine(cache.path()).await.unwrap();
        // Its input is the lock, as a resolver's is.
        let mut orphan = std::process::Command::new("/bin/sh")
            .args(["-c", "exec sleep 1000"])
            .stdin(unfinished.lock().unwrap())
            .spawn()
            .unwrap();
        // As when the kernel is killed: nothing is taken back.
        drop(unfinished.lock.take());
        let lock = File::open(cache.path().join("x.lock")).unwrap();
        assert!(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
        orphan.kill().unwrap();
        orphan.wait().unwrap();
        assert!(mine(cache.path()).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_another_builder_ends_at_the_deadline() {
        let cache = tempfile::tempdir().unwrap();
        let _held = mine(cache.path()).await.unwrap();
        let told = std::cell::Cell::new(0);
        let waiting = Place::new(cache.path().to_owned(), "x");
        let refused = waiting.claim(soon(), |_| true, &|_| told.set(told.get() + 1)).await;
        assert_eq!(refused.err().unwrap().reason, "environment.timeout");
        assert_eq!(told.get(), 1);
    }
}
