//! What the stale manager needs of the outside world: things on disk that can be looked at and moved away, and the
//! rows that name them. Implemented over files, each kind where it lies, and by simulated twins.
//!
//! Calls block for as long as the disk does; they are made on blocking threads. Each may come twice: an implementer
//! treats what is done already as done.

use std::collections::BTreeMap;
use std::fmt::Debug;

use eclosion_schemas::events::{GcErased, Moved};
use eclosion_schemas::ops::gc::ItemKind;
use eclosion_schemas::{Digest, Error, ItemId, RunId, Seq};

use crate::survey::{Disk, Found, Recorded};

/// The things of one kind.
pub trait Stock: Send + Sync + Debug + 'static {
    fn kind(&self) -> ItemKind;

    /// Everything there is, but what is in the trash.
    ///
    /// # Errors
    /// Nothing of this kind is collected then.
    fn survey(&self) -> Result<Vec<Found>, Error>;

    /// Moves an item into the trash of its file system, under the name `place`, in one rename; durable when it returns.
    /// `token` is that of the survey: another thing of the same name is left alone. [`Moved::Trashed`] if it is there
    /// already; [`Moved::Gone`] if it is nowhere; [`Moved::Kept`] if somebody uses it.
    fn trash(&self, item: &ItemId, token: &str, place: &str) -> Moved;

    /// Moves it back. Where something has taken its name meanwhile, that stays.
    ///
    /// # Errors
    /// It is still in the trash, or was not there.
    fn restore(&self, item: &ItemId, place: &str) -> Result<(), Error>;

    /// Deletes what is in the trash under this name. How many bytes that gave back; 0 if there was nothing.
    ///
    /// # Errors
    /// Some of it may be left; it is tried again.
    fn purge(&self, place: &str) -> Result<u64, Error>;
}

/// What the journal's rows say, as far as it is written.
pub trait Records: Send + Sync + Debug + 'static {
    /// Rows that are read after this call reflect every record up to the seq that it gives.
    fn written(&self) -> Seq;

    /// Every finished run that was not collected.
    ///
    /// # Errors
    /// `unavailable` when rows cannot be read.
    fn runs(&self) -> Result<Vec<Found>, Error>;

    /// Every content that a row names, and the runs that named it.
    ///
    /// # Errors
    /// As [`Records::runs`].
    fn names(&self) -> Result<BTreeMap<Digest, Vec<RunId>>, Error>;

    /// The rows of a run, to be erased; in pieces that fit into a record each.
    ///
    /// # Errors
    /// As [`Records::runs`].
    fn rows(&self, run: &RunId) -> Result<Vec<GcErased>, Error>;

    /// Every record of a deletion, oldest first.
    ///
    /// # Errors
    /// As [`Records::runs`].
    fn deletions(&self) -> Result<Vec<Recorded>, Error>;

    fn disk(&self) -> Option<Disk>;
}
