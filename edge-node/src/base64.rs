//! Base64 as RFC 4648 section 4 writes it. Plain code.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Encodes as standard base64, with padding.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut word = [0_u8; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes(word);
        for place in 0..4_usize {
            let digit = (word >> (18 - 6 * place)) & 0x3f;
            let is_padding = place > chunk.len();
            out.push(if is_padding {
                '='
            } else {
                char::from(DIGITS[digit as usize])
            });
        }
    }
    out
}

/// Decodes standard base64; the padding may be missing. `None` when a character doesn't belong there
/// or bits are left over.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if text.len() - digits.len() > 2
        || (text.len() != digits.len() && !text.len().is_multiple_of(4))
    {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut word = 0_u32;
        for digit in chunk {
            word = word << 6 | u32::from(sextet(*digit)?);
        }
        let [_, a, b, c] = (word << (6 * (4 - chunk.len()))).to_be_bytes();
        match (chunk.len(), b, c) {
            (4, _, _) => out.extend_from_slice(&[a, b, c]),
            (3, _, 0) => out.extend_from_slice(&[a, b]),
            (2, 0, 0) => out.push(a),
            _ => return None,
        }
    }
    Some(out)
}

fn sextet(digit: u8) -> Option<u8> {
    Some(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_rfc_4648_go_both_ways() {
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
            ("Zm9vYg", "foob"),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()), "{text}");
            if text.len().is_multiple_of(4) {
                assert_eq!(encode(bytes.as_bytes()), text);
            }
        }
        assert_eq!(decode("/+8A"), Some(vec![0xff, 0xef, 0x00]));
        assert_eq!(encode(&[0xff, 0xef, 0x00]), "/+8A");
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in [
            "Z", "Zg=", "Zh==", "Zm9=", "Zm9v=", "====", "Zm 9", "_-8A", "ü",
        ] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
