//! Disks that fail on purpose, for every test that needs one: real file systems, real errors.
//!
//! ```text
//! LoopDisk     an ext4 image on a loop mount; cutting its power is ext4's own shutdown ioctl
//! FaultyDisk   a LoopDisk whose image lies on another LoopDisk: that one's power is cut, and the first is a healthy
//!              file system on a dead device: writes reach the page cache, syncs fail with EIO
//! ```
//!
//! Both need root and loop devices; whoever has none is told why, and says so in its totals. A disk that was not
//! switched on again is unmounted when it is dropped; one that is still in use then stays, and the test has failed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::ioctl::{Setter, ioctl, opcode};

/// `EXT4_IOC_SHUTDOWN`, 0x8004587D.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: the file system's own journal is dropped as well.
const NO_LOG_FLUSH: u32 = 2;
const IMAGE_BYTES: u64 = 64 * 1024 * 1024;
/// Room for an image on it, and for its own journal.
const OUTER_IMAGE_BYTES: u64 = 2 * IMAGE_BYTES;
const UNMOUNT: Duration = Duration::from_secs(5);

/// A file system of its own whose power can be cut: whatever was not synced is gone then, and every later write and
/// sync fails.
#[derive(Debug)]
pub struct LoopDisk {
    /// Holds the image, unless that lies on another disk.
    directory: PathBuf,
    mounted: bool,
    _own: Option<tempfile::TempDir>,
}

impl LoopDisk {
    /// # Errors
    /// Why this machine has none.
    pub fn new() -> io::Result<Self> {
        let own = tempfile::tempdir()?;
        let directory = own.path().to_path_buf();
        Self::make(directory, IMAGE_BYTES, Some(own))
    }

    fn make(directory: PathBuf, image_bytes: u64, own: Option<tempfile::TempDir>) -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(io::Error::other("mounting needs root"));
        }
        let mut disk = Self { directory, mounted: false, _own: own };
        File::create(disk.image())?.set_len(image_bytes)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(disk.image()))?;
        std::fs::create_dir(disk.path())?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.join("image")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("mount")
    }

    fn mount(&mut self) -> io::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> io::Result<()> {
        unmount(&self.path())?;
        self.mounted = false;
        Ok(())
    }

    /// # Errors
    /// If the file system does not know the ioctl.
    pub fn cut_power(&self) -> io::Result<()> {
        let root = File::open(self.path())?;
        // SAFETY: EXT4_IOC_SHUTDOWN reads one u32 through the pointer that `Setter` passes, and writes nothing.
        #[expect(unsafe_code, reason = "there is no safe wrapper of this ioctl")]
        let done = unsafe { ioctl(root.as_fd(), Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) };
        Ok(done?)
    }

    /// Switches it on again: what is found now is what the disk held.
    ///
    /// # Errors
    /// If it is still in use or cannot be mounted.
    pub fn power_on(&mut self) -> io::Result<()> {
        self.unmount()?;
        self.mount()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.mounted {
            // A disk that is still in use stays mounted; the test has failed already then.
            let _ = self.unmount();
        }
    }
}

/// A disk that can also die under a file system that goes on.
#[derive(Debug)]
pub struct FaultyDisk {
    /// Dropped first: it lies on the other.
    inner: LoopDisk,
    outer: LoopDisk,
}

impl FaultyDisk {
    /// # Errors
    /// Why this machine has none.
    pub fn new() -> io::Result<Self> {
        let own = tempfile::tempdir()?;
        let directory = own.path().to_path_buf();
        let outer = LoopDisk::make(directory, OUTER_IMAGE_BYTES, Some(own))?;
        let inner = LoopDisk::make(outer.path(), IMAGE_BYTES, None)?;
        Ok(Self { inner, outer })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.inner.path()
    }

    /// As [`LoopDisk::cut_power`].
    ///
    /// # Errors
    /// As there.
    pub fn cut_power(&self) -> io::Result<()> {
        self.inner.cut_power()
    }

    /// From now on writes are taken and syncs fail.
    ///
    /// # Errors
    /// As [`LoopDisk::cut_power`].
    pub fn fail(&self) -> io::Result<()> {
        self.outer.cut_power()
    }

    /// Switches it on again, or mends it.
    ///
    /// # Errors
    /// As [`LoopDisk::power_on`].
    pub fn power_on(&mut self) -> io::Result<()> {
        self.inner.unmount()?;
        self.outer.power_on()?;
        self.inner.mount()
    }
}

/// A process that another thread is just starting has our descriptors until it executes its program.
fn unmount(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + UNMOUNT;
    loop {
        match run(Command::new("umount").arg(path)) {
            Err(why) if why.to_string().contains("busy") && Instant::now() < deadline => {
                std::thread::yield_now()
            }
            done => return done,
        }
    }
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let why = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(why) => why.to_string(),
    };
    Err(io::Error::other(format!("{command:?}: {why}")))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_dead_device_takes_writes_and_fails_syncs_and_keeps_what_was_synced() {
        let mut disk = match FaultyDisk::new() {
            Ok(disk) => disk,
            Err(why) => return println!("SKIPPED a dead device: {why}"),
        };
        let path = disk.path().join("file");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        disk.fail().unwrap();
        file.write_all(b" and not").unwrap();
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
        drop(file);
        disk.power_on().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"synced");
    }
}
