//! The kernel's TCP as a transport.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
use system_tests::wan::{End, Lab, tcp};

use super::run::{LENGTH, PORT, Sample};

const CHUNK: usize = 64 << 10;

pub(super) fn run(lab: &Lab, controller: &str) -> Result<Sample> {
    let hub = SocketAddr::from((lab.link(0).address(End::Hub), PORT));
    let listener = lab.inside(End::Hub, || TcpListener::bind(hub))??;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let received = listener.accept().map(|(stream, _)| receive(stream));
            is_over.store(true, Ordering::Release);
            received.context("accept")?.context("receive")
        });
        let sent = lab.inside(End::Site, || send(hub, controller, &is_over))?;
        let received = receiver.join().ok().context("the receiver panicked")??;
        let sent = sent?;
        Ok(Sample {
            bytes: received,
            resent: sent.resent as f64 / sent.bytes.max(1) as f64,
        })
    })
}

fn send(hub: SocketAddr, controller: &str, is_over: &AtomicBool) -> Result<tcp::Sent> {
    let mut stream = TcpStream::connect(hub).context("connect")?;
    tcp::control(&stream, controller)
        .with_context(|| format!("no `{controller}` in this kernel: modprobe tcp_{controller}"))?;
    stream.set_write_timeout(Some(LENGTH * 2))?;
    let chunk = vec![7; CHUNK];
    // the receiver closes when its time is over
    while !is_over.load(Ordering::Acquire) && stream.write_all(&chunk).is_ok() {}
    tcp::sent(&stream).context("read what was sent")
}

fn receive(mut stream: TcpStream) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    stream.set_read_timeout(Some(LENGTH * 2))?;
    let mut received = stream.read(&mut buffer)? as u64;
    let first = Instant::now();
    while first.elapsed() < LENGTH {
        received += stream.read(&mut buffer)? as u64;
    }
    Ok(received)
}
