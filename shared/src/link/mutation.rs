//! Rules of the protocol that a test can switch off.

/// One rule that is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// Hub: acknowledges what was delivered, before it is committed.
    AckBeforeCommit,
    /// Hub: streams below what it expects are delivered again.
    SkipDuplicateCheck,
    /// Hub: a gap moves the expected offset, but nobody is told.
    IgnoreGap,
    /// Hub: streams are delivered as they come.
    DeliverOutOfOrder,
    /// Site: sends without credit.
    IgnoreCredit,
    /// Site: starts at the log's start, whatever the hub's checkpoint says.
    ResumeFromStart,
    /// Site: starts one item after the hub's checkpoint.
    ResumeOneLater,
    /// Site: does not compare its history with the hub's.
    ForgetChainCheck,
    /// Site: goes on inside a gap of what it knows nothing about.
    ForgetProof,
    /// Site: begins a new incarnation without looking at the other logs' checkpoints.
    RenewAtOnce,
    /// Site: takes a checkpoint beyond the log's end for its end.
    ForgetEndCheck,
    /// Site: what was trimmed below the checkpoint is skipped without a gap.
    ForgetTrimmedGap,
    /// Site: takes all logs for equally urgent.
    ForgetClass,
    /// Hub: a commit never gives credit back.
    ForgetCredit,
    /// Hub: does not watch for a dead peer.
    ForgetDeadPeer,
    /// Hub's lane: a new session is told the checkpoints while a transaction is under way.
    AnswerDuringTransaction,
    /// Hub's lane: what an older session queued is committed after a newer one was welcomed.
    KeepOldQueue,
    /// Hub's lane: an aborted transaction counts as committed.
    AckAborted,
    /// Hub's listener: a stream goes to the site's latest session, whatever connection it came on.
    MixConnections,
}
