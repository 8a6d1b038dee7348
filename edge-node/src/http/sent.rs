//! Bodies of answers whose memory is counted until the client has taken them.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::reading::Slot;

/// As much as the connection takes at once.
pub(super) const PIECE: usize = 64 * 1024;

/// A page on its way, with the slot that it was read in.
#[derive(Debug)]
pub(super) struct Page {
    rest: Bytes,
    _slot: Option<Slot>,
}

impl Page {
    pub(super) fn new(page: Vec<u8>, slot: Option<Slot>) -> Self {
        Self {
            rest: page.into(),
            _slot: slot,
        }
    }

    /// The next piece.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let len = self.rest.len().min(PIECE);
        (len > 0).then(|| self.rest.split_to(len))
    }
}

impl Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.take().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
