//! The backing for who cannot take descriptors: shared memory under a name, `/ecl.TAG.EPOCH.NONCE`.
//!
//! The tag is the kernel's state directory's, the epoch its life's, and the nonce nobody can guess. Dropping it removes the
//! name. A kernel that is killed leaves its names behind; the next one holds the lock of the same directory, so that
//! whatever has its tag and an earlier epoch is nobody's, and [`Named::sweep`] removes it, once survivors were taken over
//! that may still read. What no next one of the same directory ever sweeps, any kernel of the user may [`claim`]: the
//! owner has the file locked as long as it lives.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::NonNull;

use eclosion_schemas::{Epoch, Error};
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use shared_memory::{Shmem, ShmemConf};

use super::mapping::Window;
use super::{Backing, Reader, Written, unavailable};

/// Where Linux shows them as files.
pub const FOLDER: &str = "/dev/shm";
/// The shortest limit for a name is 31 bytes, on macOS.
const TAG_BYTES_MAX: usize = 8;

/// The producer's end.
#[derive(Debug)]
pub struct Named {
    memory: Memory,
    name: String,
    /// Its lock says that the owner lives.
    _owned: OwnedFd,
}

/// A reader's end: it has the memory as long as it lives, whatever becomes of the name.
#[derive(Debug)]
pub struct NamedReader(Memory);

/// What is mapped, and the window to it.
struct Memory {
    window: Window,
    /// Unmaps when it is dropped; and its owner removes the name.
    _mapped: Shmem,
}

#[expect(unsafe_code, reason = "the crate's mapping holds a raw pointer")]
// SAFETY: the mapping belongs to no thread, it is not touched but through the window, and what its drop does (munmap,
// shm_unlink, close) may be done on any.
unsafe impl Send for Memory {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; by reference nothing of it can be reached.
unsafe impl Sync for Memory {}

impl Memory {
    fn new(mapped: Shmem) -> Result<Self, Error> {
        let base = NonNull::new(mapped.as_ptr()).ok_or_else(|| unavailable("map it", &"no address"))?;
        #[expect(unsafe_code, reason = "the window's promise")]
        // SAFETY: the crate has mapped so many bytes there, and unmaps them when `mapped` is dropped, with the window.
        let window = unsafe { Window::new(base, mapped.len()) };
        Ok(Self { window, _mapped: mapped })
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.window.fmt(f)
    }
}

impl Named {
    /// `bytes`, reserved, for this user alone.
    ///
    /// # Errors
    /// `exhausted` when the memory is not there, `invalid` for a tag that makes no name.
    pub fn new(tag: &str, epoch: Epoch, bytes: u64) -> Result<Self, Error> {
        let name = format!("{}{}.{}", prefix(tag)?, epoch.0, nonce());
        let length = usize::try_from(bytes).map_err(|why| unavailable("map it", &why))?;
        let conf = ShmemConf::new().os_id(format!("/{name}")).size(length);
        let mapped = conf.create().map_err(|why| unavailable(&format!("make {name}"), &why))?;
        // What is mapped now is removed again if this fails, before it was touched.
        let owned = reserve(&name, bytes)?;
        Ok(Self { memory: Memory::new(mapped)?, name, _owned: owned })
    }

    /// What others are told.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Removes what lives before `epoch` have left. Returns how many there were.
    ///
    /// # Errors
    /// `invalid` for a tag that makes no name.
    pub fn sweep(tag: &str, epoch: Epoch) -> Result<usize, Error> {
        let prefix = prefix(tag)?;
        // Where names are no files, nothing is found.
        let Ok(entries) = std::fs::read_dir(FOLDER) else { return Ok(0) };
        let is_left = |name: &str| {
            let rest = name.strip_prefix(&prefix).and_then(|rest| rest.split_once('.'));
            rest.and_then(|(life, _)| life.parse::<u32>().ok()).is_some_and(|life| life < epoch.0)
        };
        let left = entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_left));
        Ok(left.filter(|entry| std::fs::remove_file(entry.path()).is_ok()).count())
    }
}

impl NamedReader {
    /// # Errors
    /// `arena.gone` for a name that nobody has.
    pub fn new(name: &str) -> Result<Self, Error> {
        let open = || ShmemConf::new().os_id(format!("/{name}")).open();
        let is_ours = name.starts_with("ecl.") && !name.contains('/');
        let mapped = is_ours.then(open).and_then(Result::ok).ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            Error::not_found("arena.gone", format!("there is no shared memory {shown}"))
        })?;
        Memory::new(mapped).map(Self)
    }
}

impl Backing for Named {
    fn bytes(&self) -> u64 {
        self.memory.window.bytes() as u64
    }

    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.memory.window.read(offset, length)
    }
}

impl Written for Named {
    fn write(&self, offset: u64, bytes: &[u8]) {
        self.memory.window.write(offset, bytes);
    }
}

impl Reader for NamedReader {
    fn copy(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        self.0.window.read(offset, length)
    }

    fn address(&self) -> usize {
        self.0.window.address()
    }
}

/// Thirty-two bits of the system's randomness: the name stays within what every system allows.
fn nonce() -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    format!("{:08x}", random & 0xffff_ffff)
}

fn prefix(tag: &str) -> Result<String, Error> {
    let is_plain = tag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match is_plain && (1..=TAG_BYTES_MAX).contains(&tag.len()) {
        true => Ok(format!("ecl.{tag}.")),
        false => Err(Error::invalid("arena.tag", format!("{tag:?} is no tag of 1 to 8 letters and digits"))),
    }
}

/// Whether an entry of [`FOLDER`] is shared memory of a kernel of this user, alive or not.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    let is_name = name.strip_prefix("ecl.").is_some_and(|rest| rest.split('.').count() == 3);
    let owner = || std::fs::symlink_metadata(Path::new(FOLDER).join(name)).ok().map(|found| found.uid());
    is_name && owner() == Some(rustix::process::getuid().as_raw())
}

/// A lock on what nobody owns any more.
///
/// # Errors
/// That somebody does, in words.
pub fn claim(name: &str) -> Result<File, String> {
    let file = File::open(Path::new(FOLDER).join(name)).map_err(|why| why.to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => Err("its kernel is alive".into()),
    }
}

/// The crate only sets the size: what is not there would be found out by SIGBUS. Locked until it is closed.
fn reserve(name: &str, bytes: u64) -> Result<OwnedFd, Error> {
    let file: OwnedFd =
        rustix::fs::open(format!("{FOLDER}/{name}"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|why| unavailable("find it", &why))?;
    // Whoever else has it locked only looks whether somebody owns it.
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|why| unavailable("lock it", &why))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
        .map_err(|why| unavailable(&format!("reserve {bytes} bytes"), &why))?;
    Ok(file)
}
