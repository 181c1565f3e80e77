//! One bit of the WAL is not what it was.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::account::Told;
use crate::failure::{Failure, ensure};
use crate::leftovers;
use crate::round::Round;
use crate::seed::Seed;

/// As SQLite writes it: a header, then frames of a header and a page.
const HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 24 + 4096;
/// A kernel that finds its data corrupt ends with this.
const DATA_CORRUPT: i32 = 10;
/// A kernel that was refused leaves no process.
const ENDING: Duration = Duration::from_secs(5);

impl Round {
    /// Refused with the file, the place and the way out, as often as it is tried; and the way out works.
    pub(crate) async fn flip_bit(&mut self, dice: &mut Seed) -> Result<(), Failure> {
        self.kernel.kill_all().await?;
        self.account.kills.kernel += 1;
        let at = flip(&self.kernel.journal().join("journal.db-wal"), dice)?;
        self.is_refused_up(at).await?;
        self.is_refused_up(at).await?;
        // From now on what was told may be forgotten: that is what is accepted.
        self.account.told = Told::default();
        self.account.everything_died();
        let up = self.kernel.say(&["up", "--accept-loss"]).await?;
        ensure(up.status.success(), || format!("up --accept-loss: {up:?}"))?;
        self.kernel.kill_all().await?;
        self.account.kills.kernel += 1;
        self.account.kills.keeper += 1;
        // It was mended: nothing needs to be accepted any more.
        self.client = self.kernel.start().await?;
        Ok(())
    }

    async fn is_refused_up(&self, at: usize) -> Result<(), Failure> {
        let up = self.kernel.say(&["up", "--json"]).await?;
        let error: Value = serde_json::from_slice(&up.stdout)?;
        let (message, help) =
            (error["message"].as_str().unwrap_or_default(), error["help"].as_str().unwrap_or_default());
        let named = message.contains(&format!("journal.db-wal is damaged at byte {at}"));
        let way_out = help.contains("eclosion up --accept-loss") && help.contains("damaged-");
        let refused = up.status.code() == Some(DATA_CORRUPT) && error["code"] == "data_loss";
        ensure(refused && named && way_out, || format!("up on a damaged WAL: {}, {error}", up.status))?;
        leftovers::ended_within(self.kernel.directory(), ENDING).map_err(Failure::new)
    }
}

/// Flips a bit behind the beginning of the run and before the end of what is in use; gives the frame's place.
fn flip(wal: &Path, dice: &mut Seed) -> Result<usize, Failure> {
    let mut bytes = std::fs::read(wal)?;
    let salts = bytes[16..24].to_vec();
    let frames = bytes[HEADER_BYTES..].chunks_exact(FRAME_BYTES);
    let used = frames.take_while(|frame| frame[8..16] == salts).count();
    let frame = used * 6 / 10 + dice.below(used as u64 / 4) as usize;
    let begin = HEADER_BYTES + frame * FRAME_BYTES;
    let offset = begin + 24 + dice.below(4096) as usize;
    bytes[offset] ^= 1 << dice.below(8);
    OpenOptions::new().write(true).open(wal)?.write_all_at(&bytes[offset..=offset], offset as u64)?;
    Ok(begin)
}
