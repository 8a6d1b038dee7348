//! `ping` and `iperf3` on a link: what the laboratory is checked against.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::lab::{End, Lab};
use crate::wait;

const LIMIT: Duration = Duration::from_secs(10);

/// What `ping` saw.
#[derive(Debug, Clone, Copy)]
pub struct Ping {
    /// Mean round trip, milliseconds.
    pub mean_ms: f64,
    /// Percent without an answer.
    pub lost_percent: f64,
}

/// Sends so many echo requests from the site to the hub on the first link, one every 10 ms.
///
/// # Errors
/// When there is no `ping`, or no answer at all.
pub fn ping(lab: &Lab, count: u32) -> Result<Ping> {
    let mut command = lab.command(End::Site, "ping");
    command.args(["-q", "-n", "-i", "0.01", "-c", &count.to_string()]);
    command.arg(lab.link(0).address(End::Hub).to_string());
    let output = command.output().context("run ping (iputils-ping)")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    read_ping(&text).with_context(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("ping answered `{text}` `{error}`")
    })
}

/// UDP from the site to the hub at so many bits of payload a second: what arrived, in bits per second.
///
/// # Errors
/// When there is no `iperf3`.
pub fn udp_goodput(lab: &Lab, rate: u64, seconds: u32) -> Result<f64> {
    let rate = rate.to_string();
    iperf(lab, seconds, &["-u", "-l", "1400", "-b", &rate])
}

/// TCP from the site to the hub: what arrived, in bits per second of payload.
///
/// # Errors
/// When there is no `iperf3`.
pub fn tcp_goodput(lab: &Lab, seconds: u32) -> Result<f64> {
    iperf(lab, seconds, &[])
}

fn iperf(lab: &Lab, seconds: u32, options: &[&str]) -> Result<f64> {
    let hub = lab.link(0).address(End::Hub).to_string();
    let mut server = lab.command(End::Hub, "iperf3");
    server.args(["-s", "-1", "-J", "-B", &hub]);
    let server = Server(spawn(server).context("run iperf3")?);
    wait::until_true("iperf3 listens", LIMIT, || {
        let listening = lab.command(End::Hub, "ss").args(["-Hltn"]).output();
        listening.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(":5201"))
    })?;
    let mut client = lab.command(End::Site, "iperf3");
    // the first seconds do not count: nothing has arrived yet, or TCP is still growing
    client.args(["-c", &hub, "-J", "-O", "2", "-t", &seconds.to_string()]);
    let output = client.args(options).output().context("run iperf3")?;
    drop(server);
    let report: Value = serde_json::from_slice(&output.stdout).context("read iperf3's report")?;
    if let Some(error) = report.get("error") {
        bail!("iperf3: {error}");
    }
    // a sum over both ends for UDP, with what got lost apart
    let end = report.get("end").context("iperf3's report has no end")?;
    let figure = |sum: &str, key: &str| end.get(sum)?.get(key)?.as_f64();
    let received = figure("sum_received", "bits_per_second");
    received.context("iperf3's report has no rate")
}

fn spawn(mut command: Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command.spawn()?)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // it serves one client and ends; this is for the client that never came
        let _ended = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn read_ping(text: &str) -> Option<Ping> {
    let loss = text
        .split(", ")
        .find_map(|part| part.trim().strip_suffix("% packet loss"));
    let loss = loss.or_else(|| {
        let (before, _) = text.split_once("% packet loss")?;
        before.rsplit(' ').next()
    })?;
    let (_, times) = text.split_once("rtt min/avg/max/mdev = ")?;
    Some(Ping {
        mean_ms: times.split('/').nth(1)?.parse().ok()?,
        lost_percent: loss.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::read_ping;

    #[test]
    fn pings_report_is_read() {
        let text = "200 packets transmitted, 196 received, 2% packet loss, time 2388ms\n\
                    rtt min/avg/max/mdev = 100.1/100.4/103.0/0.3 ms, pipe 9\n";
        let ping = read_ping(text).unwrap();
        assert!((ping.mean_ms - 100.4).abs() < 1e-9);
        assert!((ping.lost_percent - 2.0).abs() < 1e-9);
        assert!(read_ping("100% packet loss").is_none());
    }
}
