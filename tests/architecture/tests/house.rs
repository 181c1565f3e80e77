//! Reads every manifest and every source file, and says whether the edges of the house still point where they may.

#![expect(clippy::unwrap_used, reason = "a test, helpers and all")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// A crate of the workspace: its folder, and which of ours it depends on (tests and build scripts aside).
struct Crate {
    folder: String,
    needs: BTreeSet<String>,
    all_needs: BTreeSet<String>,
}

fn crates() -> BTreeMap<String, Crate> {
    let mut found = BTreeMap::new();
    for pattern in ["schemas", "bus", "kernel", "benches", "actors/*", "adapters/*", "tests/*"] {
        for folder in folders(pattern) {
            let Ok(text) = fs::read_to_string(root().join(&folder).join("Cargo.toml")) else { continue };
            let manifest: toml::Table = text.parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            let keys = |table: &str| -> BTreeSet<String> {
                manifest
                    .get(table)
                    .and_then(|t| t.as_table())
                    .map(|t| t.keys().cloned().collect())
                    .unwrap_or_default()
            };
            let all_needs = keys("dependencies");
            let needs = all_needs.iter().filter(|key| key.starts_with("eclosion")).cloned().collect();
            found.insert(name, Crate { folder, needs, all_needs });
        }
    }
    found
}

fn folders(pattern: &str) -> Vec<String> {
    let Some(parent) = pattern.strip_suffix("/*") else { return vec![pattern.to_owned()] };
    let entries = fs::read_dir(root().join(parent)).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| format!("{parent}/{}", entry.file_name().to_string_lossy()))
        .collect();
    names.sort();
    names
}

fn layer(folder: &str) -> &str {
    folder.split('/').next().unwrap()
}

#[test]
fn edges_point_only_along_the_arrows() {
    let crates = crates();
    for (name, found) in &crates {
        for needed in &found.needs {
            let to = layer(&crates[needed].folder);
            let allowed: &[&str] = match layer(&found.folder) {
                "schemas" => &[],
                "bus" => &["schemas"],
                "kernel" => &["bus", "schemas"],
                "actors" => &["kernel", "bus", "schemas"],
                "adapters" => &["adapters", "actors", "kernel", "bus", "schemas"],
                _ => continue,
            };
            assert!(allowed.contains(&to), "{name} must not depend on {needed}");
        }
    }
}

#[test]
fn no_actor_knows_another() {
    let crates = crates();
    for (name, found) in crates.iter().filter(|(_, found)| layer(&found.folder) == "actors") {
        let others = found.needs.iter().filter(|needed| layer(&crates[*needed].folder) == "actors");
        assert_eq!(others.count(), 0, "{name} depends on another actor");
    }
}

#[test]
fn no_adapter_uses_another_but_the_facade_and_the_binary() {
    let crates = crates();
    for (name, found) in crates.iter().filter(|(_, found)| layer(&found.folder) == "adapters") {
        let others: Vec<_> =
            found.needs.iter().filter(|needed| layer(&crates[*needed].folder) == "adapters").collect();
        match name.as_str() {
            "eclosion" => {}
            "eclosion-cli" => {
                let allowed = |needed: &&&String| {
                    ["eclosion", "eclosion-client", "eclosion-telemetry"].contains(&needed.as_str())
                };
                assert!(others.iter().all(|needed| allowed(&needed)), "{name} uses {others:?}");
            }
            _ => assert!(others.is_empty(), "{name} uses {others:?}"),
        }
    }
}

#[test]
fn heavy_and_outside_things_stay_in_the_leaves() {
    for (name, found) in crates() {
        let leaf = matches!(layer(&found.folder), "adapters" | "tests" | "benches");
        for heavy in
            ["rusqlite", "clap", "interprocess", "sysinfo", "indicatif", "comfy-table", "rustix", "libc"]
        {
            assert!(leaf || !found.all_needs.contains(heavy), "{name} must not depend on {heavy}");
        }
    }
}

/// Spans leave by one crate, and the binary is the one that asks for it: who embeds a kernel takes none of it.
#[test]
fn opentelemetry_is_known_to_one_adapter_and_that_to_the_binary() {
    for (name, found) in crates() {
        let exports = found.all_needs.iter().any(|needed| needed.starts_with("opentelemetry"));
        assert!(!exports || name == "eclosion-telemetry", "{name} must not depend on opentelemetry");
        let asks = found.needs.contains("eclosion-telemetry");
        assert!(!asks || name == "eclosion-cli", "{name} must not depend on eclosion-telemetry");
    }
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![root().join(folder)];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                waiting.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push((entry.clone(), fs::read_to_string(&entry).unwrap()));
            }
        }
    }
    found
}

/// The code of a file: no comments, and nothing behind its own tests.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]").next().unwrap();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_kernel_names_no_subsystem_transport_or_language() {
    for (path, text) in sources("kernel/src") {
        let code = code(&text).to_lowercase();
        for word in
            ["python", "sqlite", "unixstream", "socket", "dag_tracker", "pool_manager", "artifact_store"]
        {
            assert!(!code.contains(word), "{} says {word}", path.display());
        }
    }
}

#[test]
fn operating_system_differences_stay_at_the_edges() {
    let edges = ["adapters/ipc", "adapters/process", "adapters/store-fs"];
    for folder in ["schemas/src", "bus/src", "kernel/src", "actors", "adapters"] {
        for (path, text) in sources(folder) {
            let shown = path.strip_prefix(root()).unwrap().display().to_string();
            if edges.iter().any(|edge| shown.starts_with(edge)) || shown.contains("/tests/") {
                continue;
            }
            assert!(!code(&text).contains("target_os"), "{shown} tells operating systems apart");
        }
    }
}

#[test]
fn the_cores_are_pure() {
    for (path, text) in sources("actors") {
        let is_core = path.components().any(|part| part.as_os_str() == "state")
            || path.file_name().is_some_and(|name| name == "state.rs");
        if !is_core || path.components().any(|part| part.as_os_str() == "tests") {
            continue;
        }
        let code = code(&text);
        for word in [
            "HashMap",
            "HashSet",
            "Instant::now",
            "SystemTime",
            "rand::",
            "tokio::",
            "std::fs",
            "std::thread",
            "async fn",
        ] {
            assert!(!code.contains(word), "{} says {word}", path.display());
        }
    }
}

#[test]
fn the_visible_root_is_the_map() {
    let known = [
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "kernel",
        "actors",
        "bus",
        "adapters",
        "python-workers",
        "schemas",
        "deploy",
        "tests",
        "benches",
        "target",
    ];
    for entry in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A run of a flow puts what it made beside it.
        let fits = name.starts_with('.') || known.contains(&name.as_str()) || name == "eclosion-out";
        assert!(fits, "{name} does not belong into the root");
    }
}

#[test]
fn every_top_folder_says_what_it_is_for() {
    for folder in
        ["kernel", "actors", "bus", "adapters", "python-workers", "schemas", "deploy", "tests", "benches"]
    {
        let readme = fs::read_to_string(root().join(folder).join("README.md"));
        let lines = readme.unwrap_or_else(|_| panic!("{folder}/README.md is missing")).lines().count();
        assert!(lines <= 30, "{folder}/README.md has {lines} lines");
    }
}
