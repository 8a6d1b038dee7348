//! Is the other end there? A question of 16 bytes on the hub's UDP port, and an answer as long.
//!
//! ```text
//!  0        4                12        16
//!  ├ "+kq?" ├ token, u64     ├ 0       ┤   site → hub
//!  ├ "+kq!" ├ the same token ├ instance┤   hub → site
//! ```
//! QUIC's first packet takes 1,200 bytes at least; on a link that is down for minutes, and may be billed for
//! what is sent into it, that is too much to ask once or twice a second. An answer is no longer than its
//! question, so that nothing is amplified for a forged sender, and says nothing but that a hub's process is
//! there: `instance` is a random number of its start. An answer moves nobody to more than to try the real,
//! authenticated connection. The token keeps those out who cannot see the questions.
//!
//! The first byte has neither QUIC's form bit nor its fixed bit (RFC 9000, section 17), and the length is
//! below that of any QUIC packet (at least 21 bytes, section 10.3).

/// Length of a question and of an answer.
pub(super) const PROBE_LEN: usize = 16;
/// What one probe costs on the wire, one way, over IPv4.
pub const PROBE_IP_BYTES: u64 = 16 + 28;

const QUESTION: [u8; 4] = *b"+kq?";
const ANSWER: [u8; 4] = *b"+kq!";

/// What a hub answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Of the question.
    pub token: u64,
    /// Another one means that the hub's process started anew: it knows nothing of its old connections.
    pub instance: u32,
}

/// A question.
#[must_use]
pub(super) fn question(token: u64) -> [u8; PROBE_LEN] {
    put(QUESTION, token, 0)
}

/// The answer to a datagram, if it is a question.
pub(super) fn answer(datagram: &[u8], instance: u32) -> Option<[u8; PROBE_LEN]> {
    let (token, zero) = take(datagram, QUESTION)?;
    (zero == 0).then(|| put(ANSWER, token, instance))
}

/// Reads an answer.
pub(super) fn read_answer(datagram: &[u8]) -> Option<Echo> {
    take(datagram, ANSWER).map(|(token, instance)| Echo { token, instance })
}

fn put(kind: [u8; 4], token: u64, last: u32) -> [u8; PROBE_LEN] {
    let mut out = [0; PROBE_LEN];
    out[..4].copy_from_slice(&kind);
    out[4..12].copy_from_slice(&token.to_be_bytes());
    out[12..].copy_from_slice(&last.to_be_bytes());
    out
}

fn take(datagram: &[u8], kind: [u8; 4]) -> Option<(u64, u32)> {
    let datagram: &[u8; PROBE_LEN] = datagram.try_into().ok()?;
    let (token, rest) = datagram.strip_prefix(&kind)?.split_first_chunk()?;
    let last = rest.first_chunk()?;
    Some((u64::from_be_bytes(*token), u32::from_be_bytes(*last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_and_an_answer_is_not() {
        let asked = question(77);
        let told = answer(&asked, 5).unwrap();
        let echo = Echo {
            token: 77,
            instance: 5,
        };
        assert_eq!(read_answer(&told), Some(echo));
        // two hubs cannot be made to talk to each other without end
        assert_eq!(answer(&told, 6), None);
        assert_eq!(read_answer(&asked), None);
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let is_one = bytes.len() == PROBE_LEN && bytes.starts_with(b"+kq");
            assert!(is_one || (answer(bytes, 1), read_answer(bytes)) == (None, None));
        });
        // RFC 9000: the fixed bit and the form bit
        assert_eq!(question(0)[0] & 0xc0, 0);
    }
}
