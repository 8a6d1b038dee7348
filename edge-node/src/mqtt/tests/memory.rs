//! What clients make the node keep has its bounds, and none of them holds up the others for long.

use super::*;

/// Clients that acknowledge nothing and take nothing have all the room there is; nothing is lost to anybody, and each gets
/// it in order.
#[tokio::test]
async fn large_messages_wait_in_the_log_when_the_node_has_no_room_for_them() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.delivery_bytes = 128 * 1024;
        config.max_inflight = 1;
    })
    .await;
    let mut subscribers = Vec::new();
    for id in ["stalled", "another", "lively"] {
        let mut subscriber = Client::new(node.address, lasting(id, 1000)).await;
        subscriber.subscribe("t", Qos::AtLeastOnce).await;
        subscribers.push(subscriber);
    }
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    let text = |number: u16| format!("{number}{}", "x".repeat(50 * 1024));
    for number in 1..=8 {
        let (qos, payload) = (Qos::AtLeastOnce, text(number));
        publisher.publish("t", &payload, qos, number).await;
        publisher.expect_acks(qos, number).await;
    }
    // the last first: the others have not acknowledged anything
    while let Some(mut subscriber) = subscribers.pop() {
        for number in 1..=8 {
            assert!(
                subscriber.message().await.payload == text(number),
                "{number}"
            );
        }
    }
}

/// More than there is room for at a time.
#[tokio::test]
async fn all_that_was_not_acknowledged_is_sent_again_in_order() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.delivery_bytes = 64 * 1024;
    })
    .await;
    let mut subscriber = Client::new(node.address, lasting("s", 1000)).await;
    subscriber.subscribe("t", Qos::ExactlyOnce).await;
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    let text = |number: u16| format!("{number}{}", "x".repeat(200 * 1024));
    let mut sent = Vec::new();
    for number in 1..=8 {
        let qos = [Qos::AtLeastOnce, Qos::ExactlyOnce][usize::from(number % 2)];
        publisher.publish("t", &text(number), qos, number).await;
        publisher.expect_acks(qos, number).await;
        sent.push(subscriber.message_and_id().await.1);
    }
    drop(subscriber);
    let mut subscriber = Client::new(node.address, lasting("s", 1000)).await;
    for (number, id) in (1..=8).zip(sent) {
        let (message, same_id) = subscriber.message_and_id().await;
        assert!(message.payload == text(number) && same_id == id, "{number}");
    }
}

#[tokio::test]
async fn unfinished_packets_have_their_bound_and_do_not_hold_up_others_for_long() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.partial_bytes = 64 * 1024;
        config.patience = Duration::from_millis(1);
    })
    .await;
    let large = "x".repeat(90 * 1024);
    let mut idlers = Vec::new();
    for id in ["a", "b", "c"] {
        let mut idler = Client::new(node.address, connect(Version::V5, id)).await;
        // a PUBLISH of 100 KiB, of which not all comes
        idler.send(&[0x30, 0x80, 0xa0, 0x06, 0, 1, b't', 0]).await;
        idler.send_some(large.as_bytes()).await;
        idlers.push(idler);
    }
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    publisher.publish("t", &large, Qos::AtLeastOnce, 1).await;
    publisher.expect_acks(Qos::AtLeastOnce, 1).await;
    let failed = node.stats.failed.load(Ordering::Relaxed);
    assert!(failed > 0, "somebody had to make room");
}

#[tokio::test]
async fn a_client_that_has_not_said_who_it_is_holds_up_nobody_for_long() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.partial_bytes = 64 * 1024;
        config.patience = Duration::from_millis(1);
        config.connect_timeout = Duration::from_secs(1_000);
    })
    .await;
    let large = "x".repeat(90 * 1024);
    let mut strangers = Vec::new();
    for _ in 0..3 {
        let mut stranger = Client::stranger(node.address, Version::V5).await;
        // a CONNECT of 100 KiB, of which not all comes
        stranger.send(&[0x10, 0x80, 0xa0, 0x06]).await;
        stranger.send_some(large.as_bytes()).await;
        strangers.push(stranger);
    }
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    publisher.publish("t", &large, Qos::AtLeastOnce, 1).await;
    publisher.expect_acks(Qos::AtLeastOnce, 1).await;
}

/// It would wait for a minute, and disconnecting its client would only bring it back.
#[tokio::test]
async fn a_publish_that_waits_for_its_rate_is_taken_when_others_wait_for_what_it_holds() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.partial_bytes = 64 * 1024;
        config.publish_rate = Some(1);
        config.patience = Duration::from_millis(1);
    })
    .await;
    let large = "x".repeat(90 * 1024);
    let mut held = Client::new(node.address, connect(Version::V5, "held")).await;
    for _ in 0..60 {
        held.publish("t", "x", Qos::AtMostOnce, 0).await;
    }
    held.publish("t", &large, Qos::AtLeastOnce, 1).await;
    let came = || node.stats.bytes_in.load(Ordering::Relaxed) > 90 * 1024;
    client::until("it is there", came).await;
    let mut other = Client::new(node.address, connect(Version::V5, "other")).await;
    other.publish("t", &large, Qos::AtLeastOnce, 1).await;
    other.expect_acks(Qos::AtLeastOnce, 1).await;
    held.expect_acks(Qos::AtLeastOnce, 1).await;
    assert_eq!(node.stats.failed.load(Ordering::Relaxed), 0);
}

/// Nobody waits for it: what finds no room is lost.
#[tokio::test]
async fn messages_of_qos_0_get_the_room_of_those_that_are_not_taken() {
    let node = node_on(new_store(), Vec::new(), |config| {
        config.delivery_bytes = 128 * 1024;
        config.patience = Duration::from_millis(1);
    })
    .await;
    let mut idle = Client::new(node.address, connect(Version::V5, "idle")).await;
    idle.subscribe("idle", Qos::AtMostOnce).await;
    let mut publisher = Client::new(node.address, connect(Version::V5, "p")).await;
    let text = "x".repeat(60 * 1024);
    let sent = || node.stats.deliveries.load(Ordering::Relaxed);
    let (mut before, mut in_a_row) = (0, 0);
    // first the buffers of the system take some
    for _ in 0..1_000 {
        publisher.publish("idle", &text, Qos::AtLeastOnce, 1).await;
        publisher.expect_acks(Qos::AtLeastOnce, 1).await;
        in_a_row = if sent() == before { in_a_row + 1 } else { 0 };
        before = sent();
        if in_a_row == 20 {
            break;
        }
    }
    assert_eq!(in_a_row, 20, "it is stuck, and its queue has all the room");
    let mut lively = Client::new(node.address, connect(Version::V5, "lively")).await;
    lively.subscribe("lively", Qos::AtMostOnce).await;
    let delivered = async {
        loop {
            publisher
                .publish("lively", &text, Qos::AtLeastOnce, 1)
                .await;
            publisher.expect_acks(Qos::AtLeastOnce, 1).await;
            let message = tokio::time::timeout(Duration::from_millis(200), lively.message());
            if message.await.is_ok() {
                break;
            }
        }
    };
    let limit = Duration::from_secs(20);
    let delivered = tokio::time::timeout(limit, delivered).await;
    assert!(delivered.is_ok(), "all are lost");
}
