//! What every worker imports: the `eclosion` package out of this binary, and the msgspec that it needs.
//!
//! Both lie in one directory per interpreter ABI, so that a zygote puts one path last and an environment's own msgspec
//! comes first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use eclosion_schemas::Error;
use tokio::time::Instant;

use crate::environments::Environments;
use crate::interpreter::Interpreter;
use crate::place::{Claim, Place};
use crate::resolver::Resolver;

mod files {
    include!(concat!(env!("OUT_DIR"), "/runtime_files.rs"));
}

/// The one that the package is tested with.
const MSGSPEC: &str = "0.22.0";

impl Environments {
    /// What is put last on the module path of this interpreter's workers; laid out now if it is not there.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn runtime_paths(&self, python: &Path) -> Result<Vec<PathBuf>, Error> {
        let interpreter = self.interpreter(python).await?;
        let deadline = Instant::now() + self.options().build_timeout;
        let runtime = self.cache().join("runtime");
        let place = Place::new(runtime.clone(), &format!("{}-{}", version(), interpreter.abi_name()));
        let path = place.path().to_owned();
        // Its link leads nowhere when somebody cleared the cache.
        let is_whole = |path: &Path| path.join("msgspec").exists();
        if let Claim::Mine(unfinished) = place.claim(deadline, is_whole, &|_| {}).await? {
            let msgspec = self.msgspec(&runtime, &interpreter, deadline).await?;
            let laid = unfinished.step(move |path| lay_out(path, &msgspec)).await?;
            laid.finish(&interpreter).await?;
        }
        Ok(vec![path])
    }

    async fn msgspec(
        &self,
        runtime: &Path,
        interpreter: &Interpreter,
        deadline: Instant,
    ) -> Result<PathBuf, Error> {
        let name = format!("abi-{}-msgspec-{MSGSPEC}", interpreter.abi_name());
        let place = Place::new(runtime.to_owned(), &name);
        let path = place.path().join("msgspec");
        let is_whole = |_: &Path| path.exists();
        if let Claim::Mine(unfinished) = place.claim(deadline, is_whole, &|_| {}).await? {
            let resolver = Resolver::choose(self.options().uv.as_deref(), interpreter);
            let requirement = format!("msgspec=={MSGSPEC}");
            if let Err(error) = resolver.package(&requirement, &unfinished, deadline).await {
                unfinished.take_back().await;
                return Err(error);
            }
            unfinished.finish(&interpreter).await?;
        }
        Ok(path)
    }
}

/// The package's version and the hash of its files.
fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in files::FILES {
            for part in [name.as_bytes(), bytes] {
                hasher.update(&(part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
        }
        format!("{}-{}", env!("CARGO_PKG_VERSION"), &hasher.finalize().to_hex()[..16])
    })
}

fn lay_out(path: &Path, msgspec: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    for (name, bytes) in files::FILES {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap_or(path))?;
        fs::write(file, bytes)?;
    }
    std::os::unix::fs::symlink(msgspec, path.join("msgspec"))
}
