//! Artifacts: what is there, one of them, where it came from, what people call it, and whether it is still what it was.

use std::path::PathBuf;

use eclosion_schemas::Error;
use eclosion_schemas::ops::artifact::{
    GetRequest, Lineage, List, ListRequest, PinsRequest, TagsRequest, Verify, VerifyRequest,
};
use eclosion_schemas::view::ArtifactView;

use super::result::{self, Keep};
use crate::arguments::artifact as arguments;
use crate::globals::Globals;
use crate::render::{self, table};
use crate::terminal::{document, print, talk};
use crate::{exit, session};

mod labels;

pub(super) async fn perform(globals: &Globals, artifact: arguments::Artifact) -> Result<u8, Error> {
    use arguments::Artifact;
    match artifact {
        Artifact::Ls { prefix, run, limit } => list(globals, ListRequest { run, prefix, limit }).await,
        Artifact::Search(search) => labels::search(globals, search).await,
        Artifact::Get { name, out } => get(globals, &name, out).await,
        Artifact::Tag { name, tag, reason } => labels::tag(globals, name, tag, reason).await,
        Artifact::Untag { name, reason } => labels::untag(globals, &name, reason).await,
        Artifact::Tags { prefix, history, limit } => {
            labels::tags(globals, TagsRequest { prefix, history, limit }).await
        }
        Artifact::Pin(pin) => labels::pin(globals, pin).await,
        Artifact::Unpin(pin) => labels::unpin(globals, pin).await,
        Artifact::Pins { prefix, limit } => labels::pins(globals, PinsRequest { prefix, limit }).await,
        Artifact::Lineage { name } => lineage(globals, name).await,
        Artifact::Verify { name } => verify(globals, name).await,
    }
}

async fn list(globals: &Globals, request: ListRequest) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let limit = u64::from(request.limit);
    let list = client.call::<List>(request).await?;
    if globals.json {
        document("artifacts", &list)?;
        return Ok(exit::OK);
    }
    if list.artifacts.is_empty() {
        talk("there is no such artifact");
        return Ok(exit::OK);
    }
    print(&rows(&list.artifacts))?;
    if list.cut > 0 {
        talk(&format!("{} more were cut: --limit {}", list.cut, limit + list.cut));
    }
    Ok(exit::OK)
}

fn rows(artifacts: &[ArtifactView]) -> String {
    let now = render::now();
    let rows = artifacts.iter().map(|artifact| {
        let digest = artifact.digest.as_ref().map_or_else(|| "-".to_owned(), |digest| short(digest.as_str()));
        vec![
            artifact.name.clone(),
            artifact.codec.clone(),
            render::bytes(artifact.bytes),
            digest,
            artifact.file.clone().unwrap_or_default(),
            format!("{} ago", render::duration(now.since_ms(artifact.created_at))),
        ]
    });
    table(&["artifact", "codec", "size", "digest", "file", "made"], rows)
}

fn short(digest: &str) -> String {
    digest.chars().take(16).collect()
}

async fn get(globals: &Globals, name: &str, out: Option<PathBuf>) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let keep = if out.is_some() { Keep::Everything } else { Keep::Files };
    let out = out.unwrap_or_else(|| default_out(name));
    let fetched = result::fetch(&client, name, &out, keep).await?;
    if globals.json {
        let (artifact, value, files) = (&fetched.artifact, &fetched.value, &fetched.files);
        document("artifact", &serde_json::json!({"artifact": artifact, "value": value, "files": files}))?;
        return Ok(exit::OK);
    }
    print(&render::value::text(&fetched.value, &fetched.order))?;
    fetched.files.iter().for_each(|file| talk(&format!("wrote {}", file.path.display())));
    Ok(exit::OK)
}

/// `./eclosion-out/RUN` for `RUN/TASK`.
fn default_out(name: &str) -> PathBuf {
    let first = name.split('/').next().unwrap_or_default();
    let is_name =
        !first.is_empty() && first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    PathBuf::from("eclosion-out").join(if is_name { first } else { "artifact" })
}

async fn lineage(globals: &Globals, name: String) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    let found = client.call::<Lineage>(GetRequest { name: name.clone() }).await?;
    if globals.json {
        document("lineage", &found)?;
        return Ok(exit::OK);
    }
    for (title, artifacts) in [("was made from", &found.inputs), ("went into", &found.outputs)] {
        match artifacts.is_empty() {
            true => print(&format!("{name} {title} nothing"))?,
            false => print(&format!("{name} {title}\n{}", rows(artifacts)))?,
        }
    }
    Ok(exit::OK)
}

async fn verify(globals: &Globals, name: Option<String>) -> Result<u8, Error> {
    let client = session::attach(globals).await?;
    // As long as it takes to read everything; a stopped kernel still ends it.
    let checking = client.stream::<Verify>(VerifyRequest { name }).await?;
    let checked = checking.reply().await?;
    if globals.json {
        document("verify", &checked)?;
    } else {
        checked.bad.iter().try_for_each(|digest| print(digest.as_str()))?;
        let (count, bytes) = (checked.checked, render::bytes(checked.bytes));
        talk(&format!("{count} objects read, {bytes}; {} missing or different", checked.bad.len()));
    }
    Ok(if checked.bad.is_empty() { exit::OK } else { exit::DATA_LOSS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_artifact_go_below_the_name_of_its_run() {
        assert_eq!(default_out("7k2m4q9d/report"), PathBuf::from("eclosion-out/7k2m4q9d"));
        assert_eq!(default_out("../x"), PathBuf::from("eclosion-out/artifact"));
    }
}
