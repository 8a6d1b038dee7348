//! Walks over JSON text and hands out the text of its values, so that numbers stay as they were
//! written (a parsed 0.1e400 or 2^64 + 1 would not) and no tree is built. Plain code.

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// What is wrong with the text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Invalid {
    /// Byte offset in the body.
    pub at: usize,
    /// For people.
    pub what: String,
}

/// A place in JSON text.
#[derive(Debug, Clone, Copy)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `text`.
    #[must_use]
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// An error at this place.
    pub fn invalid(&self, what: impl Into<String>) -> Invalid {
        Invalid {
            at: self.at,
            what: what.into(),
        }
    }

    /// The same place, which stays where it is.
    #[must_use]
    pub fn here(&self) -> Self {
        *self
    }

    /// The next byte that is not white space.
    pub fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let blank = rest.iter().take_while(|b| is_blank(**b)).count();
        self.at += blank;
        rest.get(blank).copied()
    }

    /// Steps over `byte` when it is next.
    pub fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Steps over `byte`.
    ///
    /// # Errors
    /// [`Invalid`] when something else is next.
    pub fn expect(&mut self, byte: u8) -> Result<(), Invalid> {
        if self.skip(byte) {
            Ok(())
        } else {
            Err(self.invalid(format!("expected `{}`", char::from(byte))))
        }
    }

    /// The text of the next value, whatever it is.
    ///
    /// # Errors
    /// [`Invalid`] when it is not JSON.
    pub fn value(&mut self) -> Result<&'a str, Invalid> {
        self.peek();
        let rest = self.text.get(self.at..).unwrap_or("");
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        match values.next() {
            None => Err(self.invalid("expected a value")),
            Some(Err(error)) => Err(self.not_json(rest, &error)),
            Some(Ok(_)) => {
                let len = values.byte_offset();
                self.at += len;
                Ok(rest.get(..len).unwrap_or(""))
            }
        }
    }

    /// What is wrong with `rest`, at its place in the whole text.
    fn not_json(&self, rest: &str, error: &serde_json::Error) -> Invalid {
        // lines and columns are counted from 1, within the value
        let lines = rest
            .split_inclusive('\n')
            .take(error.line().saturating_sub(1));
        let in_rest = lines.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        Invalid {
            at: self.at + in_rest.min(rest.len()),
            what: format!("not JSON: {}", text.strip_suffix(&place).unwrap_or(&text)),
        }
    }

    /// The next value, which must be a string, unescaped.
    ///
    /// # Errors
    /// [`Invalid`].
    pub fn string(&mut self) -> Result<Cow<'a, str>, Invalid> {
        if self.peek() != Some(b'"') {
            return Err(self.invalid("expected a string"));
        }
        let at = self.at;
        let raw = self.value()?;
        unescape(raw).map_err(|what| Invalid { at, what })
    }

    /// Calls `member` at the value of each member of an object, with its name.
    ///
    /// # Errors
    /// [`Invalid`], the text's or that of `member`.
    pub fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, Cow<'a, str>) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        self.expect(b'{')?;
        if self.skip(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':')?;
            member(self, name)?;
            if self.skip(b'}') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }
}

/// Line and column of a byte offset, for an editor: both from 1, columns in characters.
#[must_use]
pub fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    let line_start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let is_first_of_char = |b: &&u8| **b & 0xc0 != 0x80;
    let column = before[line_start..].iter().filter(is_first_of_char).count() + 1;
    (line, column)
}

/// A value's text as a record holds it: a string's characters, anything else as compact JSON.
///
/// # Errors
/// A text for people when an escape is not one.
pub fn plain(raw: &str) -> Result<Cow<'_, str>, String> {
    if raw.starts_with('"') {
        unescape(raw)
    } else {
        Ok(compact(raw))
    }
}

fn unescape(raw: &str) -> Result<Cow<'_, str>, String> {
    let inner = raw.strip_prefix('"').and_then(|r| r.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.contains('\\') => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str::<String>(raw)
            .map(Cow::Owned)
            .map_err(|error| format!("not a string: {error}")),
    }
}

/// Whether it is one JSON value with no white space around its tokens.
#[must_use]
pub fn is_compact(text: &str) -> bool {
    let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
    is_json && compact(text).len() == text.len()
}

/// How deep arrays and objects of valid JSON lie in one another.
#[must_use]
pub fn depth(text: &str) -> usize {
    let (mut is_string, mut is_escaped) = (false, false);
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match (is_string, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => is_string = !is_string,
            (false, b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Valid JSON without the white space around its tokens.
fn compact(raw: &str) -> Cow<'_, str> {
    if !raw.bytes().any(is_blank) {
        return Cow::Borrowed(raw);
    }
    let (mut is_string, mut is_escaped) = (false, false);
    let mut out = raw.to_owned();
    out.retain(|c| {
        let was_string = is_string;
        is_string = if is_string {
            is_escaped || c != '"'
        } else {
            c == '"'
        };
        is_escaped = was_string && !is_escaped && c == '\\';
        was_string || !matches!(c, ' ' | '\t' | '\n' | '\r')
    });
    Cow::Owned(out)
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_as_they_were_written() {
        let text =
            r#" [ 1.50 , 123456789012345678901234567890,{"a" : [ 1 , "x y\" z" ] } ,"s\n", null]"#;
        let mut cursor = Cursor::new(text);
        cursor.expect(b'[').unwrap();
        let mut found = Vec::new();
        loop {
            found.push(plain(cursor.value().unwrap()).unwrap().into_owned());
            if !cursor.skip(b',') {
                break;
            }
        }
        cursor.expect(b']').unwrap();
        assert_eq!(cursor.peek(), None);
        assert_eq!(
            found,
            [
                "1.50",
                "123456789012345678901234567890",
                r#"{"a":[1,"x y\" z"]}"#,
                "s\n",
                "null"
            ]
        );
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for text in ["", "tru", "{\"a\"", "\"\\x\"", "01x", "nul", "\"\u{1}\""] {
            assert!(Cursor::new(text).value().is_err(), "{text}");
        }
        let mut cursor = Cursor::new("{\"a\": 1 ; }");
        let error = cursor.object(|c, _| c.value().map(drop)).unwrap_err();
        assert_eq!(error.to_string(), "byte 8: expected `,`");
    }

    #[test]
    fn a_place_is_that_of_the_whole_text() {
        let text = "[1,\n {\"ä\": tru }]";
        let mut cursor = Cursor::new(text);
        cursor.expect(b'[').unwrap();
        cursor.value().unwrap();
        cursor.expect(b',').unwrap();
        let error = cursor.object(|c, _| c.value().map(drop)).unwrap_err();
        assert_eq!(error.what, "not JSON: expected ident");
        assert_eq!(place(text, error.at), (2, 11), "{error}");
        assert_eq!(place("", 9), (1, 1));
    }

    #[test]
    fn deep_nesting_does_not_use_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert!(Cursor::new(&deep).value().is_err());
        let closed = format!("{deep}{}", "]".repeat(1_000_000));
        assert!(Cursor::new(&closed).value().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn compact_text_is_the_same_value(value in arb()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let compact = compact(&pretty);
            proptest::prop_assert_eq!(&compact, &value.to_string());
        }
    }

    fn arb() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<String>().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }
}
