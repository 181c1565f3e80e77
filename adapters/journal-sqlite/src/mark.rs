//! The mark: how far the journal is known to be on the disk.
//!
//! Two slots of 64 bytes, 4096 bytes apart, written in turn and in place. A disk writes a sector whole or not at all; if
//! it keeps one badly, the other slot is one mark older. The file never changes its size, so `fdatasync` has no metadata
//! to write.
//!
//! ```text
//! 0  magic "ECLMARK1" · 8 counter u64 · 16 seq u64 · 24 epoch u32 · 28 zero u32 · 32 chain 16 bytes
//! 48 checksum: the first 16 bytes of BLAKE3 over bytes 0 to 47            integers are big-endian
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use eclosion_schemas::{Epoch, Seq};

use crate::Position;
use crate::error::{Damage, Failure, io};

const MAGIC: &[u8; 8] = b"ECLMARK1";
const SLOT_BYTES: usize = 64;
const SUMMED_BYTES: usize = 48;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_BYTES: u64 = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) counter: u64,
    pub(crate) last: Position,
    pub(crate) epoch: Epoch,
}

impl Mark {
    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&self.counter.to_be_bytes());
        slot[16..24].copy_from_slice(&self.last.seq.0.to_be_bytes());
        slot[24..28].copy_from_slice(&self.epoch.0.to_be_bytes());
        slot[32..48].copy_from_slice(&self.last.chain);
        let sum = blake3::hash(&slot[..SUMMED_BYTES]);
        slot[SUMMED_BYTES..].copy_from_slice(&sum.as_bytes()[..SLOT_BYTES - SUMMED_BYTES]);
        slot
    }

    fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Self> {
        let sum = blake3::hash(&slot[..SUMMED_BYTES]);
        if slot[..8] != *MAGIC || slot[SUMMED_BYTES..] != sum.as_bytes()[..SLOT_BYTES - SUMMED_BYTES] {
            return None;
        }
        let number = |from: usize| slot.get(from..from + 8)?.try_into().ok().map(u64::from_be_bytes);
        Some(Self {
            counter: number(8)?,
            last: Position { seq: Seq(number(16)?), chain: slot.get(32..48)?.try_into().ok()? },
            epoch: Epoch(slot.get(24..28)?.try_into().ok().map(u32::from_be_bytes)?),
        })
    }
}

#[derive(Debug)]
pub(crate) struct MarkFile {
    file: File,
    path: PathBuf,
    /// Of the newest slot there is.
    counter: u64,
}

impl MarkFile {
    /// The newest whole slot; `None` if there is no file, or if its first slot was never finished.
    pub(crate) fn read(path: &Path) -> Result<Option<Mark>, Failure> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(why) => return Err(io("open", path)(why)),
        };
        newest(&file, path)
    }

    /// Opens it for writing; makes it if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(io("open", path))?;
        if file.metadata().map_err(io("read", path))?.len() < FILE_BYTES {
            file.write_all_at(&[0; FILE_BYTES as usize], 0).map_err(io("write", path))?;
            file.sync_all().map_err(io("sync", path))?;
        }
        let counter = newest(&file, path)?.map_or(0, |mark| mark.counter);
        Ok(Self { file, path: path.to_owned(), counter })
    }

    /// Raises the mark over the older slot. From now on it survives the death of this process.
    pub(crate) fn write(&mut self, last: Position, epoch: Epoch) -> Result<(), Failure> {
        let counter = self.counter + 1;
        let slot = Mark { counter, last, epoch }.encode();
        let offset = SLOT_OFFSETS[(counter % 2) as usize];
        self.file.write_all_at(&slot, offset).map_err(io("write", &self.path))?;
        self.counter = counter;
        Ok(())
    }

    /// Makes what was written survive a power cut.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(io("sync", &self.path))
    }

    /// Another handle of the same file, to sync it from another thread.
    pub(crate) fn try_clone(&self) -> Result<Self, Failure> {
        let file = self.file.try_clone().map_err(io("open", &self.path))?;
        Ok(Self { file, path: self.path.clone(), counter: self.counter })
    }
}

/// Raises the mark, durably.
pub(crate) fn write_synced(path: &Path, last: Position, epoch: Epoch) -> Result<(), Failure> {
    let mut file = MarkFile::open(path)?;
    file.write(last, epoch)?;
    file.sync()
}

fn newest(file: &File, path: &Path) -> Result<Option<Mark>, Failure> {
    let mut found: Option<Mark> = None;
    let mut written = 0;
    for offset in SLOT_OFFSETS {
        let mut slot = [0; SLOT_BYTES];
        match file.read_exact_at(&mut slot, offset) {
            Ok(()) => written += usize::from(slot != [0; SLOT_BYTES]),
            Err(why) if why.kind() == std::io::ErrorKind::UnexpectedEof => {}
            Err(why) => return Err(io("read", path)(why)),
        }
        if let Some(mark) = Mark::decode(&slot)
            && found.is_none_or(|best| best.counter < mark.counter)
        {
            found = Some(mark);
        }
    }
    // One slot alone is that of the first mark, which promised nothing before it was whole.
    if found.is_none() && written == SLOT_OFFSETS.len() {
        return Err(Damage::corrupt(Seq(0), "neither slot of journal.mark is whole").into());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seq: u64) -> Position {
        Position { seq: Seq(seq), chain: [seq as u8; 16] }
    }

    #[test]
    fn a_torn_slot_leaves_the_mark_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        let mut file = MarkFile::open(&path).unwrap();
        for seq in [7, 8] {
            file.write(at(seq), Epoch(3)).unwrap();
        }
        assert_eq!(MarkFile::read(&path).unwrap().unwrap().last, at(8));
        for bit in 0..SLOT_BYTES * 8 {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(MarkFile::read(&path).unwrap().unwrap().last, at(7), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bytes).unwrap();
        }
    }

    #[test]
    fn refuses_to_guess_when_neither_slot_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        for seq in [1, 2] {
            MarkFile::open(&path).unwrap().write(at(seq), Epoch(1)).unwrap();
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        bytes[4096 + 20] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(MarkFile::read(&path).is_err());
    }

    #[test]
    fn a_file_of_zeros_promises_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("mark");
        drop(MarkFile::open(&path).unwrap());
        assert_eq!(MarkFile::read(&path).unwrap(), None);
    }
}
