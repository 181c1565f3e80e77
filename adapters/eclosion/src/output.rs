//! What workers print: one pair of append files for each, and beside them an index of which attempt printed which part.
//!
//! The index is a line of JSON for each attempt that printed something and ended in good order. What an attempt printed that took its worker
//! along, or that still runs, lies behind the last recorded part.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use eclosion_schemas::{Attempt, RunId, TaskId, WorkerId};
use serde::{Deserialize, Serialize};

/// How much of a dead worker's output its certificate carries.
const LAST_LINES: usize = 10;
const LAST_BYTES: u64 = 8 * 1024;
/// A longer line is cut, and says so.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Of an output that grows, so much is read at once.
const CHUNK_BYTES_MAX: u64 = 1024 * 1024;

/// The output files of every worker of one instance.
#[derive(Debug, Clone)]
pub(crate) struct OutputFiles {
    directory: PathBuf,
}

/// One attempt's part of its worker's files, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) run: RunId,
    pub(crate) task: TaskId,
    pub(crate) attempt: Attempt,
    pub(crate) stdout: (u64, u64),
    pub(crate) stderr: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    pub(crate) fn range(self, part: &Part) -> (u64, u64) {
        match self {
            Stream::Stdout => part.stdout,
            Stream::Stderr => part.stderr,
        }
    }
}

impl OutputFiles {
    /// # Errors
    /// When the directory cannot be made.
    pub(crate) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    pub(crate) fn path(&self, worker: &WorkerId, stream: Stream) -> PathBuf {
        self.directory.join(format!("{worker}.{}", stream.name()))
    }

    fn index(&self, worker: &WorkerId) -> PathBuf {
        self.directory.join(format!("{worker}.index"))
    }

    /// Records which part an attempt printed, if it printed anything.
    pub(crate) fn record(&self, worker: &WorkerId, part: &Part) -> io::Result<()> {
        let is_empty = |(from, to)| from == to;
        if is_empty(part.stdout) && is_empty(part.stderr) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(part)?;
        line.push(b'\n');
        // One write for each line: a reader never sees half of one.
        OpenOptions::new().create(true).append(true).open(self.index(worker))?.write_all(&line)
    }

    /// The recorded parts of a worker, in the order in which they ended.
    pub(crate) fn parts(&self, worker: &WorkerId) -> io::Result<Vec<Part>> {
        match File::open(self.index(worker)) {
            Ok(file) => {
                let lines = BufReader::new(file).lines();
                Ok(lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).collect())
            }
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(why) => Err(why),
        }
    }

    /// Every worker that has printed or was recorded, in the order of their names.
    pub(crate) fn workers(&self) -> io::Result<Vec<WorkerId>> {
        let mut workers = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if let Some(worker) = name.to_str().and_then(|name| name.strip_suffix(".index")) {
                workers.extend(worker.parse::<WorkerId>());
            }
        }
        workers.sort();
        Ok(workers)
    }

    /// Where the unrecorded part of a worker's output begins.
    pub(crate) fn recorded_to(&self, worker: &WorkerId, stream: Stream) -> u64 {
        let parts = self.parts(worker).unwrap_or_default();
        parts.last().map_or(0, |part| stream.range(part).1)
    }

    /// How much a worker has printed, recorded or not.
    pub(crate) fn length(&self, worker: &WorkerId, stream: Stream) -> u64 {
        fs::metadata(self.path(worker, stream)).map_or(0, |file| file.len())
    }

    /// The last lines that a worker printed since its last recorded part; for its certificate.
    pub(crate) fn last_lines(&self, worker: &WorkerId) -> Vec<String> {
        let mut lines = Vec::new();
        for stream in Stream::BOTH {
            let path = self.path(worker, stream);
            let Ok(length) = fs::metadata(&path).map(|found| found.len()) else { continue };
            let from = self.recorded_to(worker, stream).max(length.saturating_sub(LAST_BYTES));
            lines.extend(read_lines(&path, from, length).unwrap_or_default());
        }
        let skip = lines.len().saturating_sub(LAST_LINES);
        lines.split_off(skip)
    }
}

/// The lines of a file between two places; bytes that are no UTF-8 are replaced.
pub(crate) fn read_lines(path: &Path, from: u64, to: u64) -> io::Result<Vec<String>> {
    Ok(lines_of(&read_range(path, from, to)?))
}

/// The first whole lines of a file between two places, at most a chunk of them, and where the next one begins. What has
/// no end yet is left, unless it fills a chunk.
pub(crate) fn read_whole_lines(path: &Path, from: u64, to: u64) -> io::Result<(Vec<String>, u64)> {
    let mut content = read_range(path, from, to.min(from.saturating_add(CHUNK_BYTES_MAX)))?;
    let ended = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    if ended > 0 || (content.len() as u64) < CHUNK_BYTES_MAX {
        content.truncate(ended);
    }
    Ok((lines_of(&content), from + content.len() as u64))
}

fn read_range(path: &Path, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(why) => return Err(why),
    };
    file.seek(SeekFrom::Start(from))?;
    let mut content = Vec::new();
    file.take(to.saturating_sub(from)).read_to_end(&mut content)?;
    Ok(content)
}

fn lines_of(content: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(content).lines().map(cut).collect()
}

fn cut(line: &str) -> String {
    if line.len() <= LINE_BYTES_MAX {
        return line.to_owned();
    }
    let end = line.floor_char_boundary(LINE_BYTES_MAX);
    format!("{} … {} bytes cut", &line[..end], line.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_carries_what_was_printed_since_the_last_whole_attempt() {
        let directory = tempfile::tempdir().unwrap();
        let files = OutputFiles::open(directory.path().join("logs")).unwrap();
        let worker: WorkerId = "w-1-1".parse().unwrap();
        fs::write(files.path(&worker, Stream::Stdout), "of the first\n").unwrap();
        let part = Part {
            run: "r".parse().unwrap(),
            task: "a".parse().unwrap(),
            attempt: Attempt(1),
            stdout: (0, 13),
            stderr: (0, 0),
        };
        files.record(&worker, &part).unwrap();
        fs::write(
            files.path(&worker, Stream::Stderr),
            (0..20).map(|n| format!("line {n}\n")).collect::<String>(),
        )
        .unwrap();
        assert_eq!(files.parts(&worker).unwrap(), [part]);
        let lines = files.last_lines(&worker);
        assert_eq!((lines.len(), lines.last().map(String::as_str)), (10, Some("line 19")));
    }

    #[test]
    fn of_an_output_that_grows_whole_lines_are_read_and_a_line_without_end_in_chunks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("w-1-1.stdout");
        let written = "one\ntwo\nthr";
        fs::write(&path, written).unwrap();
        let read = |from, to| read_whole_lines(&path, from, to).unwrap();
        assert_eq!(read(0, written.len() as u64), (vec!["one".into(), "two".into()], 8));
        assert_eq!(read(4, 7), (vec![], 4), "not beyond what is asked for");
        assert_eq!(read(8, written.len() as u64), (vec![], 8));
        assert_eq!(read_whole_lines(&directory.path().join("nowhere"), 5, 9).unwrap(), (vec![], 5));

        fs::write(&path, vec![b'x'; 2 * CHUNK_BYTES_MAX as usize]).unwrap();
        let (lines, next) = read(0, 2 * CHUNK_BYTES_MAX);
        assert_eq!((lines.len(), next), (1, CHUNK_BYTES_MAX));
    }
}
