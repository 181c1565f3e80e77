//! Mistakes that are made on purpose, to see them found. None of them is in the product: each is a wrapped core, a disk
//! that is worse than disks are, or a step that the simulated shell leaves out.

/// In brackets the number in the list of seeded bugs of the reliability plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// What a client is answered does not wait for the disk (1).
    AckBeforeSync,
    /// A sealed file's name is not synced before the record that names it (2).
    SkipDirectorySync,
    /// Nor are its bytes (3).
    SkipFileSync,
    /// A sealed file takes the name of a synced one before its own bytes are.
    SealOverSynced,
    /// A result under an old fence is committed as if it were the current attempt's (4).
    AcceptStaleFence,
    /// Every kernel has the same epoch: a fence is a counter alone (5).
    FenceWithoutEpoch,
    /// A kernel begins one record too early (6).
    ReuseSeq,
    /// A torn record is passed over, and what follows is believed (7).
    ReplayPastBad,
    /// What is found at the start is not synced before it is shown (8).
    OpenWithoutSync,
    /// A sync that failed is tried again, and believed (9).
    RetryFailedSync,
    /// What subscribers are shown does not wait for the disk (10).
    PublishBeforeSynced,
    /// A wish is performed before what it follows from is written (11).
    DispatchBeforeWritten,
    /// A lease ends when its time is over, whoever still computes under it (12).
    LeaseByWallClock,
    /// Retention does not know of pins and tags (16).
    CollectPinned,
    /// What an actor had in memory when it panicked is believed (18).
    KeepStateAcrossPanic,
    /// A run that was cancelled goes on committing (23).
    CommitCancelled,
    /// The disk says that it has synced and has not: no mistake of ours, and the control that it would be seen.
    LyingSync,
    /// Arbitration believes that there is twice as much as there is.
    GrantTwice,
    /// A wish that comes again is another wish.
    ForgetWish,
    /// A tick that is started again is started under another key.
    TickWithoutKey,
    /// A clock that is put back makes instants come again.
    TickAgain,
    /// An instant is passed over without a word.
    LoseTick,
    /// Rows are believed to be newer than they are.
    SurveyAheadOfRows,
    /// Something is moved before the record of it is written.
    TrashWithoutRecord,
    /// Code whose hash is right at the end is believed to have been right all the time.
    TrustTheHash,
    /// More is collected than the plan showed.
    CollectUnplanned,
}
