//! Bytes that nobody meant: no decoder may panic, or take more memory than there are bytes.

use bolero::check;
use bytes::{BufMut, Bytes, BytesMut};

use crate::http::records::{Gather, Placement, gather_json, gather_ndjson};
use crate::kafka::api::{Api, Header, VERSIONS};
use crate::kafka::dispatch::plan;
use crate::kafka::frame::FrameBuffer;

#[test]
fn any_bytes_are_planned_or_refused() {
    check!().for_each(|bytes| {
        drop(plan(&Bytes::copy_from_slice(bytes)));
    });
}

/// The same behind a header that leads into each decoder.
#[test]
fn any_body_of_any_api_is_planned_or_refused() {
    check!().for_each(|bytes| {
        for (api, min, max) in VERSIONS {
            for version in min..=max {
                let mut frame = BytesMut::new();
                frame.put_i16(api as i16);
                frame.put_i16(version);
                frame.put_i32(1);
                frame.put_i16(-1);
                if frame_is_flexible(api, version) {
                    frame.put_u8(0);
                }
                frame.put_slice(bytes);
                drop(plan(&frame.freeze()));
            }
        }
    });
}

fn frame_is_flexible(api: Api, version: i16) -> bool {
    let header = Header {
        api: Some(api),
        key: api as i16,
        version,
        correlation: 1,
    };
    header.is_flexible()
}

#[test]
fn any_stream_is_cut_into_frames_or_refused() {
    check!().for_each(|bytes| {
        let mut frames = FrameBuffer::new(1000);
        for chunk in bytes.chunks(7) {
            frames.room().put_slice(chunk);
            while let Ok(Some((frame, _))) = frames.take() {
                assert!(frame.len() <= 1000);
            }
        }
    });
}

#[test]
fn any_http_body_is_gathered_or_refused() {
    let gather = || {
        Gather::new(Placement {
            partitions: 4,
            keyless_partition: 0,
            now_ms: 0,
            max_batch_bytes: 1000,
        })
    };
    check!().for_each(|bytes| {
        drop(gather_json(bytes, &mut gather()));
        drop(gather_ndjson(bytes, &mut gather()));
        let text = String::from_utf8_lossy(bytes);
        for frame in [
            "[{\"value\":",
            "{\"key\":1,\"headers\":{",
            "[{\"value_base64\":\"",
        ] {
            drop(gather_json(
                format!("{frame}{text}").as_bytes(),
                &mut gather(),
            ));
        }
    });
}
