//! Reading over HTTP, on a socket.

use super::*;
use crate::access::{Rules, TokenHash};
use crate::config::{AccessConfig, UserConfig};
use crate::seldom::capture::Lines;

async fn get(server: &Server, path: &str) -> (u16, Value, String) {
    get_with(server, path, "").await
}

async fn get_with(server: &Server, path: &str, headers: &str) -> (u16, Value, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let answer = send(server.address, request.as_bytes()).await;
    let status = answer.get(9..12).unwrap().parse().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let json = serde_json::from_str(body).unwrap_or(Value::Null);
    (status, json, head.to_owned())
}

/// Stores a record for each value, in one partition.
async fn store(server: &Server, topic: &str, partition: u32, values: &[Value]) {
    let records: Vec<Value> = values
        .iter()
        .map(|value| json!({"value": value, "partition": partition, "timestamp": 7}))
        .collect();
    let body = Value::from(records).to_string();
    let path = format!("/v1/topics/{topic}/records");
    let (status, answer, _) = post(server.address, &path, JSON, body.as_bytes()).await;
    assert_eq!(status, 200, "{answer}");
}

fn of_one_partition(_: &mut HttpConfig, policy: &mut TopicsConfig, _: &mut IngestLimits) {
    policy.default.partitions = 1;
}

#[tokio::test]
async fn pages_follow_one_another_to_the_end() {
    let server = server(of_one_partition).await;
    let values: Vec<Value> = (0..25).map(Value::from).collect();
    store(&server, "t", 0, &values[..10]).await;
    store(&server, "t", 0, &values[10..]).await;
    let mut found = Vec::new();
    let mut offset = "earliest".to_owned();
    for _ in 0..4 {
        let path = format!("/v1/topics/t/records?max=7&offset={offset}");
        let (status, page, head) = get(&server, &path).await;
        assert_eq!(status, 200, "{page}");
        assert!(
            head.contains("content-length: ") && head.contains("no-store"),
            "{head}"
        );
        assert_eq!((&page["start"], &page["end"]), (&json!(0), &json!(25)));
        found.extend(page["records"].as_array().unwrap().clone());
        offset = page["next_offset"].to_string();
    }
    let sent: Vec<Value> = (0..25)
        .map(|i| json!({"offset": i, "timestamp": 7, "key": null, "value": i}))
        .collect();
    assert_eq!(found, sent);
    assert_eq!(offset, "25");
}

#[tokio::test]
async fn a_page_ends_with_the_record_that_passes_its_bytes() {
    let server = server(of_one_partition).await;
    let values = vec![json!("x".repeat(1000)); 5];
    store(&server, "t", 0, &values).await;
    for (bytes, count) in [(1, 1), (1500, 2), (1_000_000, 5)] {
        let path = format!("/v1/topics/t/records?max_bytes={bytes}");
        let (_, page, _) = get(&server, &path).await;
        assert_eq!(page["records"].as_array().unwrap().len(), count, "{bytes}");
    }
}

#[tokio::test]
async fn who_waits_gets_the_record_when_it_comes() {
    let server = Arc::new(server(of_one_partition).await);
    store(&server, "t", 0, &[json!(1)]).await;
    let mut waiting = tokio::task::JoinSet::new();
    let reader = server.clone();
    waiting.spawn(async move {
        get(&reader, "/v1/topics/t/records?offset=latest&wait=30s")
            .await
            .1
    });
    while server.stats.requests.load(Ordering::Relaxed) < 2 {
        tokio::task::yield_now().await;
    }
    store(&server, "another", 0, &[json!(0)]).await;
    assert!(waiting.try_join_next().is_none());
    store(&server, "t", 0, &[json!(2)]).await;
    let page = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(page["records"][0]["value"], json!(2));
    let (status, page, _) = get(&server, "/v1/topics/t/records?offset=2&wait=1ms").await;
    assert_eq!((status, &page["records"]), (200, &json!([])));
}

#[tokio::test]
async fn topics_are_listed_with_their_ends() {
    let server = server(|_, policy, _| policy.default.partitions = 2).await;
    store(&server, "b", 1, &[json!(1), json!(2)]).await;
    store(&server, "a", 0, &[json!(1)]).await;
    let a = json!({"topic": "a", "partitions": [
        {"partition": 0, "start": 0, "end": 1}, {"partition": 1, "start": 0, "end": 0},
    ]});
    let (status, list, _) = get(&server, "/v1/topics").await;
    assert_eq!((status, &list["topics"][0]), (200, &a));
    assert_eq!(list["topics"][1]["partitions"][1]["end"], json!(2));
    assert_eq!(get(&server, "/v1/topics/a").await.1, a);
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_with_a_reason() {
    let server = server(|_, policy, _| policy.default.partitions = 2).await;
    store(&server, "t", 0, &[json!(1)]).await;
    for (path, status, text) in [
        ("t/records", 422, "say which, partition=0 to 1"),
        ("t/records?partition=2", 404, "accepted: 0 to 1"),
        ("t/records?partition=x", 400, "partition"),
        ("t/records?partition=0&offset=2", 416, "beyond the end, 1"),
        ("t/records?partition=0&offset=-1", 400, "offset = \"-1\""),
        ("t/records?partition=0&offset=%2B1", 400, "offset = \"+1\""),
        (
            "t/records?partition=0&max=0",
            400,
            "max = \"0\"; accepted: 1 to 10000",
        ),
        (
            "t/records?partition=0&max_bytes=1048577",
            400,
            "1 to 1048576",
        ),
        ("t/records?partition=0&wait=1", 400, "wait = \"1\""),
        ("t/records?partition=0&form=x", 400, "form"),
        ("nowhere/records", 404, "topic `nowhere` does not exist"),
        ("a%20b/records", 400, "a b"),
        ("%ff/records", 400, "UTF-8"),
        ("nowhere", 404, "does not exist"),
        ("nowhere/tail", 404, "does not exist"),
        ("t/tail?offset=2", 416, "beyond the end"),
        ("t/tail?offset=x", 400, "offset"),
    ] {
        let (found, answer, _) = get(&server, &format!("/v1/topics/{path}")).await;
        assert_eq!(found, status, "{path}: {answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(text), "{path}: {error}");
    }
    assert_eq!(server.ingest.topics().len(), 1, "reading makes no topics");
}

/// A tail, read line by line.
struct Reader {
    stream: TcpStream,
    text: String,
}

impl Reader {
    async fn open(server: &Server, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reader = Self {
            stream,
            text: String::new(),
        };
        let head = reader.until("\r\n\r\n").await;
        assert!(
            head.contains("200 OK") && head.contains("text/event-stream"),
            "{head}"
        );
        reader.until("retry: 2000\n\n").await;
        reader
    }

    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let mut buffer = [0; 4096];
            let limit = Duration::from_secs(20);
            let read = tokio::time::timeout(limit, self.stream.read(&mut buffer));
            let count = read.await.expect("in time").unwrap();
            assert!(count > 0, "the tail ended after {}", self.text);
            self.text
                .push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
    }

    /// The next event: its id and its data.
    async fn event(&mut self) -> (String, Value) {
        self.until("id: ").await;
        let id = self.until("\n").await.trim_end().to_owned();
        self.until("data: ").await;
        (id, serde_json::from_str(&self.until("\n").await).unwrap())
    }
}

#[tokio::test]
async fn a_tail_tells_records_as_they_come_and_resumes() {
    let server = server(|_, policy, _| policy.default.partitions = 2).await;
    store(&server, "t", 0, &[json!(0)]).await;
    let mut reader = Reader::open(&server, "/v1/topics/t/tail", "").await;
    store(&server, "t", 1, &[json!(1), json!(2)]).await;
    store(&server, "t", 0, &[json!(3)]).await;
    let (id, first) = reader.event().await;
    assert_eq!(id, "0:1,1:1");
    let record = json!({"partition": 1, "offset": 0, "timestamp": 7, "key": null, "value": 1});
    assert_eq!(first, record);
    assert_eq!(reader.event().await.1["value"], json!(2));
    let (last, data) = reader.event().await;
    assert_eq!((&*last, &data["value"]), ("0:2,1:2", &json!(3)));
    drop(reader);

    let header = format!("last-event-id: {id}\r\n");
    let mut again = Reader::open(&server, "/v1/topics/t/tail", &header).await;
    let mut rest = [again.event().await.1, again.event().await.1];
    rest.sort_by_key(|record| record["partition"].as_u64());
    assert_eq!(
        (&rest[0]["value"], &rest[1]["value"]),
        (&json!(3), &json!(2))
    );

    let mut one = Reader::open(&server, "/v1/topics/t/tail?partition=0&offset=earliest", "").await;
    assert_eq!(
        one.event().await,
        (
            "0:1".to_owned(),
            json!({
                "partition": 0, "offset": 0, "timestamp": 7, "key": null, "value": 0,
            })
        )
    );
}

#[tokio::test]
async fn tails_beyond_the_limit_are_refused_until_one_ends() {
    let server = server(|config, _, _| {
        config.max_tails = 1;
        config.heartbeat = Duration::from_millis(5);
    })
    .await;
    store(&server, "t", 0, &[json!(0)]).await;
    let mut reader = Reader::open(&server, "/v1/topics/t/tail", "").await;
    reader.until(":\n\n").await;
    let (status, answer, head) = get(&server, "/v1/topics/t/tail").await;
    assert_eq!(status, 429, "{answer}");
    assert!(head.contains("retry-after: 1"), "{head}");
    assert_eq!(server.stats.tails.load(Ordering::Relaxed), 1);
    drop(reader);
    while server.stats.tails.load(Ordering::Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
    Reader::open(&server, "/v1/topics/t/tail", "").await;
}

#[tokio::test]
async fn a_stop_ends_tails_and_waits_at_once() {
    let mut server = server(of_one_partition).await;
    store(&server, "t", 0, &[json!(0)]).await;
    let mut reader = Reader::open(&server, "/v1/topics/t/tail", "").await;
    let mut waiting = TcpStream::connect(server.address).await.unwrap();
    let request = "GET /v1/topics/t/records?offset=1&wait=20s HTTP/1.1\r\nhost: x\r\n\r\n";
    waiting.write_all(request.as_bytes()).await.unwrap();
    while server.stats.requests.load(Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    server.stop.cancel();
    reader.until("0\r\n\r\n").await;
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.contains("200 OK") && answer.contains("\"records\":[]"),
        "{answer}"
    );
    server.task.join_next().await.unwrap().unwrap();
}

/// A client that takes nothing is let go, and what it held is free again.
#[tokio::test]
async fn a_page_that_nobody_takes_is_given_up() {
    let server = server(|config, policy, _| {
        of_one_partition(config, policy, &mut IngestLimits::default());
        config.max_body_bytes = 64 << 20;
        config.send_grace = Duration::from_millis(50);
        config.min_bytes_per_s = u64::MAX;
    })
    .await;
    let values = vec![json!("x".repeat(100_000)); 11];
    store(&server, "t", 0, &values).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut slow = socket.connect(server.address).await.unwrap();
    // more than the socket's buffers hold, whatever they grow to
    let request = "GET /v1/topics/t/records?max_bytes=1048576 HTTP/1.1\r\nhost: x\r\n\r\n";
    for _ in 0..20 {
        slow.write_all(request.as_bytes()).await.unwrap();
    }
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while server.stats.open.load(Ordering::Relaxed) > 0 {
        assert!(tokio::time::Instant::now() < limit, "still open");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_document_lists_every_route_and_every_method() {
    let server = server(|_, _, _| {}).await;
    let (status, document, _) = get(&server, "/openapi.json").await;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    assert_eq!(document["security"], json!([{}, {"token": []}]));
    assert_eq!(
        document["info"]["version"],
        json!(env!("CARGO_PKG_VERSION"))
    );
    let paths = document["paths"].as_object().unwrap();
    let mut told: Vec<&String> = paths.keys().collect();
    told.sort();
    let mut served = routes().map(|(path, _)| path);
    served.sort_unstable();
    assert_eq!(told, served);
    for (path, operations) in paths {
        let path = path.replace("{topic}", "t");
        let request = format!("DELETE {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = send(server.address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{path}: {answer}");
        let allowed = answer
            .lines()
            .find_map(|line| line.strip_prefix("allow: "))
            .unwrap();
        let mut allowed: Vec<String> = allowed
            .split(',')
            .map(|method| method.trim().to_ascii_lowercase())
            .filter(|method| method != "head")
            .collect();
        allowed.sort();
        let methods = ["get", "post", "put", "patch", "delete"];
        let told: Vec<_> = methods
            .into_iter()
            .filter(|m| operations.get(m).is_some())
            .collect();
        assert_eq!(allowed, told, "{path}");
    }
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}

fn user(name: &str, token: &str, produce: &str, consume: &str) -> UserConfig {
    UserConfig {
        name: name.to_owned(),
        credentials: Vec::new(),
        password_file: None,
        tokens: vec![TokenHash::of(token)],
        common_name: None,
        rules: Rules {
            produce: vec![produce.parse().unwrap()],
            consume: vec![consume.parse().unwrap()],
            ..Rules::none()
        },
    }
}

#[tokio::test]
async fn a_token_opens_what_its_rules_name() {
    let config = AccessConfig {
        anonymous: None,
        users: vec![
            user("till", "t0", "sales.*", "prices"),
            user("office", "t1", "prices", "*"),
        ],
    };
    let lines = Lines::new();
    let server = server_for(Access::new(&config).unwrap(), of_one_partition).await;
    let token = |token: &str| format!("authorization: Bearer {token}\r\n");
    let (till, office) = (token("t0"), token("t1"));
    let record = b"x";
    for (path, headers, status) in [
        ("sales.day/records", &*till, 200),
        ("prices/records", &*till, 403),
        ("prices/records", &*office, 200),
        ("nowhere/records", &*till, 403),
        ("sales.day/records", "", 401),
    ] {
        let path = format!("/v1/topics/{path}");
        let (found, answer, head) = post(server.address, &path, headers, record).await;
        assert_eq!(found, status, "{path} {headers}: {answer}");
        assert_eq!(head.contains("www-authenticate: Bearer"), status == 401);
    }
    for (path, headers, status) in [
        ("/prices/records", &*till, 200),
        ("/sales.day/records", &*till, 403),
        ("/sales.day/records", &*office, 200),
        ("/sales.day", &*till, 200),
        ("/nowhere", &*till, 403),
        ("/nowhere/tail", &*till, 403),
        ("/prices/records", "", 401),
        ("/prices/tail", "", 401),
        ("/prices", "", 401),
        ("", "", 401),
        ("", &*token("t2"), 401),
        ("", "authorization: Basic dDA6\r\n", 401),
        ("", "authorization: bearer t1\r\n", 200),
    ] {
        let path = format!("/v1/topics{path}");
        let (found, answer, _) = get_with(&server, &path, headers).await;
        assert_eq!(found, status, "{path} {headers}: {answer}");
    }
    let told = lines.with("Login refused");
    assert_eq!(told.len(), 1, "seldom: {told:?}");
    for part in ["http", "127.0.0.1", "no token"] {
        assert!(told[0].contains(part), "{part}: {told:?}");
    }
    let seen = |list: Value| -> Vec<Value> {
        let topics = list["topics"].as_array().unwrap();
        topics.iter().map(|topic| topic["topic"].clone()).collect()
    };
    let all = get_with(&server, "/v1/topics", &till).await.1;
    assert_eq!(seen(all), ["prices", "sales.day"]);
    server.ingest.topic("office-only", true).await.unwrap();
    let all = get_with(&server, "/v1/topics", &till).await.1;
    assert_eq!(seen(all), ["prices", "sales.day"]);
    let (_, document, _) = get(&server, "/openapi.json").await;
    assert_eq!(document["security"], json!([{"token": []}]));
}
