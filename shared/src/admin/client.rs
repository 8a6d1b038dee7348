//! One GET to a node's admin listener, for `status`: enough of HTTP for our own server.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A status of ten thousand topics is some megabytes.
const MAX_RESPONSE: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens, or nobody answers.
    #[error("no answer from {address}: {error}: is it running?")]
    Io {
        address: SocketAddr,
        error: io::Error,
    },
    /// Something else listens there.
    #[error("{address} does not answer as a node does")]
    NotHttp { address: SocketAddr },
}

/// The status code and body of a page. Blocks.
///
/// # Errors
/// [`FetchError`].
pub fn fetch(
    address: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<(u16, String), FetchError> {
    let response =
        exchange(address, path, limit).map_err(|error| FetchError::Io { address, error })?;
    parse(&response).ok_or(FetchError::NotHttp { address })
}

fn exchange(address: SocketAddr, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&reachable(address), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // HTTP/1.0: the server closes after the answer, which needs no chunks.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(response)
}

/// A node that listens on all addresses is asked on loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, v4.port()))
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, v6.port()))
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => address,
    }
}

fn parse(response: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(response);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head
        .strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_is_an_answer() {
        assert_eq!(
            parse(b"HTTP/1.0 200 OK\r\na: b\r\n\r\nbody"),
            Some((200, "body".to_owned()))
        );
        for other in [
            &b""[..],
            b"SSH-2.0-x",
            b"HTTP/1.0 \r\n\r\n",
            b"HTTP/1.0 200 OK\r\n",
        ] {
            assert_eq!(parse(other), None);
        }
    }
}
