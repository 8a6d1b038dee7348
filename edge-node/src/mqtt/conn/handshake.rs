//! From CONNECT to CONNACK.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::client::{Client, Limits};
use super::room::LOOK;
use super::wire::Wire;
use super::{Connection, End};
use crate::access::Principal;
use crate::mqtt::codec::{ConnAck, Malformed, connect_version, decode, put_connack};
use crate::mqtt::frame::Frame;
use crate::mqtt::packet::{Connect, Incoming, Version, reason};
use crate::quota::Meter;

/// Longest client id.
const MAX_CLIENT_ID: usize = 512;

impl Connection {
    /// Bytes of a packet from this client.
    fn max_packet(&self) -> usize {
        self.broker.config.max_packet.min(self.peer.max_packet)
    }

    /// Reads CONNECT and answers it.
    pub(super) async fn greet<S>(&self, wire: &mut Wire<S>) -> Result<Box<Client<'_>>, End>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
    {
        let config = &self.broker.config;
        let first = async {
            loop {
                if let Some(frame) = wire.frame()? {
                    return Ok(frame);
                }
                let intake = &self.broker.intake;
                match timeout(LOOK, poll_fn(|cx| wire.poll_fill(cx, intake))).await {
                    Ok(Ok(0)) => return Err(End::Closed),
                    Ok(Err(error)) => return Err(error.into()),
                    // others must not wait for what a stranger holds
                    Err(_) if wire.is_hogging(intake, config.patience) => return Err(End::TooSlow),
                    Ok(_) | Err(_) => {}
                }
            }
        };
        let frame = tokio::select! {
            frame = timeout(config.connect_timeout, first) => frame.map_err(|_| End::NoConnect)??,
            () = self.stop.cancelled() => return Err(End::Stopped),
        };
        wire.max_packet = self.max_packet();
        let mut connect = match connect_of(&frame) {
            Ok(connect) => connect,
            Err((version, malformed)) => {
                debug!(%malformed, "CONNECT refused");
                if malformed.reason == reason::UNSUPPORTED_VERSION || version == Some(Version::V5) {
                    let ack = ConnAck {
                        reason: malformed.reason,
                        ..ConnAck::default()
                    };
                    put_connack(&mut wire.output, version.unwrap_or(Version::V3), &ack);
                }
                return Err(malformed.into());
            }
        };
        let version = connect.version;
        match self.admit(&mut connect, &mut wire.output).await {
            Ok(client) => Ok(client),
            Err(code) => {
                let ack = ConnAck {
                    reason: code,
                    ..ConnAck::default()
                };
                put_connack(&mut wire.output, version, &ack);
                Err(End::Refused(code))
            }
        }
    }

    async fn admit(
        &self,
        connect: &mut Connect,
        output: &mut BytesMut,
    ) -> Result<Box<Client<'_>>, u8> {
        let config = &self.broker.config;
        if connect.has_authentication {
            return Err(reason::BAD_AUTHENTICATION_METHOD);
        }
        let is_assigned = connect.client_id.is_empty();
        if is_assigned && connect.version == Version::V3 && !connect.clean_start {
            return Err(reason::CLIENT_ID_INVALID);
        }
        if connect.client_id.len() > MAX_CLIENT_ID {
            return Err(reason::CLIENT_ID_INVALID);
        }
        let client_id = if is_assigned {
            new_client_id()
        } else {
            connect.client_id.clone()
        };
        let user = self.user(connect).await;
        let user = user.inspect_err(|code| self.tell_refused(connect, *code))?;
        if let Some(will) = &connect.will
            && !self.broker.may_publish(&user, &will.message.topic)
        {
            return Err(reason::NOT_AUTHORIZED);
        }
        let expiry_s = connect.session_expiry_s.min(config.max_session_expiry_s);
        let window = usize::from(connect.receive_maximum).min(config.max_inflight);
        let keep_alive_s = keep_alive(connect, config.max_keep_alive_s);
        let admitted = self
            .broker
            .admit(&client_id, &user, connect, expiry_s, window)
            .await;
        let admitted = admitted.map_err(|refused| refused.0)?;
        // after an earlier connection of this client has given its own back
        let place = user.quota().connect();
        if place.is_none() {
            let refused = &self.broker.stats.refused_connections;
            refused.fetch_add(1, Ordering::Relaxed);
            debug!("Connection refused: its user has as many as allowed");
        }
        let is_saved = place.is_some() && self.broker.save(&admitted.session).await;
        let Some(place) = place.filter(|_| is_saved) else {
            // nothing is left of what was refused
            if !admitted.session_present {
                admitted.session.state().expiry_s = 0;
            }
            self.broker
                .release(&admitted.session, admitted.number, false);
            return Err(reason::QUOTA_EXCEEDED);
        };
        let wants_answers = connect.wants_response_information;
        let ack = ConnAck {
            reason: reason::SUCCESS,
            session_present: admitted.session_present,
            session_expiry_s: (expiry_s != connect.session_expiry_s).then_some(expiry_s),
            receive_maximum: Some(config.receive_maximum),
            max_packet_bytes: u32::try_from(self.max_packet()).ok(),
            response_information: wants_answers.then(|| format!("response/{client_id}")),
            assigned_client_id: is_assigned.then_some(client_id),
            topic_alias_maximum: Some(config.topic_aliases),
            keep_alive_s: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
            reason_text: None,
        };
        put_connack(output, connect.version, &ack);
        let limits = Limits {
            max_packet: connect
                .max_packet_bytes
                .map_or(usize::MAX, |bytes| bytes as usize),
            aliases: connect.topic_alias_maximum.min(config.topic_aliases),
            // one and a half times what was agreed (MQTT 5, section 3.1.2.10)
            keep_alive: (keep_alive_s > 0)
                .then(|| Duration::from_millis(1500 * u64::from(keep_alive_s))),
        };
        let meter = Meter::new(&self.quota, user.quota());
        let client = Box::new(Client::new(
            &self.broker,
            connect.version,
            admitted.session,
            admitted.number,
            limits,
            user,
            (meter, place),
            admitted.again,
        ));
        Ok(client)
    }

    /// Who the client is: who its user name and password say, else its certificate, else nobody in particular.
    async fn user(&self, connect: &Connect) -> Result<Principal, u8> {
        let access = &self.broker.access;
        let certified = self
            .peer
            .certified
            .as_deref()
            .and_then(|name| access.by_common_name(name));
        match (&connect.user, certified) {
            (Some(name), _) if access.has_users() => {
                let password = connect.password.as_deref().unwrap_or_default();
                access
                    .check_password(name, password)
                    .await
                    .ok_or(reason::BAD_CREDENTIALS)
            }
            (_, Some(user)) => Ok(user),
            (_, None) => access.anonymous().ok_or(reason::NOT_AUTHORIZED),
        }
    }

    /// Tells the operator that [`Connection::user`] found nobody.
    fn tell_refused(&self, connect: &Connect, code: u8) {
        let why = if code == reason::BAD_CREDENTIALS {
            "user or password is wrong"
        } else {
            "no user name, and nobody may come without one"
        };
        let user = connect.user.as_deref();
        self.refused.tell(self.peer.address, user, why);
    }
}

fn connect_of(frame: &Frame) -> Result<Box<Connect>, (Option<Version>, Malformed)> {
    let version = connect_version(frame).map_err(|malformed| (None, malformed))?;
    match decode(version, frame, shared::time::wall_ms()) {
        Ok(Incoming::Connect(connect)) => Ok(connect),
        Ok(_) => Err((
            None,
            Malformed {
                reason: reason::PROTOCOL_ERROR,
                what: "not a CONNECT",
            },
        )),
        Err(malformed) => Err((Some(version), malformed)),
    }
}

fn keep_alive(connect: &Connect, most_s: Option<u16>) -> u16 {
    match (connect.version, most_s) {
        (Version::V5, Some(most)) if connect.keep_alive_s == 0 || connect.keep_alive_s > most => {
            most
        }
        // a client of MQTT 3.1.1 can't be told of another
        (Version::V3 | Version::V5, _) => connect.keep_alive_s,
    }
}

fn new_client_id() -> String {
    format!("kedge-{:032x}", rand::random::<u128>())
}
