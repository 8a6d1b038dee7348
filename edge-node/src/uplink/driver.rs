//! One session: the loop between `link::Sender`, a connection and the store.
//!
//! Order of the branches: everything that comes out is carried out first; then answers of the worker,
//! bytes from the hub, streams that are delivered, changes of the store, the timer, the connection's end, and
//! last the wish to stop. Nothing in the loop waits for the network or the disk.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use shared::class::{Class, ClassRules, PerClass};
use shared::ids::{Incarnation, Offset};
use shared::link::{Close, DataStream, Sender, SenderConfig, SenderOutput, Unsettled};
use shared::transport::{Connection, ControlRecv, ControlSend, Lost, LostKind, Sending};
use shared::units::BitRate;
use shared::wire::{Code, Handle};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Policies;
use super::live::{self, Backlogs};
use super::sendbuffer::SendBuffer;
use super::worker::{Done, Job, Worker};
use super::{Seen, UplinkStats};
use crate::config::{ClassesConfig, TopicsConfig};
use crate::store::Store;

/// Control frames waiting to be written. A link that takes none of so many is dead.
const CONTROL_QUEUE: usize = 1024;
/// From hello to welcome; the hub may be waiting for a lane to start.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often backlogs are looked at, where a topic has its new records first.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the sender is told what the link has carried, while a class waits for that.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// A stream may see its end a moment before the connection tells why.
const REASON_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a goodbye may take to reach the hub.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// More than this of classes that may not be sent any more is taken back with the session: a new one takes some 17 KiB.
const LEFT_OVER: u64 = 64 << 10;
/// But not more often: what a large value had sent before is lost each time.
const TAKE_BACK_EVERY: Duration = Duration::from_secs(600);

/// What the configuration says of a session.
#[derive(Debug, Clone)]
pub(super) struct SessionSettings {
    /// Codecs that the hub may choose from, best first.
    pub(super) codecs: Vec<u8>,
    /// Reads in the worker, or waiting for credit.
    pub(super) max_reads: usize,
    /// Decoded bytes that one data stream aims at on a fast link: large enough for a codec, small enough that a
    /// lost packet holds up little.
    pub(super) max_read_bytes: u32,
    /// The class of each topic.
    pub(super) topics: TopicsConfig,
    /// How the classes share the link.
    pub(super) classes: ClassesConfig,
    /// What sessions before saw of the backlogs.
    pub(super) backlogs: Backlogs,
    /// When a session was ended last to take back what might not be sent any more.
    pub(super) took_back: Option<Instant>,
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Why, and when to come back at the earliest.
    pub(super) close: Close,
    /// The hub had welcomed us.
    pub(super) was_open: bool,
    /// The store's history is not the one that the hub holds.
    pub(super) needs_incarnation: bool,
    /// What was sent and not acknowledged: for the next session.
    pub(super) unsettled: Unsettled,
    /// See [`SessionSettings::took_back`].
    pub(super) took_back: Option<Instant>,
}

/// What ends a session from outside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signals<'a> {
    /// The node stops.
    pub(super) stop: &'a CancellationToken,
    /// Another connection takes this one's place.
    pub(super) replaced: &'a CancellationToken,
    /// The hub should be asked for a word.
    pub(super) speak: &'a Notify,
}

/// Runs a session on a fresh connection until it ends.
pub(super) async fn run(
    connection: Connection,
    store: Arc<dyn Store>,
    worker: Worker,
    stats: Arc<UplinkStats>,
    unsettled: Unsettled,
    settings: &SessionSettings,
    policies: Policies,
    path: usize,
    forbidden: impl Future<Output = String>,
    signals: Signals<'_>,
) -> Result<Ended, Lost> {
    let (send, recv) = connection.open_control().await?;
    let mut tasks = JoinSet::new();
    let (control_out, control_queue) = mpsc::channel(CONTROL_QUEUE);
    tasks.spawn(write_control(send, control_queue));
    let (done_in, done) = mpsc::channel(CONTROL_QUEUE);
    let incarnation = store.incarnation();
    let changes = store.changes();
    let mut sender = Sender::new(sender_config(incarnation, settings));
    sender.recall(unsettled);
    let session = Session {
        sender,
        incarnation,
        origin: Instant::now(),
        connection,
        control_out,
        done_in,
        tasks,
        store,
        worker,
        settings: settings.clone(),
        buffer: SendBuffer::new(settings.max_read_bytes),
        stats,
        seen: Seen::default(),
        codecs: Arc::default(),
        policies,
        path,
        granted: None,
        next_look: None,
        carried: 0,
        next_told: None,
        was_open: false,
    };
    Ok(session.run(recv, done, changes, forbidden, signals).await)
}

fn sender_config(incarnation: Incarnation, settings: &SessionSettings) -> SenderConfig {
    SenderConfig {
        nonce: rand::random(),
        incarnation,
        software: concat!("edge-node ", env!("CARGO_PKG_VERSION")).to_owned(),
        codecs: settings.codecs.clone(),
        max_reads: settings.max_reads,
        max_read_bytes: settings.max_read_bytes,
        classes: ClassRules {
            shares: settings.classes.shares,
            max_delay: PerClass::default(),
        },
        handshake_timeout: HANDSHAKE_TIMEOUT,
    }
}

#[derive(Debug)]
struct Session {
    sender: Sender,
    incarnation: Incarnation,
    origin: Instant,
    connection: Connection,
    control_out: mpsc::Sender<Bytes>,
    done_in: mpsc::Sender<Done>,
    /// Those of data streams end with the stream, once the transport has delivered it.
    tasks: JoinSet<Option<Sent>>,
    store: Arc<dyn Store>,
    worker: Worker,
    settings: SessionSettings,
    buffer: SendBuffer,
    stats: Arc<UplinkStats>,
    seen: Seen,
    codecs: Arc<[u8]>,
    policies: Policies,
    /// The path that it goes by.
    path: usize,
    /// Bytes a second that the policy grants; `None`: as many as go.
    granted: Option<u64>,
    /// When backlogs are looked at; `None`: no topic has its new records first.
    next_look: Option<Instant>,
    /// What the link had carried when the sender was told last, and when it wants to be told again.
    carried: u64,
    next_told: Option<Instant>,
    was_open: bool,
}

impl Session {
    async fn run(
        mut self,
        mut recv: ControlRecv,
        mut done: mpsc::Receiver<Done>,
        mut changes: watch::Receiver<u64>,
        forbidden: impl Future<Output = String>,
        signals: Signals<'_>,
    ) -> Ended {
        let mut forbidden = pin!(forbidden);
        let mut is_forbidden = false;
        let mut policy = self.policies.watch();
        self.look_at_backlogs();
        self.update_logs();
        self.follow_path();
        self.follow_policy();
        self.sender.start(self.now());
        let mut buffer = vec![0; 16 << 10];
        let close = loop {
            if let Some(close) = self.carry_out() {
                break close;
            }
            let wake = self.sender.poll_timeout().map(|at| self.origin + at);
            tokio::select! {
                biased;
                Some(done) = done.recv() => self.handle_done(done),
                // `read` is cancel-safe: it takes nothing before it returns
                read = recv.read(&mut buffer) => match read {
                    Ok(Some(len)) => self.sender.handle_control(&buffer[..len], self.now()),
                    Ok(None) => self.sender.close(Code::BadFrame, None, "control stream ended"),
                    Err(seen) => break lost(self.connection.closed(), seen).await,
                },
                Some(finished) = self.tasks.join_next() => {
                    if let Ok(Some(Sent { class, bytes, .. })) = finished {
                        self.buffer.observe_delivered(bytes);
                        self.sender.handle_delivered(class, bytes);
                    }
                }
                changed = changes.changed() => match changed {
                    Ok(()) => self.update_logs(),
                    Err(_) => self.sender.close(Code::Stopping, None, "store closed"),
                },
                Ok(()) = policy.changed() => self.follow_policy(),
                () = sleep_until(self.next_look) => self.look_at_backlogs(),
                () = sleep_until(self.next_told) => {}
                () = sleep_until(wake) => self.sender.handle_timeout(self.now()),
                lost = self.connection.closed() => break close_of(lost),
                reason = &mut forbidden, if !is_forbidden => {
                    is_forbidden = true;
                    self.sender.close(Code::Stopping, None, &format!("policy: {reason}"));
                }
                // another connection is up: the hub ends this session when it hears of the next one
                () = signals.replaced.cancelled() => break replaced(),
                () = signals.speak.notified() => self.sender.ping(self.now()),
                () = signals.stop.cancelled() => self.sender.close(Code::Stopping, None, "edge-node stops"),
            }
            self.seen.observe(&self.connection, &self.stats);
            let is_waiting = self.sender.streams_in_flight() > 0;
            self.stats.waiting.store(is_waiting, Ordering::Relaxed);
            self.follow_path();
        };
        self.end(close).await
    }

    /// What the transport is given, and how long records wait, as the path is found to be.
    fn follow_path(&mut self) {
        let path = self.connection.stats();
        let carried = path.tx_bytes.saturating_sub(self.carried);
        self.carried = path.tx_bytes;
        let waits = self.sender.handle_carried(carried);
        self.next_told = waits.then(|| Instant::now() + TELL_EVERY);
        let granted = self.granted.map(|rate| share_of(rate, path.rtt));
        let window = granted.map_or(path.window, |granted| path.window.min(granted));
        self.buffer.observe_path(window, path.rtt);
        // what the controller allows is there to be sent: the link is the limit, or the policy
        let is_full = path.window > 0 && self.sender.bytes_in_transit() >= path.window;
        self.policies.shaper(self.path).set_full(is_full);
        self.sender
            .set_send_budget(self.buffer.budget(), self.buffer.usual_budget());
        self.sender.set_max_read_bytes(self.buffer.read_bytes());
        let delays = self.buffer.delays(&self.settings.classes.max_delay);
        self.sender.set_max_delay(delays);
    }

    /// What the policy grants from here on.
    fn follow_policy(&mut self) {
        let decision = self.policies.decision(self.path);
        self.sender.set_classes_allowed(decision.classes);
        self.granted = decision.rate_up.map(BitRate::bytes_per_sec);
        // what the window covers is on the way
        let behind = self.sender.bytes_forbidden();
        let behind = behind.saturating_sub(self.connection.stats().window);
        let since = self.settings.took_back.map(|last| last.elapsed());
        if is_worth_taking_back(behind, since) && !decision.classes.is_empty() {
            self.settings.took_back = Some(Instant::now());
            let text = format!("policy: {behind} bytes wait that may not be sent any more");
            self.sender.close(Code::Stopping, None, &text);
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// Does everything that the sender wants done; the end of the session if that is among it.
    fn carry_out(&mut self) -> Option<Close> {
        let mut cursors = Vec::new();
        let close = self.carry_out_all(&mut cursors);
        // one job however many logs: an acknowledgement may be about thousands
        if !cursors.is_empty() {
            self.submit(Job::Acknowledge { cursors });
        }
        close
    }

    fn carry_out_all(&mut self, cursors: &mut Vec<(Handle, Offset)>) -> Option<Close> {
        while let Some(output) = self.sender.poll_output() {
            match output {
                SenderOutput::Control(bytes) => self.write(bytes),
                SenderOutput::Established {
                    version,
                    codecs,
                    max_batch_bytes,
                } => {
                    self.was_open = true;
                    self.stats.opened();
                    info!(version, ?codecs, max_batch_bytes, "Uplink open");
                    self.codecs = codecs.into();
                }
                SenderOutput::Data(stream) => self.send(stream),
                SenderOutput::Read {
                    handle,
                    from,
                    max_bytes,
                    chain,
                    begin,
                } => {
                    let max_bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
                    self.submit(Job::Read {
                        handle,
                        from,
                        max_bytes,
                        chain,
                        begin,
                        link: self.link_rate(),
                        codecs: Arc::clone(&self.codecs),
                    });
                }
                SenderOutput::Chain { handle, offset } => {
                    self.submit(Job::Chain { handle, offset });
                }
                SenderOutput::Policy(text) => match self.policies.push(text) {
                    Ok(()) => info!("Policy of the hub received"),
                    Err(error) => warn!(error, "Policy of the hub refused"),
                },
                SenderOutput::Acked {
                    handle,
                    next_offset,
                } => {
                    cursors.push((handle, next_offset));
                }
                SenderOutput::Missing(ids) => self.submit(Job::Missing { ids }),
                SenderOutput::Window(bytes) => self.connection.set_peer_window(bytes),
                SenderOutput::HistoryMismatch { handle, mismatch } => {
                    warn!(
                        ?mismatch,
                        log = self.name(handle),
                        "Store history differs from the hub's"
                    );
                }
                SenderOutput::Denied { handle } => {
                    if let Some(log) = self.sender.log(handle) {
                        self.stats.refused.refuse(log.clone());
                    }
                    warn!(log = self.name(handle), "Hub does not take this log");
                }
                SenderOutput::Admitted { handle } => {
                    if let Some(log) = self.sender.log(handle) {
                        self.stats.refused.admit(log);
                    }
                    info!(log = self.name(handle), "Hub takes this log after all");
                }
                SenderOutput::TooLarge {
                    handle,
                    offset,
                    bytes,
                    limit,
                } => {
                    let log = self.name(handle);
                    warn!(
                        log,
                        offset, bytes, limit, "Batch larger than the hub accepts"
                    );
                }
                SenderOutput::Close(close) => return Some(close),
            }
        }
        None
    }

    /// Bytes a second that the path carries, as the congestion controller sees it, and the policy grants.
    fn link_rate(&self) -> Option<u64> {
        let stats = self.connection.stats();
        let rate = u128::from(stats.window) * 1_000_000 / stats.rtt.as_micros().max(1);
        let path = u64::try_from(rate).ok().filter(|_| stats.window > 0);
        path.into_iter().chain(self.granted).min()
    }

    fn name(&self, handle: Handle) -> String {
        self.sender
            .log(handle)
            .map_or_else(String::new, ToString::to_string)
    }

    fn write(&mut self, bytes: Bytes) {
        if self.control_out.try_send(bytes).is_err() {
            self.sender
                .close(Code::Timeout, None, "control stream is stuck");
        }
    }

    /// Sends each batch in a stream of its own. What waits here is bounded by the sender's budget.
    fn send(&mut self, stream: DataStream) {
        let sent = Sent {
            class: stream.class,
            bytes: stream.len(),
            raw: stream.header.charge(),
        };
        self.buffer.observe_batch(sent.raw, sent.bytes);
        if let Some(log) = self.sender.log(stream.header.handle) {
            self.stats.traffic.sent(&log.topic, &stream);
        }
        let priority = priority(sent.class);
        let sending = self.connection.send(stream.head, stream.payload, priority);
        let delivery = deliver(sending, sent, Arc::clone(&self.stats));
        self.tasks.spawn(async move { Some(delivery.await) });
    }

    fn submit(&mut self, job: Job) {
        if let Err(job) = self.worker.submit(job, &self.done_in) {
            debug!(?job, "Uplink worker is behind");
            self.sender.close(Code::Busy, None, "store is too slow");
        }
    }

    fn handle_done(&mut self, done: Done) {
        match done {
            Done::Read { handle, result } => self.sender.handle_read(handle, result),
            Done::Chain {
                handle,
                offset,
                chain,
            } => self.sender.handle_chain(handle, offset, chain),
            Done::Settled => {}
            Done::Failed(error) => {
                warn!(%error, "Uplink cannot read the store");
                self.sender.close(Code::Internal, None, "store failed");
            }
        }
    }

    /// Tells the sender of new logs and of those that grew.
    fn update_logs(&mut self) {
        let (now, book) = (self.now(), self.worker.anchors());
        let topics = &self.settings.topics;
        live::tell_logs(&mut self.sender, self.store.as_ref(), topics, book, now);
        if self.store.incarnation() != self.incarnation {
            self.sender.close(Code::Stopping, None, "new incarnation");
        }
    }

    /// Lets new records pass where the topic wants it and there is a backlog.
    fn look_at_backlogs(&mut self) {
        if !self.settings.topics.has_live_first() {
            return;
        }
        self.next_look = Some(Instant::now() + LOOK_EVERY);
        let (now, store) = (shared::time::now(), self.store.as_ref());
        let SessionSettings {
            topics, backlogs, ..
        } = &self.settings;
        for partition in live::to_split(&self.sender, store, topics, backlogs, now) {
            self.submit(Job::Split { partition });
        }
    }

    async fn end(mut self, close: Close) -> Ended {
        self.policies.shaper(self.path).set_full(false);
        self.seen.observe(&self.connection, &self.stats);
        // dropping the queue finishes the control stream, and with it the goodbye
        drop(self.control_out);
        if !close.by_peer && !matches!(close.code, Code::Timeout | Code::Superseded) {
            let drained = async { while self.tasks.join_next().await.is_some() {} };
            let _late = tokio::time::timeout(GOODBYE_TIMEOUT, drained).await;
        }
        self.connection
            .close(close.code.to_u8().into(), close.text.as_bytes());
        Ended {
            // a session that is lost before it knew what the hub holds of all logs renews nothing
            needs_incarnation: close.code == Code::HistoryMismatch && !close.by_peer,
            unsettled: self.sender.unsettled(),
            took_back: self.settings.took_back,
            close,
            was_open: self.was_open,
        }
    }
}

/// A data stream that was handed to the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sent {
    class: Class,
    /// All of it.
    bytes: u64,
    /// As charged to the hub's credit.
    raw: u64,
}

/// Counts a stream once the hub has it: what a plan takes for the price of records is what they came to, not what waits
/// for the link.
async fn deliver(sending: Sending, sent: Sent, stats: Arc<UplinkStats>) -> Sent {
    match sending.await {
        Ok(()) => {
            stats.payload_bytes.fetch_add(sent.bytes, Ordering::Relaxed);
            stats.raw_bytes.fetch_add(sent.raw, Ordering::Relaxed);
        }
        // it is the connection's, and the session's loop sees it as such
        Err(error) => debug!(%error, "Data stream ended early"),
    }
    sent
}

/// Whether a session is begun anew for so many bytes that may not be sent any more, so long after the last time.
fn is_worth_taking_back(bytes: u64, since: Option<Duration>) -> bool {
    bytes > LEFT_OVER && since.is_none_or(|since| since >= TAKE_BACK_EVERY)
}

/// What is on its way at this rate, in bytes a second.
fn share_of(rate: u64, rtt: Duration) -> u64 {
    let bytes = u128::from(rate) * rtt.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX).max(1)
}

/// The end of a session whose connection is gone, or of which a stream said so. Streams see no more than
/// that it was lost; the connection knows why.
async fn lost(closed: impl Future<Output = Lost>, seen: Lost) -> Close {
    let closed = tokio::time::timeout(REASON_TIMEOUT, closed).await;
    close_of(closed.unwrap_or(seen))
}

/// What the end of a connection means for the session.
pub(super) fn close_of(lost: Lost) -> Close {
    match lost.kind {
        // the hub's goodbye, which came before the frame on the control stream was read
        LostKind::Closed { code } => Close {
            code: u8::try_from(code).map_or(Code::Internal, Code::from_u8),
            by_peer: true,
            retry_after: None,
            text: lost.text,
        },
        // a hub looks at a site's certificate when the site takes the handshake for done
        LostKind::Refused => Close {
            by_peer: true,
            ..timed_out(lost.text)
        },
        LostKind::TimedOut | LostKind::Local | LostKind::Broken => timed_out(lost.text),
    }
}

fn replaced() -> Close {
    Close {
        code: Code::Superseded,
        by_peer: false,
        retry_after: None,
        text: "another connection took over".to_owned(),
    }
}

fn timed_out(text: String) -> Close {
    Close {
        code: Code::Timeout,
        by_peer: false,
        retry_after: None,
        text,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn write_control(mut send: ControlSend, mut queue: mpsc::Receiver<Bytes>) -> Option<Sent> {
    while let Some(bytes) = queue.recv().await {
        if send.write(bytes).await.is_err() {
            return None;
        }
    }
    // wait until the peer has it, so that the goodbye is not cut off by the connection's close
    send.finish().await;
    None
}

/// The transport sends what is most urgent first, packet by packet.
fn priority(class: Class) -> i32 {
    match class {
        Class::Critical => 2,
        Class::Normal => 1,
        Class::Bulk => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    fn lost_as(kind: LostKind, text: &str) -> Lost {
        Lost {
            kind,
            text: text.to_owned(),
        }
    }

    #[tokio::test]
    async fn the_connections_reason_wins_over_what_a_stream_saw() {
        let refusal = "site `shop-2` is not on the allow list";
        let code = u64::from(Code::NotAllowed.to_u8());
        let told = lost_as(LostKind::Closed { code }, refusal);
        let close = lost(async { told }, lost_as(LostKind::Broken, "connection lost")).await;
        assert_eq!(close.code, Code::NotAllowed);
        assert!(close.by_peer);
        assert_eq!(close.text, refusal);
    }

    #[tokio::test]
    async fn a_stream_that_ends_alone_is_told_as_seen() {
        let seen = lost_as(LostKind::Broken, "stream reset");
        let close = lost(std::future::pending(), seen).await;
        assert_eq!(
            (close.code, close.text.as_str()),
            (Code::Timeout, "stream reset")
        );
    }

    #[tokio::test]
    async fn a_stream_counts_once_the_hub_has_it() {
        let stats = Arc::new(UplinkStats::default());
        let counted = |stats: &UplinkStats| {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (read(&stats.payload_bytes), read(&stats.raw_bytes))
        };
        let sent = Sent {
            class: Class::Normal,
            bytes: 100,
            raw: 700,
        };
        let (delivered, transport) = oneshot::channel();
        let sending: Sending = Box::pin(async { transport.await.unwrap() });
        let mut delivery = pin!(deliver(sending, sent, Arc::clone(&stats)));
        let first = std::future::poll_fn(|context| Poll::Ready(delivery.as_mut().poll(context)));
        assert_eq!((first.await, counted(&stats)), (Poll::Pending, (0, 0)));
        delivered.send(Ok(())).unwrap();
        assert_eq!(delivery.await, sent);
        assert_eq!(counted(&stats), (100, 700));
        let broken = lost_as(LostKind::Broken, "gone");
        let sending: Sending = Box::pin(async { Err(broken) });
        assert_eq!(deliver(sending, sent, Arc::clone(&stats)).await, sent);
        assert_eq!(counted(&stats), (100, 700), "it never came there");
    }

    #[test]
    fn a_policy_that_comes_and_goes_does_not_end_a_session_each_time() {
        let short = TAKE_BACK_EVERY - Duration::from_millis(1);
        assert!(is_worth_taking_back(LEFT_OVER + 1, None));
        assert!(!is_worth_taking_back(LEFT_OVER, None));
        assert!(!is_worth_taking_back(u64::MAX, Some(short)));
        assert!(is_worth_taking_back(LEFT_OVER + 1, Some(TAKE_BACK_EVERY)));
    }

    #[test]
    fn a_refusal_of_the_transport_is_the_peers() {
        let close = close_of(lost_as(LostKind::Refused, "certificate"));
        assert_eq!((close.code, close.by_peer), (Code::Timeout, true));
    }
}
