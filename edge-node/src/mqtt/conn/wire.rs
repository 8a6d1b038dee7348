//! The socket of a connection, and what is buffered of it.
//!
//! A connection that waits holds no buffers: bytes are read onto the stack and kept only while a packet is
//! incomplete, and what goes out is made in a buffer that the thread lends ([`spare`]).

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, timeout};

use super::room::{FREE, Room};
use super::throttle::Held;
use super::{HIGH_WATER, LAST_WORD, spare};
use crate::ingest::Budget;
use crate::mqtt::frame::{self, Frame, FrameError};

/// What is read at a time.
const READ: usize = 8 * 1024;

/// The socket and its buffers.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    input: BytesMut,
    /// The input's part of the node's budget, when it has more than its free share.
    room: Option<Box<Room>>,
    /// What came and has to wait.
    pub(super) held: Held,
    pub(super) output: BytesMut,
    pub(super) max_packet: usize,
    /// Bytes that the input needs before there can be a packet.
    needed: usize,
    /// When something came last.
    pub(super) last_in: Instant,
    /// Since when a packet is incomplete.
    pub(super) partial_since: Option<Instant>,
    /// Since when nothing of the output was taken.
    pub(super) stuck_since: Option<Instant>,
    /// There may be a whole packet in the input.
    pub(super) has_frames: bool,
    /// The client sends nothing more.
    pub(super) has_ended: bool,
    /// Something was written and may still be in a buffer below.
    needs_flush: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, max_packet: usize) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            room: None,
            held: Held::default(),
            output: BytesMut::new(),
            max_packet,
            needed: 2,
            last_in: Instant::now(),
            partial_since: None,
            stuck_since: None,
            has_frames: false,
            has_ended: false,
            needs_flush: false,
        }
    }

    /// The next packet to carry out.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.held.pop() {
            Some(frame) => Ok(Some(frame)),
            None => self.frame(),
        }
    }

    /// While nothing is read although there may be something, silence is not the client's.
    pub(super) fn excuse(&mut self, is_held_up: bool) {
        let is_waiting = self.is_waiting();
        if is_held_up || is_waiting || self.has_ended || self.held.is_full() {
            self.last_in = Instant::now();
            self.partial_since = self.partial_since.map(|_| self.last_in);
        }
        if let Some(room) = self.room.as_mut().filter(|_| is_held_up) {
            room.excuse();
        }
    }

    fn is_waiting(&self) -> bool {
        self.room.as_ref().is_some_and(|room| room.is_waiting())
    }

    /// Whether the input has more than its free share, and so has to get on when others wait.
    pub(super) fn has_room(&self) -> bool {
        self.room.is_some()
    }

    /// Whether others wait for what an unfinished packet holds for too long, or one that is not carried out because the
    /// client takes nothing.
    pub(super) fn is_hogging(&self, intake: &Budget, patience: Duration) -> bool {
        let is_clients = self.held.is_empty() || self.is_full();
        let room = self.room.as_ref().filter(|_| is_clients);
        room.is_some_and(|room| room.is_hogging(intake, patience))
    }

    /// Whether packets that came whole, and wait here, hold what others wait for.
    pub(super) fn holds_up(&self, intake: &Budget) -> bool {
        self.room.is_some() && !self.held.is_empty() && intake.is_short()
    }

    /// A packet was carried out: its bytes are gone.
    pub(super) fn carried_out(&mut self) {
        if self.input.is_empty() && self.held.is_empty() {
            self.room = None;
        }
    }

    /// The next packet that is whole.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>, FrameError> {
        match frame::take(&mut self.input, self.max_packet)? {
            Ok(frame) => {
                self.partial_since = None;
                Ok(Some(frame))
            }
            Err(needed) => {
                self.needed = needed;
                self.has_frames = false;
                if self.input.is_empty() {
                    self.partial_since = None;
                    self.input = BytesMut::new();
                    self.carried_out();
                } else {
                    self.partial_since.get_or_insert_with(Instant::now);
                }
                Ok(None)
            }
        }
    }

    /// Reads once; of a large packet only when the node has room for it.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        intake: &Budget,
    ) -> Poll<io::Result<usize>> {
        let missing = self.needed.saturating_sub(self.input.len());
        let count = if self.needed > FREE && self.input.len() + READ > FREE {
            // the rest of a large packet goes straight to its place
            ready!(self.poll_room(cx, intake, missing));
            let mut place = (&mut self.input).limit(missing.max(1));
            ready!(pin!(self.stream.read_buf(&mut place)).poll(cx))?
        } else {
            let mut space = [const { MaybeUninit::uninit() }; READ];
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            self.input.extend_from_slice(buffer.filled());
            buffer.filled().len()
        };
        self.has_ended = count == 0;
        self.has_frames = true;
        self.last_in = Instant::now();
        if let Some(room) = &mut self.room {
            room.came();
        }
        Poll::Ready(Ok(count))
    }

    /// Waits until the input may have the rest of a packet, of which so much is missing.
    fn poll_room(&mut self, cx: &mut Context<'_>, intake: &Budget, missing: usize) -> Poll<()> {
        let len = self.input.len();
        if self.room.is_some() && self.input.capacity() > len && !self.is_waiting() {
            return Poll::Ready(());
        }
        // all of it at once: who held a part and waited for more would keep others from theirs
        let more = missing.max(1);
        let room = self.room.get_or_insert_default();
        if !room.is_waiting() && !room.try_hold(intake, len + more - FREE.min(len)) {
            room.wait(intake, len + more - FREE.min(len));
        }
        ready!(room.poll(cx));
        self.input.reserve(more);
        Poll::Ready(())
    }

    /// Gives the output a buffer to be made in.
    pub(super) fn lend(&mut self) {
        if self.output.capacity() == 0 {
            self.output = spare::take();
        }
    }

    /// Writes what the client takes, and how much that was.
    pub(super) fn poll_push(&mut self, cx: &mut Context<'_>) -> io::Result<usize> {
        let mut written = 0;
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output)? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) if count == self.output.len() => {
                    self.output.clear();
                    written += count;
                }
                Poll::Ready(count) => {
                    self.output.advance(count);
                    written += count;
                }
                Poll::Pending => break,
            }
        }
        self.needs_flush |= written > 0;
        let has_flushed = self.output.is_empty()
            && self.needs_flush
            && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready();
        self.needs_flush &= !has_flushed;
        if self.output.is_empty() && !self.needs_flush {
            self.stuck_since = None;
        } else if written > 0 {
            self.stuck_since = Some(Instant::now());
        } else {
            self.stuck_since.get_or_insert_with(Instant::now);
        }
        if self.output.is_empty() {
            spare::give(std::mem::take(&mut self.output));
        }
        Ok(written)
    }

    /// Writes all there is, for so long.
    async fn flush(&mut self, limit: Duration) {
        let all = async {
            self.stream.write_all_buf(&mut self.output).await?;
            self.stream.flush().await
        };
        // whoever does not take it has gone
        drop(timeout(limit, all).await);
    }

    pub(super) async fn close(&mut self, limit: Duration) {
        self.flush(limit).await;
        drop(timeout(LAST_WORD, self.stream.shutdown()).await);
    }

    /// Whether nothing more is made for the client before it takes something.
    pub(super) fn is_full(&self) -> bool {
        self.output.len() >= HIGH_WATER
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{DuplexStream, duplex};

    use super::*;

    const KIB: usize = 1024;

    /// A PUBLISH of 100 KiB.
    const HEAD: [u8; 4] = [0x30, 0x80, 0xa0, 0x06];

    async fn begun(budget: &Budget) -> (DuplexStream, Wire<DuplexStream>) {
        let (mut client, stream) = duplex(200 * KIB);
        client.write_all(&HEAD).await.unwrap();
        client.write_all(&[0; 30 * KIB]).await.unwrap();
        let mut wire = Wire::new(stream, 200 * KIB);
        assert!(!read(&mut wire, budget).await);
        (client, wire)
    }

    /// Reads what may be read; whether there is a packet.
    async fn read(wire: &mut Wire<DuplexStream>, budget: &Budget) -> bool {
        while poll_fn(|cx| Poll::Ready(wire.poll_fill(cx, budget)))
            .await
            .is_ready()
        {
            if wire.frame().unwrap().is_some() {
                wire.carried_out();
                return true;
            }
        }
        false
    }

    /// Who held a part of a packet's room and waited for more would be neither ended nor get on.
    #[tokio::test]
    async fn a_large_packet_has_its_whole_room_or_none() {
        let budget = Budget::new(150 * KIB);
        let (mut client, mut first) = begun(&budget).await;
        let used = budget.used();
        assert!(used > 80 * KIB, "{used}");
        let held_up = begun(&budget).await;
        // it goes beyond the budget, as one may
        assert!(!budget.is_short() && budget.used() == used);
        let (_waiting, mut third) = begun(&budget).await;
        assert!(budget.is_short());
        drop(held_up);
        client.write_all(&[0; 70 * KIB]).await.unwrap();
        assert!(read(&mut first, &budget).await);
        assert!(!read(&mut third, &budget).await);
        assert!(!budget.is_short() && budget.used() == used);
    }
}
