//! Where a WAL is damaged: to say more than that records are missing.
//!
//! SQLite reads a WAL up to the first frame that does not match its checksum and takes that for its end. It is the end
//! where the frames behind it are of an earlier round of the file, or nothing; it is damage where one behind it belongs
//! to this round. The format is SQLite's own (<https://sqlite.org/fileformat2.html#the_write_ahead_log>):
//!
//! ```text
//! header  0 magic · 8 page size · 16 salts (8 bytes) · 24 checksum of bytes 0 to 23
//! frame   0 page · 4 pages after a commit · 8 salts · 16 checksum, going on from the frame before · 24 the page
//! ```

use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
/// Its lowest bit says that checksums are over big-endian words.
const MAGIC: u32 = 0x377f_0682;

/// The byte at which the first damaged part begins; `None` where nothing speaks for damage.
pub(crate) fn first_damage(path: &Path) -> Option<u64> {
    damage_in(&std::fs::read(path).ok()?)
}

fn damage_in(wal: &[u8]) -> Option<u64> {
    let header = wal.first_chunk::<HEADER_BYTES>()?;
    let magic = word(header, 0, true)?;
    let big_endian = magic & 1 == 1;
    let mut sum = checksum((0, 0), &header[..24], big_endian);
    if magic & !1 != MAGIC || Some(sum) != stored(header, 24) {
        return Some(0);
    }
    let frame_bytes = FRAME_HEADER_BYTES + usize::try_from(word(header, 8, true)?).ok()?;
    let is_ours = |frame: &[u8]| frame.get(8..16) == Some(&header[16..24]);
    let frames = || wal[HEADER_BYTES..].chunks_exact(frame_bytes);
    let last = frames().rposition(is_ours)?;
    for (at, frame) in frames().take(last + 1).enumerate() {
        sum = checksum(sum, &frame[..8], big_endian);
        sum = checksum(sum, &frame[FRAME_HEADER_BYTES..], big_endian);
        if !is_ours(frame) || Some(sum) != stored(frame, 16) {
            return Some((HEADER_BYTES + at * frame_bytes) as u64);
        }
    }
    None
}

fn checksum((mut a, mut b): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let read = |at| word(pair, at, big_endian).unwrap_or(0);
        a = a.wrapping_add(read(0)).wrapping_add(b);
        b = b.wrapping_add(read(4)).wrapping_add(a);
    }
    (a, b)
}

fn stored(bytes: &[u8], at: usize) -> Option<(u32, u32)> {
    Some((word(bytes, at, true)?, word(bytes, at + 4, true)?))
}

fn word(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    let word = *bytes.get(at..)?.first_chunk()?;
    Some(if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) })
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;
    use rusqlite::config::DbConfig;

    use super::*;

    /// A WAL of SQLite's own, with something behind its end.
    fn wal() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.db");
        let connection = Connection::open(&path).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
        connection
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)")
            .unwrap();
        let mut wal = std::fs::read(directory.path().join("x.db-wal")).unwrap();
        wal.extend([0; 5000]);
        wal
    }

    #[test]
    fn a_whole_wal_has_no_damage_and_neither_has_one_that_was_cut() {
        let wal = wal();
        assert_eq!(damage_in(&wal), None);
        assert_eq!(damage_in(&wal[..32 + 2 * 4120]), None);
        assert_eq!(damage_in(&[]), None);
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_frame() {
        let whole = wal();
        // The last frame can look like the end, if the bit is in its salts.
        let frames = (whole.len() - 5000 - 32) / 4120;
        for frame in 0..frames - 1 {
            let begin = 32 + frame * 4120;
            for offset in [3, 9, 17, 24, 4000] {
                let mut wal = whole.clone();
                wal[begin + offset] ^= 4;
                assert_eq!(damage_in(&wal), Some(begin as u64), "frame {frame}, byte {offset}");
            }
        }
        let mut wal = whole.clone();
        wal[17] ^= 4;
        assert_eq!(damage_in(&wal), Some(0));
    }
}
