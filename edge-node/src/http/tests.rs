mod reading;

use serde_json::{Value, json};
use shared::record::{BatchHeader, Records, open};
use shared::units::ByteSize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::TopicsConfig;
use crate::ingest::IngestLimits;
use crate::ingest::tests::any_topic;
use crate::ingest::tests::fake::{FakeStore, Mode};
use crate::store::AppendError;

struct Server {
    store: Arc<FakeStore>,
    ingest: Ingest,
    address: SocketAddr,
    stats: Arc<HttpStats>,
    stop: CancellationToken,
    task: tokio::task::JoinSet<()>,
}

async fn server(
    change: impl FnOnce(&mut HttpConfig, &mut TopicsConfig, &mut IngestLimits),
) -> Server {
    server_for(Access::open(), change).await
}

async fn server_for(
    access: Access,
    change: impl FnOnce(&mut HttpConfig, &mut TopicsConfig, &mut IngestLimits),
) -> Server {
    let mut config = HttpConfig::new("127.0.0.1:0".parse().unwrap());
    let (mut policy, mut limits) = (any_topic(), IngestLimits::default());
    change(&mut config, &mut policy, &mut limits);
    let store = FakeStore::shared();
    let ingest = Ingest::new(store.clone(), policy, limits);
    let stats = Arc::<HttpStats>::default();
    let listener = Listener::bind(config.clone(), stats.clone()).await.unwrap();
    let address = listener.address().unwrap();
    let stop = CancellationToken::new();
    let mut task = tokio::task::JoinSet::new();
    let doors = Doors {
        ingest: ingest.clone(),
        store: store.clone(),
        access: Arc::new(access),
        max_decoded: limits.max_uncompressed_bytes,
    };
    let routes = router(doors, config, stats.clone(), stop.clone());
    task.spawn(listener.run(routes, stop.clone()));
    Server {
        store,
        ingest,
        address,
        stats,
        stop,
        task,
    }
}

/// Sends a request as text and reads all that comes back.
async fn send(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await); // a reset after the answer is no matter
    String::from_utf8(answer).unwrap()
}

async fn post(address: SocketAddr, path: &str, kind: &str, body: &[u8]) -> (u16, Value, String) {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{kind}content-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    let answer = send(address, &request).await;
    let status = answer.get(9..12).unwrap().parse().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        status,
        serde_json::from_str(body).unwrap_or(Value::Null),
        head.to_owned(),
    )
}

const JSON: &str = "content-type: application/json\r\n";
const NDJSON: &str = "content-type: application/x-ndjson; charset=utf-8\r\n";

type Plain = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    i64,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

/// Everything in a topic: partition, then key, value, timestamp and headers.
fn stored(server: &Server, topic: &str) -> Vec<(usize, Plain)> {
    let topics = server.ingest.topics();
    let topic = topics.iter().find(|t| t.name.as_str() == topic).unwrap();
    let mut out = Vec::new();
    for (index, id) in topic.partitions.iter().enumerate() {
        for batch in server.store.batches(*id) {
            let header = BatchHeader::parse(&batch).unwrap();
            let records = open(&batch, &header, 1 << 20).unwrap();
            for record in Records::new(&records, header.count) {
                let record = record.unwrap();
                let owned = |b: Option<&[u8]>| b.map(<[u8]>::to_vec);
                let headers = record.headers();
                out.push((
                    index,
                    (
                        owned(record.key),
                        owned(record.value),
                        header.base_timestamp_ms + record.timestamp_delta_ms,
                        headers.map(|h| (h.name.to_vec(), owned(h.value))).collect(),
                    ),
                ));
            }
        }
    }
    out
}

#[tokio::test]
async fn a_json_array_is_stored_record_by_record() {
    let server = server(|_, _, _| {}).await;
    let body = r#"[
        {"key": "21", "value": "text \u00fc", "timestamp": 5},
        {"key": "21", "value": {"a" : [1.50, "x y"]}, "timestamp": 3, "headers": {"h": "1", "h": null, "n": 7}},
        {"value_base64": "/+8A", "key_base64": "AAE=", "partition": 3.0, "timestamp": 0.9e1},
        {"key": 17, "value": null, "partition": 3, "timestamp": -1}
    ]"#;
    let (status, answer, _) = post(
        server.address,
        "/v1/topics/t/records",
        JSON,
        body.as_bytes(),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer,
        json!({"topic": "t", "records": 4, "offsets": [
            {"partition": 0, "base_offset": 0, "count": 2},
            {"partition": 3, "base_offset": 0, "count": 2},
        ]})
    );
    let some = |text: &str| Some(text.as_bytes().to_vec());
    assert_eq!(
        stored(&server, "t"),
        [
            (0, (some("21"), some("text ü"), 5, vec![])),
            (
                0,
                (
                    some("21"),
                    some(r#"{"a":[1.50,"x y"]}"#),
                    3,
                    vec![
                        (b"h".to_vec(), some("1")),
                        (b"h".to_vec(), None),
                        (b"n".to_vec(), some("7")),
                    ]
                )
            ),
            (3, (Some(vec![0, 1]), Some(vec![0xff, 0xef, 0]), 9, vec![])),
            (3, (some("17"), None, -1, vec![])),
        ]
    );
}

#[tokio::test]
async fn ndjson_and_raw_bodies_are_stored() {
    let server = server(|_, _, _| {}).await;
    let lines = b"{\"key\":\"21\",\"value\":1}\r\n\n{\"key\":\"21\",\"value\":2}";
    let (status, answer, _) = post(server.address, "/v1/topics/n/records", NDJSON, lines).await;
    assert_eq!((status, &answer["records"]), (200, &json!(2)));
    let raw = [0, 159, 146, 150];
    let path = "/v1/topics/r/records?key=21&timestamp=77";
    let (status, answer, _) = post(server.address, path, "", &raw).await;
    assert_eq!((status, &answer["records"]), (200, &json!(1)));
    assert_eq!(
        stored(&server, "r"),
        [(0, (Some(b"21".to_vec()), Some(raw.to_vec()), 77, vec![]))]
    );
}

#[tokio::test]
async fn records_without_a_key_stay_together_and_requests_take_turns() {
    let server = server(|_, _, _| {}).await;
    for _ in 0..4 {
        let body = br#"[{"value":1},{"value":2}]"#;
        let (status, answer, _) = post(server.address, "/v1/topics/t/records", JSON, body).await;
        assert_eq!(status, 200);
        assert_eq!(answer["offsets"].as_array().unwrap().len(), 1);
    }
    let partitions: Vec<usize> = stored(&server, "t").iter().map(|r| r.0).collect();
    assert_eq!(partitions, [0, 0, 1, 1, 2, 2, 3, 3]);
}

#[tokio::test]
async fn more_than_one_batch_holds_is_split_in_order() {
    let server = server(|_, policy, _| policy.default.max_batch = ByteSize(1000)).await;
    let body: Vec<Value> = (0..100)
        .map(|i| json!({"key": "21", "value": format!("{i:050}")}))
        .collect();
    let body = Value::from(body).to_string();
    let (status, answer, _) = post(
        server.address,
        "/v1/topics/t/records",
        JSON,
        body.as_bytes(),
    )
    .await;
    assert_eq!((status, &answer["records"]), (200, &json!(100)));
    assert!(answer["offsets"].as_array().unwrap().len() > 5);
    let values: Vec<Vec<u8>> = stored(&server, "t")
        .into_iter()
        .map(|r| r.1.1.unwrap())
        .collect();
    let sent: Vec<Vec<u8>> = (0..100).map(|i| format!("{i:050}").into_bytes()).collect();
    assert_eq!(values, sent);
}

#[tokio::test]
async fn a_request_with_a_fault_stores_nothing() {
    let server = server(|config, policy, _| {
        config.max_body_bytes = 10_000;
        policy.default.max_batch = ByteSize(2000);
    })
    .await;
    let long = format!("[{{\"value\":\"{}\"}}]", "x".repeat(3000));
    for (path, kind, body, status, text) in [
        (
            "/v1/topics/t/records",
            JSON,
            "",
            400,
            "record 0, byte 0: expected `{`",
        ),
        ("/v1/topics/t/records", JSON, "[]", 400, "no records"),
        ("/v1/topics/t/records", NDJSON, "\n", 400, "no records"),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1},{\"valu\":1}]",
            400,
            "record 1, byte 21: `valu`",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"key\":1}]",
            400,
            "without value",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[\n {\"value\":1,\"timestamp\":noon}]",
            400,
            "timestamp: not JSON: expected ident (line 2, column 2",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[\n {\"value\":1,\"timestamp\":[]}]",
            400,
            "record 0, byte 26: timestamp: expected milliseconds since 1970, such as 1700000000000; found [] (line 2, column 25)",
        ),
        (
            "/v1/topics/t/records",
            NDJSON,
            "{\"value\":1}\n{\"value\":1,\"key_base64\":\"?\"}",
            400,
            "line 2, byte 24: key_base64: not base64 (RFC 4648, section 4) (column 25)",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[1]",
            400,
            "a record is an object such as",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1}",
            400,
            "expected `,`",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1}]x",
            400,
            "more text",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1,\"value_base64\":\"\"}]",
            400,
            "second value",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value_base64\":\"?\"}]",
            400,
            "base64",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1,\"partition\":4}]",
            422,
            "accepted: 0 to 3",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1,\"partition\":-1}]",
            400,
            "partition number",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1,\"timestamp\":1.5}]",
            400,
            "milliseconds",
        ),
        (
            "/v1/topics/t/records",
            JSON,
            "[{\"value\":1,\"timestamp\":9223372036854775807},{\"value\":1,\"timestamp\":-9223372036854775808}]",
            400,
            "record 0: timestamp 9223372036854775807; accepted: -1",
        ),
        (
            "/v1/topics/t/records?timestamp=-2",
            "",
            "x",
            400,
            "timestamp -2; accepted: -1",
        ),
        (
            "/v1/topics/t/records",
            NDJSON,
            "{\"value\":1}\n{\"value\"}",
            400,
            "line 2",
        ),
        ("/v1/topics/t/records", JSON, &long, 413, "record 0 takes"),
        (
            "/v1/topics/t/records?key=1",
            JSON,
            "[{\"value\":1}]",
            422,
            "belong into the records",
        ),
        ("/v1/topics/t/records?ke=1", "", "x", 400, "ke"),
        (
            "/v1/topics/t/records",
            "content-encoding: gzip\r\n",
            "x",
            415,
            "content-encoding",
        ),
        ("/v1/topics/a%20b/records", "", "x", 400, "a b"),
        ("/v1/topics/__x/records", "", "x", 404, "__x"),
        (
            "/v1/topics/t/records",
            "",
            &"x".repeat(10_001),
            413,
            "10000 bytes",
        ),
    ] {
        let (found, answer, _) = post(server.address, path, kind, body.as_bytes()).await;
        assert_eq!(found, status, "{body:.60}: {answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(text), "{body:.60}: {error}");
    }
    let (status, _, _) = post(
        server.address,
        "/v1/topics/t/records",
        JSON,
        b"[{\"value\":\"\xff\"}]",
    )
    .await;
    assert_eq!(status, 400);
    assert!(stored(&server, "t").is_empty());
    assert_eq!(server.ingest.budget().used(), 0);
}

#[tokio::test]
async fn a_full_store_is_told_with_507_and_a_dead_one_with_503() {
    let server = server(|_, _, _| {}).await;
    for (error, status) in [
        (AppendError::Full("quota"), 507),
        (AppendError::Unavailable("disk".into()), 503),
    ] {
        server.store.set(Mode::Refuse(error, u32::MAX));
        let (found, answer, head) = post(server.address, "/v1/topics/t/records", "", b"x").await;
        assert_eq!(found, status);
        assert!(
            answer["error"].is_string() && head.contains("retry-after: 1"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn no_room_in_the_budget_is_told_with_429() {
    let server = server(|config, _, limits| {
        config.budget_wait = Duration::from_millis(20);
        limits.max_unsynced_bytes = 100;
    })
    .await;
    server.store.set(Mode::Hold);
    let held: tokio::task::JoinSet<_> = (0..2)
        .map(|_| {
            let address = server.address;
            async move {
                post(address, "/v1/topics/t/records", "", &[b'x'; 100])
                    .await
                    .0
            }
        })
        .collect();
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.store.held() < 2 && tokio::time::Instant::now() < limit {
        tokio::task::yield_now().await;
    }
    let (status, _, head) = post(server.address, "/v1/topics/t/records", "", b"x").await;
    assert_eq!(status, 429);
    assert!(head.contains("retry-after: 1"));
    server.store.release();
    assert_eq!(held.join_all().await, [200, 200]);
}

#[tokio::test]
async fn a_stop_answers_what_is_in_flight() {
    let mut server = server(|_, _, _| {}).await;
    server.store.set(Mode::Hold);
    let mut requests = tokio::task::JoinSet::new();
    let address = server.address;
    requests.spawn(async move { post(address, "/v1/topics/t/records", "", b"x").await.0 });
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while server.store.held() < 1 && tokio::time::Instant::now() < limit {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    server.store.release();
    assert_eq!(requests.join_next().await.unwrap().unwrap(), 200);
    server.task.join_next().await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_and_slow_ones_are_closed() {
    let server = server(|config, _, _| {
        config.max_connections = 1;
        config.body_grace = Duration::from_millis(50);
        config.min_bytes_per_s = u64::MAX;
    })
    .await;
    let slow = b"POST /v1/topics/t/records HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx";
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first.write_all(slow).await.unwrap();
    let mut answer = [0; 12];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    drop(first);
    let (status, _, _) = post(server.address, "/v1/topics/t/records", "", b"x").await;
    assert_eq!(status, 200);
}

/// One has never sent anything, one has had its answer, one sends the beginning of a head.
#[tokio::test]
async fn idle_connections_make_room_for_those_who_wait() {
    let server = server(|config, _, _| {
        config.max_connections = 4;
        config.min_idle = Duration::from_millis(1);
    })
    .await;
    post(server.address, "/v1/topics/t/records", "", b"before").await;
    let mut idle = Vec::new();
    let whole = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    for beginning in [&b""[..], whole, &whole[..20]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        if beginning == whole {
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
        idle.push(stream);
    }
    // not idle, though nothing comes on it
    let mut tail = TcpStream::connect(server.address).await.unwrap();
    tail.write_all(b"GET /v1/topics/t/tail HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    tail.read_exact(&mut answer).await.unwrap();
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(whole).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        busy.push(stream);
    }
    for mut stream in idle {
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await); // closed, or reset
    }
    assert!(server.stats.evicted.load(Ordering::Relaxed) >= 3);
    let (status, _, _) = post(server.address, "/v1/topics/t/records", "", b"after").await;
    assert_eq!(status, 200);
    let mut told = String::new();
    while !told.contains("after") {
        let mut some = [0; 1024];
        let count = tail.read(&mut some).await.unwrap();
        assert!(count > 0, "{told}");
        told.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
}

#[tokio::test]
async fn every_answer_is_json_and_ends_with_a_newline() {
    let server = server(|_, _, _| {}).await;
    for (request, status) in [
        ("GET /nowhere", 404),
        ("GET /v1/topics/t/records", 404),
        ("PUT /v1/topics/t/records", 405),
        ("POST /v1/topics/t/records", 400),
    ] {
        let request = format!(
            "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}content-length: 0\r\n\r\n"
        );
        let answer = send(server.address, request.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(body.ends_with("}\n"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(body["error"].is_string(), "{answer}");
    }
    let request = "POST /v1/topics/t/records HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    let answer = send(server.address, request.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("}\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn above_the_rate_the_next_request_is_told_when_to_come_back() {
    let server = server(|config, _, _| {
        config.quota = Arc::new(Quota::new(crate::quota::Limits {
            producer_byte_rate: Some(ByteSize::kib(1)),
            consumer_byte_rate: Some(ByteSize::kib(1)),
            ..crate::quota::Limits::default()
        }));
    })
    .await;
    let (path, body) = ("/v1/topics/t/records", vec![b'x'; 100 * 1024]);
    let retry = |head: &str| -> Option<u64> {
        let told = head
            .lines()
            .find_map(|line| line.strip_prefix("retry-after: "));
        told?.parse().ok()
    };
    let (status, answer, head) = post(server.address, path, "", &body).await;
    assert_eq!((status, retry(&head)), (200, None), "{answer}");
    let (status, answer, head) = post(server.address, path, "", &body).await;
    assert_eq!(status, 429, "{answer}");
    assert!((80..=99).contains(&retry(&head).unwrap()), "{head}");
    let partitions = stored(&server, "t");
    assert_eq!(partitions.len(), 1, "it was refused as a whole");
    let page = format!(
        "GET {path}?partition={} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        partitions[0].0
    );
    let page = page.as_bytes();
    assert!(send(server.address, page).await.starts_with("HTTP/1.1 200"));
    let refused = send(server.address, page).await;
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    assert!(retry(&refused).unwrap() >= 80, "{refused}");
    assert!(server.stats.throttled_ms.load(Ordering::Relaxed) >= 160_000);
}
