//! The properties of MQTT 5 (section 2.2.2).

use anyhow::{Context as _, Result, bail};

use super::packet::{Bytes, put_bytes, put_variable};

/// Identifiers that the scenarios name.
pub mod id {
    pub const PAYLOAD_FORMAT: u8 = 1;
    pub const MESSAGE_EXPIRY: u8 = 2;
    pub const CONTENT_TYPE: u8 = 3;
    pub const RESPONSE_TOPIC: u8 = 8;
    pub const CORRELATION_DATA: u8 = 9;
    pub const SUBSCRIPTION_ID: u8 = 11;
    pub const SESSION_EXPIRY: u8 = 17;
    pub const ASSIGNED_CLIENT_ID: u8 = 18;
    pub const SERVER_KEEP_ALIVE: u8 = 19;
    pub const WILL_DELAY: u8 = 24;
    pub const REASON_STRING: u8 = 31;
    pub const RECEIVE_MAXIMUM: u8 = 33;
    pub const TOPIC_ALIAS_MAXIMUM: u8 = 34;
    pub const TOPIC_ALIAS: u8 = 35;
    pub const USER: u8 = 38;
    pub const MAXIMUM_PACKET_SIZE: u8 = 39;
}

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    Byte(u8),
    Two(u16),
    Four(u32),
    Variable(u32),
    Text(String),
    Binary(Vec<u8>),
    Pair(String, String),
}

/// Properties in the order in which they are sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(pub Vec<(u8, Property)>);

impl Properties {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, id: u8, value: Property) -> Self {
        self.0.push((id, value));
        self
    }

    /// With one more of two bytes.
    #[must_use]
    pub fn two(self, id: u8, value: u16) -> Self {
        self.with(id, Property::Two(value))
    }

    /// With one more of four bytes.
    #[must_use]
    pub fn four(self, id: u8, value: u32) -> Self {
        self.with(id, Property::Four(value))
    }

    /// With a user property.
    #[must_use]
    pub fn user(self, name: &str, value: &str) -> Self {
        self.with(id::USER, Property::Pair(name.to_owned(), value.to_owned()))
    }

    /// A property that is a number.
    #[must_use]
    pub fn number(&self, id: u8) -> Option<u32> {
        self.numbers(id).first().copied()
    }

    /// All of one id that are numbers.
    #[must_use]
    pub fn numbers(&self, id: u8) -> Vec<u32> {
        let number = |(found, value): &(u8, Property)| match value {
            Property::Byte(value) if *found == id => Some(u32::from(*value)),
            Property::Two(value) if *found == id => Some(u32::from(*value)),
            Property::Four(value) | Property::Variable(value) if *found == id => Some(*value),
            Property::Byte(_)
            | Property::Two(_)
            | Property::Four(_)
            | Property::Variable(_)
            | Property::Text(_)
            | Property::Binary(_)
            | Property::Pair(..) => None,
        };
        self.0.iter().filter_map(number).collect()
    }

    /// A property.
    #[must_use]
    pub fn find(&self, id: u8) -> Option<&Property> {
        let found = self.0.iter().find(|(found, _)| *found == id);
        found.map(|(_, value)| value)
    }

    /// A property that is text.
    #[must_use]
    pub fn text(&self, id: u8) -> Option<&str> {
        if let Property::Text(text) = self.find(id)? {
            return Some(text);
        }
        None
    }

    /// The user properties.
    #[must_use]
    pub fn users(&self) -> Vec<(&str, &str)> {
        let mut pairs = Vec::new();
        for (_, value) in &self.0 {
            if let Property::Pair(name, value) = value {
                pairs.push((name.as_str(), value.as_str()));
            }
        }
        pairs
    }

    pub(super) fn put(&self, into: &mut Vec<u8>) {
        let mut all = Vec::new();
        for (id, value) in &self.0 {
            all.push(*id);
            match value {
                Property::Byte(value) => all.push(*value),
                Property::Two(value) => all.extend(value.to_be_bytes()),
                Property::Four(value) => all.extend(value.to_be_bytes()),
                Property::Variable(value) => put_variable(&mut all, *value),
                Property::Text(text) => put_bytes(&mut all, text.as_bytes()),
                Property::Binary(bytes) => put_bytes(&mut all, bytes),
                Property::Pair(name, value) => {
                    put_bytes(&mut all, name.as_bytes());
                    put_bytes(&mut all, value.as_bytes());
                }
            }
        }
        put_variable(into, u32::try_from(all.len()).expect("a few bytes"));
        into.extend(all);
    }

    pub(super) fn take(from: &mut Bytes<'_>) -> Result<Self> {
        let length = from.variable()?;
        let mut rest = Bytes(from.take(usize::try_from(length)?)?);
        let mut all = Vec::new();
        while !rest.0.is_empty() {
            let id = rest.byte()?;
            let value = take_value(id, &mut rest).with_context(|| format!("property {id}"))?;
            all.push((id, value));
        }
        Ok(Self(all))
    }
}

fn take_value(id: u8, from: &mut Bytes<'_>) -> Result<Property> {
    Ok(match id {
        1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => Property::Byte(from.byte()?),
        19 | 33 | 34 | 35 => Property::Two(from.two()?),
        2 | 17 | 24 | 39 => Property::Four(from.four()?),
        11 => Property::Variable(from.variable()?),
        3 | 8 | 18 | 21 | 26 | 28 | 31 => Property::Text(from.text()?),
        9 | 22 => Property::Binary(from.bytes()?.to_vec()),
        38 => Property::Pair(from.text()?, from.text()?),
        _ => bail!("no such property"),
    })
}
