//! What a kernel left behind: processes that bear its marker, sockets, segments, files of half-done work.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Whoever was started under this kernel carries the round's directory in its environment.
pub(crate) fn processes(directory: &Path) -> Vec<u32> {
    let mark = directory.as_os_str().as_encoded_bytes();
    let me = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != me && bears(*pid, mark)).collect()
}

fn bears(pid: u32, mark: &[u8]) -> bool {
    // A zombie has no environment any more; a process of another user cannot be ours.
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.windows(mark.len()).any(|window| window == mark)
}

/// Waits until nothing is left, and says what is.
pub(crate) fn none_within(directory: &Path, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    loop {
        let left = processes(directory);
        if left.is_empty() {
            break;
        }
        if Instant::now() > until {
            let shown: Vec<_> = left.iter().map(|pid| command_of(*pid)).collect();
            return Err(format!("processes are left: {shown:?}"));
        }
        // Processes end by themselves, and nobody but their parent is told.
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut files = Vec::new();
    collect(&directory.join("run"), &mut files);
    // The file that keepers lock stays: removing it would let two of them lock different files of one name.
    files.retain(|file| !file.ends_with("/keeper.lock"));
    collect(&directory.join("state").join("default").join("artifacts").join("stage"), &mut files);
    if files.is_empty() { Ok(()) } else { Err(format!("files are left: {files:?}")) }
}

fn command_of(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
}

fn collect(directory: &Path, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path.display().to_string());
        }
    }
}
