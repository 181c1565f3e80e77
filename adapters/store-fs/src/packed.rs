//! Objects that are kept compressed: chunks of the raw bytes, each a zstd frame of its own, so that any range is read by
//! decompressing the chunks that it lies in.
//!
//! ```text
//! magic 16 │ raw length u64 │ chunk length u32 │ chunks n u32 │ frame 0 … frame n-1 │ n+1 offsets u64 │ sum 32
//! ```
//!
//! Numbers are little-endian. The sum is the BLAKE3 of everything before it.
//!
//! The name of an object stays the BLAKE3 of its raw bytes, and its file stays where it is: an object is packed if it
//! begins with [`MAGIC`]. Content that happens to begin so is packed too, whatever it saves; so the magic never lies.
//! What a frame decompresses to is no longer than its chunk, whatever it claims.
//!
//! Invariants: (1) Whoever goes through all of it ([`Packed::each`]) has compared every byte of the file with the sum: it
//! covers what zstd ignores too, so that no change of the stored form goes unseen, even one that leaves the raw bytes as
//! they were. (2) A range that is read later is checked frame by frame, by the checksum that zstd puts into each.
//!
//! What it costs, of 64 MiB on two busy cores: lines of a log are sealed at 490 MiB/s (1260 unpacked), opened and read at
//! 340 (1000), and take 3 %; noise is looked at for one chunk and stays as it is, as fast as without.

use std::fs::File;
use std::os::unix::fs::FileExt;

use eclosion_schemas::Digest;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::CParameter;

use crate::failure::Failure;
use crate::files::digest_of;

const MAGIC: [u8; 16] = *b"\x89eclosion/zst\r\n\x1a";
const HEAD_BYTES: usize = 32;
const SUM_BYTES: usize = 32;
const OFFSET_BYTES: usize = 8;
/// Raw bytes of a chunk: what is decompressed at least for one byte of it.
const CHUNK_BYTES: u32 = 1 << 20;
/// Less than this never pays: a file takes a block of the disk anyway.
const SMALLEST_BYTES: u64 = 8 * 1024;
/// Of the first chunk, at least this part must be saved.
const SAVES_PERCENT: usize = 10;
/// Several hundred MB a second, and nearly what higher levels save of tables and models.
const LEVEL: i32 = 1;

/// Whether content must be packed, because it begins as what is packed does.
pub(crate) fn begins_as_packed(file: &File) -> Result<bool, Failure> {
    let mut head = [0; MAGIC.len()];
    Ok(read_up_to(file, &mut head, 0)? == MAGIC.len() && head == MAGIC)
}

/// Whether the first chunk becomes enough smaller.
pub(crate) fn pays(file: &File, length: u64) -> Result<bool, Failure> {
    if length < SMALLEST_BYTES {
        return Ok(false);
    }
    let mut sample = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(CHUNK_BYTES as usize)];
    let read = read_up_to(file, &mut sample, 0)?;
    sample.truncate(read);
    let packed = compressor()?.compress(&sample).map_err(io("compressing an artifact"))?;
    Ok(packed.len() <= sample.len() / 100 * (100 - SAVES_PERCENT))
}

/// Writes `raw` packed into `out`, which is empty, and gives the name and the length of the raw bytes. One pass: what is
/// named is what was packed.
pub(crate) fn pack(raw: &File, out: &File) -> Result<(Digest, u64), Failure> {
    let length = raw.metadata().map_err(io("reading an artifact"))?.len();
    let count = u32::try_from(length.div_ceil(u64::from(CHUNK_BYTES))).map_err(|_| Failure::TooLong)?;
    let mut compressor = compressor()?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let mut packing = Packing { out, at: 0, sum: blake3::Hasher::new() };
    packing.write(&head(length, count))?;
    let mut offsets = vec![packing.at];
    let mut done = 0;
    for _ in 0..count {
        let read = read_up_to(raw, &mut chunk, done)?;
        hasher.update(&chunk[..read]);
        done += read as u64;
        packing.write(&compressor.compress(&chunk[..read]).map_err(io("compressing an artifact"))?)?;
        offsets.push(packing.at);
    }
    if done != length {
        return Err(Failure::Changed);
    }
    packing.write(&table(&offsets))?;
    packing.finish()?;
    Ok((digest_of(&hasher)?, length))
}

/// Written from the beginning to the end, and summed on the way.
struct Packing<'a> {
    out: &'a File,
    at: u64,
    sum: blake3::Hasher,
}

impl Packing<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all_at(bytes, self.at).map_err(io("writing an artifact"))?;
        self.sum.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<(), Failure> {
        let sum = self.sum.finalize();
        self.out.write_all_at(sum.as_bytes(), self.at).map_err(io("writing an artifact"))
    }
}

fn head(length: u64, count: u32) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend(MAGIC);
    head.extend(length.to_le_bytes());
    head.extend(CHUNK_BYTES.to_le_bytes());
    head.extend(count.to_le_bytes());
    head
}

fn table(offsets: &[u64]) -> Vec<u8> {
    offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect()
}

/// A packed object, opened: what its head and its table say, checked against each other.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    file: &'a File,
    head: [u8; HEAD_BYTES],
    length: u64,
    chunk_bytes: u64,
    offsets: Vec<u64>,
    sum: blake3::Hash,
}

impl<'a> Packed<'a> {
    /// None for an object that is its raw bytes.
    pub(crate) fn of(file: &'a File) -> Result<Option<Self>, Failure> {
        let mut head = [0; HEAD_BYTES];
        let read = read_up_to(file, &mut head, 0)?;
        if read < MAGIC.len() || head[..MAGIC.len()] != MAGIC {
            return Ok(None);
        }
        let (length, chunk, count) = fields(&head).filter(|_| read == HEAD_BYTES).ok_or(Failure::Broken)?;
        let file_bytes = file.metadata().map_err(io("reading an artifact"))?.len();
        let tail_bytes = (u64::from(count) + 1) * OFFSET_BYTES as u64 + SUM_BYTES as u64;
        let whole = (1..=CHUNK_BYTES).contains(&chunk)
            && length.div_ceil(u64::from(chunk)) == u64::from(count)
            && tail_bytes + HEAD_BYTES as u64 <= file_bytes;
        if !whole {
            return Err(Failure::Broken);
        }
        let mut tail = vec![0; usize::try_from(tail_bytes).map_err(|_| Failure::Broken)?];
        let end = file_bytes - tail_bytes;
        file.read_exact_at(&mut tail, end).map_err(io("reading an artifact"))?;
        let (table, sum) = tail.split_last_chunk::<SUM_BYTES>().ok_or(Failure::Broken)?;
        let (table, _) = table.as_chunks::<OFFSET_BYTES>();
        let offsets: Vec<u64> = table.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let in_order = offsets.first() == Some(&(HEAD_BYTES as u64))
            && offsets.last() == Some(&end)
            && offsets.windows(2).all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= frame_bytes_max());
        if !in_order {
            return Err(Failure::Broken);
        }
        let sum = blake3::Hash::from_bytes(*sum);
        Ok(Some(Self { file, head, length, chunk_bytes: u64::from(chunk), offsets, sum }))
    }

    /// Of the raw bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// At most `bytes` raw bytes from `offset` on; none at the end.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, Failure> {
        let end = offset.saturating_add(bytes as u64).min(self.length);
        let mut found = Vec::with_capacity(usize::try_from(end.saturating_sub(offset)).unwrap_or(0));
        let mut unpacker = unpacker()?;
        let mut at = offset;
        while at < end {
            let index = at / self.chunk_bytes;
            let chunk = self.chunk(&mut unpacker, index, &self.frame(index)?)?;
            let from = usize::try_from(at % self.chunk_bytes).map_err(|_| Failure::Broken)?;
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = chunk.get(from..).ok_or(Failure::Broken)?;
            let part = &part[..part.len().min(wanted)];
            found.extend_from_slice(part);
            at += part.len() as u64;
        }
        Ok(found)
    }

    /// Gives every chunk of the raw bytes, in order, with its offset; and the name of all of them. What was given counts
    /// only once this returns: then the whole file is as it was written.
    pub(crate) fn each(
        &self,
        mut visit: impl FnMut(&[u8], u64) -> Result<(), Failure>,
    ) -> Result<Digest, Failure> {
        let (mut hasher, mut sum) = (blake3::Hasher::new(), blake3::Hasher::new());
        let mut unpacker = unpacker()?;
        sum.update(&self.head);
        for index in 0..self.offsets.len() as u64 - 1 {
            let frame = self.frame(index)?;
            sum.update(&frame);
            let chunk = self.chunk(&mut unpacker, index, &frame)?;
            hasher.update(&chunk);
            visit(&chunk, index * self.chunk_bytes)?;
        }
        sum.update(&table(&self.offsets));
        if sum.finalize() == self.sum { digest_of(&hasher) } else { Err(Failure::Broken) }
    }

    fn frame(&self, index: u64) -> Result<Vec<u8>, Failure> {
        let at = usize::try_from(index).map_err(|_| Failure::Broken)?;
        let (Some(begin), Some(end)) = (self.offsets.get(at), self.offsets.get(at + 1)) else {
            return Err(Failure::Broken);
        };
        let mut frame = vec![0; usize::try_from(end - begin).map_err(|_| Failure::Broken)?];
        self.file.read_exact_at(&mut frame, *begin).map_err(io("reading an artifact"))?;
        Ok(frame)
    }

    fn chunk(&self, unpacker: &mut Decompressor<'_>, index: u64, frame: &[u8]) -> Result<Vec<u8>, Failure> {
        let wanted = (self.length - index * self.chunk_bytes).min(self.chunk_bytes);
        let wanted = usize::try_from(wanted).map_err(|_| Failure::Broken)?;
        let chunk = unpacker.decompress(frame, wanted).map_err(|_| Failure::Broken)?;
        if chunk.len() == wanted { Ok(chunk) } else { Err(Failure::Broken) }
    }
}

fn fields(head: &[u8; HEAD_BYTES]) -> Option<(u64, u32, u32)> {
    let length = u64::from_le_bytes(head.get(16..24)?.try_into().ok()?);
    let chunk = u32::from_le_bytes(head.get(24..28)?.try_into().ok()?);
    let count = u32::from_le_bytes(head.get(28..32)?.try_into().ok()?);
    Some((length, chunk, count))
}

fn compressor() -> Result<Compressor<'static>, Failure> {
    let mut compressor = Compressor::new(LEVEL).map_err(io("compressing an artifact"))?;
    let checked = compressor.set_parameter(CParameter::ChecksumFlag(true));
    checked.map_err(io("compressing an artifact"))?;
    Ok(compressor)
}

fn unpacker() -> Result<Decompressor<'static>, Failure> {
    Decompressor::new().map_err(io("decompressing an artifact"))
}

/// What does not become smaller becomes a little longer.
fn frame_bytes_max() -> u64 {
    zstd::zstd_safe::compress_bound(CHUNK_BYTES as usize) as u64 + 64
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Failure {
    move |why| Failure::Io { action, why }
}

/// As many as there are.
fn read_up_to(file: &File, into: &mut [u8], offset: u64) -> Result<usize, Failure> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => return Err(io("reading an artifact")(why)),
        }
    }
    Ok(done)
}
