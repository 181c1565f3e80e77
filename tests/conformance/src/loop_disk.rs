//! A file system of its own whose power can be cut: an ext4 image on a loop mount, and ext4's shutdown ioctl, which
//! drops whatever was not synced and lets every later write and sync fail. Needs root and a loop device.

use std::fs::File;
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

#[derive(Debug)]
pub struct LoopDisk {
    directory: tempfile::TempDir,
    mounted: bool,
}

impl LoopDisk {
    /// `None` where this cannot be done; says why on standard output, in a line that a runner can count.
    #[must_use]
    pub fn new(purpose: &str) -> Option<Self> {
        let made = Self::make();
        if let Err(why) = &made {
            #[expect(clippy::print_stdout, reason = "a skipped test must be seen")]
            {
                println!("SKIPPED {purpose}: {why}");
            }
        }
        made.ok()
    }

    fn make() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".into());
        }
        let directory = tempfile::tempdir().map_err(|why| why.to_string())?;
        let mut disk = Self { directory, mounted: false };
        let image = File::create(disk.image()).and_then(|file| file.set_len(IMAGE_BYTES));
        image.map_err(|why| why.to_string())?;
        run(Command::new("mkfs.ext4").arg("-q").arg(disk.image()))?;
        std::fs::create_dir(disk.path()).map_err(|why| why.to_string())?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        Ok(())
    }

    /// # Panics
    /// If the file system does not know the ioctl.
    pub fn cut_power(&self) {
        let root = File::open(self.path()).unwrap();
        shut_down(&root);
    }

    /// Switches it on again: what is found now is what the disk held.
    ///
    /// # Panics
    /// If it is still in use or cannot be mounted.
    pub fn power_on(&mut self) {
        unmount(&self.path()).unwrap();
        self.mounted = false;
        self.mount().unwrap();
    }
}

fn shut_down(root: &File) {
    // SAFETY: EXT4_IOC_SHUTDOWN reads one u32 through the pointer that `Setter` passes, and writes nothing.
    #[expect(unsafe_code, reason = "there is no safe wrapper of this ioctl")]
    let done = unsafe { ioctl(root.as_fd(), Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) };
    done.unwrap();
}

/// A process that another thread is just starting has our descriptors until it executes its program.
fn unmount(path: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match run(Command::new("umount").arg(path)) {
            Err(why) if why.contains("busy") && Instant::now() < deadline => std::thread::yield_now(),
            done => return done,
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|why| format!("{command:?}: {why}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if self.mounted {
            // A disk that is still in use stays mounted; the test has failed already then.
            let _ = unmount(&self.path());
        }
    }
}
