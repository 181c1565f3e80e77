//! A piece of address space over memory that others map too, and copies in and out of it.

use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

/// Addresses that somebody keeps mapped. It gives no reference to what lies there: bytes are copied, whoever else writes
/// them meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    base: NonNull<u8>,
    bytes: usize,
}

#[expect(unsafe_code, reason = "a raw pointer makes a type neither Send nor Sync")]
// SAFETY: what it points to belongs to no thread. Copies through it are raw, and inside of one process whoever writes
// holds a segment that nobody else has.
unsafe impl Send for Window {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    #[expect(unsafe_code, reason = "its caller must keep a promise")]
    /// # Safety
    /// `bytes` bytes from `base` are mapped, and as long as this value or a copy of it is used.
    pub(super) unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Copies in; nothing for a range that is not inside. The memory is mapped for writing.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let Some(to) = self.range(offset, bytes.len()) else { return };
        #[expect(unsafe_code, reason = "shared bytes are copied by pointer")]
        // SAFETY: the range lies inside what is mapped for writing, `bytes` is private memory elsewhere, and the producer
        // alone writes.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// A private copy; nothing for a range that is not inside.
    pub(super) fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let length = usize::try_from(length).ok()?;
        let from = self.range(offset, length)?;
        let mut bytes = Vec::with_capacity(length);
        #[expect(unsafe_code, reason = "shared bytes are copied by pointer")]
        // SAFETY: the range lies inside what is mapped, the vector has room for `length` bytes, and all are written before
        // they count. Another process may write them meanwhile: they are bytes, of which any value is one.
        unsafe {
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length);
            bytes.set_len(length);
        }
        Some(bytes)
    }

    fn range(&self, offset: u64, length: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        let is_inside = offset.checked_add(length).is_some_and(|end| end <= self.bytes);
        is_inside.then(|| self.base.as_ptr().wrapping_add(offset))
    }
}

/// A file that is mapped, until this is dropped.
#[derive(Debug)]
pub(super) struct Mapping(Window);

impl Mapping {
    /// `file` has `bytes` bytes, which are reserved and never fewer: it is sealed against that, or nobody else has it.
    pub(super) fn new(file: impl AsFd, bytes: usize, writable: bool) -> rustix::io::Result<Self> {
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        #[expect(unsafe_code, reason = "memory is shared by mapping it")]
        // SAFETY: the system chooses a fresh range of addresses, so that nothing of ours is mapped over.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, file, 0)? };
        // The system gives no null for a mapping whose place it chooses.
        let base = NonNull::new(base.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        #[expect(unsafe_code, reason = "the window's promise")]
        // SAFETY: it was mapped just now, and is unmapped when this value is dropped, which does not give the window away.
        Ok(Self(unsafe { Window::new(base, bytes) }))
    }

    pub(super) fn window(&self) -> &Window {
        &self.0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "what was mapped is unmapped")]
        // SAFETY: the range is this value's own, whole, and no pointer into it outlives a method of its window.
        let unmapped = unsafe { rustix::mm::munmap(self.0.base.as_ptr().cast(), self.0.bytes) };
        if let Err(why) = unmapped {
            tracing::error!(%why, "shared memory was not unmapped");
        }
    }
}
