//! The binary `eclosion`: a kernel, its keeper, and the client that people use.

mod daemon;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Before any thread: the keeper is single-threaded for good.
    if let Some(("keeper", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return keeper(rest);
    }
    daemon::log("info,eclosion=info");
    daemon::quiet_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(why) => {
            tracing::error!(%why, "no runtime");
            return ExitCode::from(daemon::INTERNAL);
        }
    };
    let served = runtime.block_on(async { daemon::serve(daemon::options("default")?).await });
    served.unwrap_or_else(|error| {
        tracing::error!(%error, help = error.help, "cannot start");
        ExitCode::from(5)
    })
}

fn keeper(arguments: &[String]) -> ExitCode {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    match (value("--instance"), value("--dir"), value("--grace-ms").and_then(|text| text.parse().ok())) {
        (Some(instance), Some(dir), Some(grace_ms)) => {
            eclosion::keeper_main(eclosion::KeeperOptions { instance, dir: dir.into(), grace_ms })
        }
        _ => ExitCode::from(2),
    }
}
