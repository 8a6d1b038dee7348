//! UTF-8 strings of packets. The crate has looked whether they are UTF-8, without surrogates.

use mqtt_protocol_core::mqtt::packet::Property;

use super::Malformed;
use crate::mqtt::packet::reason;

/// A string of a packet.
///
/// # Errors
/// [`Malformed`]: it has a NUL (MQTT 3.1.1, section 1.5.3; MQTT 5, section 1.5.4).
pub(super) fn text(text: &str) -> Result<&str, Malformed> {
    if text.contains('\0') {
        return Err(Malformed {
            reason: reason::MALFORMED,
            what: "a string with a NUL",
        });
    }
    Ok(text)
}

/// Checks all strings among the properties of a packet, also of those that nobody reads.
///
/// # Errors
/// [`text`]'s.
pub(super) fn check_texts(properties: &[Property]) -> Result<(), Malformed> {
    for property in properties {
        let (name, value) = match property {
            Property::UserProperty(pair) => (pair.key(), pair.val()),
            Property::ContentType(it) => ("", it.val()),
            Property::ResponseTopic(it) => ("", it.val()),
            Property::AssignedClientIdentifier(it) => ("", it.val()),
            Property::AuthenticationMethod(it) => ("", it.val()),
            Property::ResponseInformation(it) => ("", it.val()),
            Property::ServerReference(it) => ("", it.val()),
            Property::ReasonString(it) => ("", it.val()),
            Property::PayloadFormatIndicator(_)
            | Property::MessageExpiryInterval(_)
            | Property::CorrelationData(_)
            | Property::SubscriptionIdentifier(_)
            | Property::SessionExpiryInterval(_)
            | Property::ServerKeepAlive(_)
            | Property::AuthenticationData(_)
            | Property::RequestProblemInformation(_)
            | Property::WillDelayInterval(_)
            | Property::RequestResponseInformation(_)
            | Property::ReceiveMaximum(_)
            | Property::TopicAliasMaximum(_)
            | Property::TopicAlias(_)
            | Property::MaximumQos(_)
            | Property::RetainAvailable(_)
            | Property::MaximumPacketSize(_)
            | Property::WildcardSubscriptionAvailable(_)
            | Property::SubscriptionIdentifierAvailable(_)
            | Property::SharedSubscriptionAvailable(_) => continue,
        };
        text(name)?;
        text(value)?;
    }
    Ok(())
}
