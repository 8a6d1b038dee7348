//! Long values that don't split: zstd with the last ones in sight.

use std::fmt;

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, compress_bound, get_error_name, get_frame_content_size,
};

use super::failed;
use super::snapshot::{Reader, Saved, Writer};
use crate::batch::BatchError;

const LEVEL: i32 = 9;
/// zstd's smallest window.
const MIN_WINDOW_LOG: u32 = 10;
const MAX_WINDOW_LOG: u32 = 27;

/// The bytes that went aside last, up to a limit.
#[derive(Clone)]
pub(super) struct Aside {
    window: Vec<u8>,
    limit: usize,
}

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside")
            .field("bytes", &self.window.len())
            .finish_non_exhaustive()
    }
}

impl Aside {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            window: Vec::new(),
            limit,
        }
    }

    pub(super) fn memory(&self) -> usize {
        self.window.capacity()
    }

    /// Keeps the last bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.limit)..];
        let over = (self.window.len() + bytes.len()).saturating_sub(self.limit);
        self.window.drain(..over);
        self.window.reserve_exact(bytes.len());
        self.window.extend_from_slice(bytes);
    }

    /// A frame, or nothing when that is not shorter.
    pub(super) fn compress(&self, bytes: &[u8]) -> Result<Option<Vec<u8>>, BatchError> {
        let reach = self.window.len() + bytes.len();
        let log = reach
            .next_power_of_two()
            .ilog2()
            .clamp(MIN_WINDOW_LOG, MAX_WINDOW_LOG);
        let mut zstd = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(LEVEL),
            CParameter::WindowLog(log),
            CParameter::EnableLongDistanceMatching(reach > 1 << 20),
        ] {
            zstd.set_parameter(parameter).map_err(named)?;
        }
        zstd.ref_prefix(&self.window).map_err(named)?;
        let mut frame = Vec::with_capacity(compress_bound(bytes.len()));
        zstd.compress2(&mut frame, bytes).map_err(named)?;
        Ok((frame.len() < bytes.len()).then_some(frame))
    }

    /// At most `limit` bytes of a frame.
    pub(super) fn decompress(&self, frame: &[u8], limit: usize) -> Result<Vec<u8>, BatchError> {
        let mut zstd = DCtx::create();
        zstd.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(named)?;
        zstd.ref_prefix(&self.window).map_err(named)?;
        let len = get_frame_content_size(frame)
            .ok()
            .flatten()
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| *len <= limit)
            .ok_or(BatchError::Malformed(
                "values aside are longer than announced",
            ))?;
        let mut bytes = Vec::with_capacity(len);
        zstd.decompress(&mut bytes, frame).map_err(named)?;
        Ok(bytes)
    }
}

fn named(code: usize) -> BatchError {
    failed(get_error_name(code))
}

impl Saved for Aside {
    fn save(&self, to: &mut Writer) {
        to.bytes(&self.window);
    }

    fn load(&mut self, from: &mut Reader<'_>) -> Result<(), BatchError> {
        self.window = from.bytes(self.limit)?.to_vec();
        Ok(())
    }
}
