//! Accepts Kafka clients, up to a limit; at the limit the connection that was idle longest makes room.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::conn::{ConnError, Connection, End};
use super::intake::Activity;
use super::throttle::Mute;
use super::{KafkaConfig, Services};
use crate::access::RefusedLogins;

/// Pause after `accept` failed: it does at once again while file descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    config: Arc<KafkaConfig>,
    services: Services,
}

type Ended = Result<(Id, Result<End, ConnError>), JoinError>;

#[derive(Debug)]
struct Open {
    stop: CancellationToken,
    activity: Arc<Activity>,
}

impl Listener {
    /// Binds the socket.
    ///
    /// # Errors
    /// The address is taken, or not ours.
    pub async fn bind(config: KafkaConfig, services: Services) -> io::Result<Self> {
        Ok(Self {
            socket: TcpListener::bind(config.bind).await?,
            config: Arc::new(config),
            services,
        })
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves clients until `stop`; then answers what is in flight, within the drain timeout.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            socket,
            config,
            services,
        } = self;
        let address = socket.local_addr().unwrap_or(config.bind);
        let mut pool = Pool {
            tasks: JoinSet::new(),
            open: HashMap::new(),
            next: 0,
            refused: Arc::new(RefusedLogins::new("kafka", address)),
            config,
            services,
            stop,
        };
        loop {
            tokio::select! {
                biased;
                () = pool.stop.cancelled() => break,
                Some(ended) = pool.tasks.join_next_with_id() => pool.ended(ended),
                accepted = socket.accept() => match accepted {
                    Ok((stream, _)) => pool.accepted(stream),
                    Err(error) => {
                        pool.services.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                        debug!(%error, "Accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(socket);
        pool.drain().await;
    }
}

/// The open connections.
#[derive(Debug)]
struct Pool {
    tasks: JoinSet<Result<End, ConnError>>,
    open: HashMap<Id, Open>,
    next: u64,
    refused: Arc<RefusedLogins>,
    config: Arc<KafkaConfig>,
    services: Services,
    stop: CancellationToken,
}

impl Pool {
    fn accepted(&mut self, stream: TcpStream) {
        if self.open.len() >= self.config.max_connections && !self.make_room() {
            self.services
                .stats
                .refused_connections
                .fetch_add(1, Ordering::Relaxed);
            debug!("Connection refused: as many as allowed are busy");
            return;
        }
        self.next += 1;
        let stop = self.stop.child_token();
        let activity = Arc::new(Activity::new());
        let connection = Connection {
            config: self.config.clone(),
            services: self.services.clone(),
            activity: activity.clone(),
            stop: stop.clone(),
            mute: Mute::default(),
            refused: self.refused.clone(),
        };
        let span = info_span!("kafka", conn = self.next);
        let task = self.tasks.spawn(connection.serve(stream).instrument(span));
        self.open.insert(task.id(), Open { stop, activity });
        self.services.stats.accepted.fetch_add(1, Ordering::Relaxed);
        self.services.stats.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends the connection that was idle longest. False when all are busy.
    fn make_room(&mut self) -> bool {
        let idle = self
            .open
            .iter()
            .filter_map(|(id, open)| Some((*id, open.activity.idle_for()?)))
            .filter(|(_, idle)| *idle >= self.config.min_idle)
            .max_by_key(|(_, idle)| *idle);
        let Some(evicted) = idle.and_then(|(id, _)| self.open.remove(&id)) else {
            return false;
        };
        evicted.stop.cancel();
        self.services.stats.evicted.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn ended(&mut self, ended: Ended) {
        self.services.stats.open.fetch_sub(1, Ordering::Relaxed);
        match ended {
            Ok((id, Ok(end))) => {
                self.open.remove(&id);
                debug!(?end, "Connection ended");
            }
            Ok((id, Err(error))) => {
                self.open.remove(&id);
                self.services.stats.failed.fetch_add(1, Ordering::Relaxed);
                debug!(%error, "Connection ended by an error");
            }
            Err(error) => {
                self.open.remove(&error.id());
                self.services.stats.failed.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "Connection task failed");
            }
        }
    }

    async fn drain(mut self) {
        let connections = self.tasks.len();
        // each connection has the same limit for itself
        let limit = self.config.drain_timeout + Duration::from_secs(1);
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.ended(ended);
            }
        };
        let is_done = timeout(limit, all).await.is_ok();
        info!(connections, is_done, "Kafka listener stopped");
    }
}
